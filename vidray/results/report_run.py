"""What happened in a run: what became of every object, when, where the time went, and what failed."""

from __future__ import annotations

from typing import Any

import duckdb

from vidray.pages.blocks import Bar, Block, Cell, Code, Figure, Picture, Pictures, Section, Table, Text
from vidray.pages.charts import chart, colour
from vidray.pages.words import count, percent, short
from vidray.progress import format_seconds
from vidray.results.advice import ADVICE
from vidray.results.run_rows import Run
from vidray.types import Status

_NUM_BINS = 40
_NUM_EXAMPLES = 3
_HELD_BACK = {
    "fetch": "Fetching held it back: more --fetch-threads, or compute nearer to the bucket.",
    "decode": "Decoding held it back: add CPUs (--decoders).",
    "predict": "The model held it back: add GPUs (--predictors), or use fewer --views.",
}


def verdict(run: Run) -> str:
    """The run in a sentence."""
    summary = run.summary
    scored, failed = summary["num_scored"], summary["num_failed"]
    text = f"{count(scored, 'video')} scored"
    text += f", {failed:,} failed ({percent(failed / max(scored + failed, 1))})." if failed else ", none failed."
    if summary["outcome"] != "success":
        text += f" More than the {percent(summary['max_failure_rate'])} that is allowed: the run counts as failed."
    left = summary["num_deferred"] + summary["num_given_up"]
    return text + (f" {left:,} more have no score and were not tried." if left else "")


def headlines(run: Run) -> list[Figure]:
    """The accounting, whose parts add up to what was listed."""
    summary = run.summary
    counts = {name: summary[f"num_{name.replace(' ', '_')}"] for name in ("deferred", "given up")}
    tiles = [
        Figure(name="listed", value=f"{summary['num_listed']:,}", note=_limit(summary)),
        Figure(name="done before", value=f"{summary['num_already_done']:,}"),
        Figure(name="scored", value=f"{summary['num_scored']:,}", tone="good"),
        Figure(name="failed", value=f"{summary['num_failed']:,}", tone="bad" if summary["num_failed"] else ""),
    ]
    notes = {"deferred": "tried again later", "given up": "tried when they change"}
    tiles += [
        Figure(name=name, value=f"{number:,}", note=notes[name], tone="warn" if number else "")
        for name, number in counts.items()
    ]
    return tiles


def _limit(summary: dict[str, Any]) -> str:
    return f"of which --limit {summary['limit']:,}" if summary["limit"] else "= all that follows"


def section(db: duckdb.DuckDBPyConnection, run: Run) -> Section:
    """Rate, time, and failures."""
    timing = run.summary["this_process"]
    lasted, start_up = format_seconds(timing["seconds"]), format_seconds(timing["start_up_seconds"])
    text = f"It took {lasted}, {start_up} of that to start, then {timing['videos_per_second']:.1f} videos per second."
    text += " It was resumed: times are of the last start." if run.summary["resumed"] else ""
    held = timing["held_back_by"]
    blocks: list[Block] = [
        *_rate(db),
        _stages(timing),
        Text(
            text=_HELD_BACK[held] if held else "Too short to tell which stage held it back.",
            tone="warn" if held else "",
        ),
        *_failures(db),
    ]
    return Section(title="What happened", text=text, blocks=blocks)


def _rate(db: duckdb.DuckDBPyConnection) -> list[Block]:
    start, end = db.execute("SELECT min(epoch(scored_at)), max(epoch(scored_at)) FROM after").fetchall()[0]
    if start is None or end - start < 1:
        return []
    width = (end - start) / _NUM_BINS
    query = "SELECT least(floor((epoch(scored_at) - ?) / ?), ?), count(*) FROM after GROUP BY 1"
    found = dict(db.execute(query, [start, width, _NUM_BINS - 1]).fetchall())
    rates = [found.get(number, 0) / width for number in range(_NUM_BINS)]
    unit, scale = ("minutes", 60.0) if end - start > 180 else ("seconds", 1.0)

    def draw(axes: Any) -> None:
        edges = [number * width / scale for number in range(_NUM_BINS + 1)]
        axes.stairs(rates, edges, fill=True, color=colour("accent"), alpha=0.85)
        axes.set(xlabel=f"{unit} since the first row", ylabel="videos per second", xlim=(0, edges[-1]))

    alt = f"Videos per second: at most {max(rates):.1f}, on average {sum(rates) / _NUM_BINS:.1f}."
    return [Pictures(pictures=[Picture(title="Rate over time", alt=alt, svg=chart(draw, size=(5.6, 2.4)))])]


def _stages(timing: dict[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for stage in ("fetch", "decode", "predict"):
        share, busy = timing["stage_share"].get(stage, 0.0), timing["stage_busy"].get(stage, 0.0)
        seconds = timing["stage_seconds"].get(stage, 0.0)
        is_first = stage == timing["held_back_by"]
        rows.append(
            [
                stage,
                Bar(share=share, text=percent(share)),
                f"{seconds:,.1f} s",
                Bar(share=busy, text=percent(busy), tone="warn" if is_first else ""),
            ]
        )
    head = ["stage", "of the work", "all workers", "workers busy"]
    return Table(caption="Where the time went", head=head, rows=rows)


def _failures(db: duckdb.DuckDBPyConnection) -> list[Block]:
    found = db.execute(
        f"""SELECT status, count(*) AS num, arg_min(uri, uri, {_NUM_EXAMPLES}), arg_min(left(error, 300), uri)
        FROM after WHERE status <> 'ok' GROUP BY status ORDER BY num DESC, status"""
    ).fetchall()
    if not found:
        return [Text(text="Nothing failed.", tone="good")]
    rows: list[list[Cell]] = []
    for status, number, uris, error in found:
        rows.append([status, number, ADVICE.get(Status(status), ""), error or "", Code(text=uris[0])])
        rows += [[f"{status}, another", "", "", "", Code(text=uri)] for uri in uris[1:]]
    head = ["status", "videos", "what to do", "message of the first", "such as"]
    return [Table(caption="What failed, and what to do about it", head=head, rows=rows)]


def origin(run: Run) -> list[tuple[str, str]]:
    """For the end of the page."""
    summary = run.summary
    names = {"Run": "run_id", "Started": "created_at", "Model": "model", "Result key": "result_key"}
    facts = [(name, str(summary[key])) for name, key in names.items()]
    facts += [("Sources", ", ".join(short(source, 120) for source in summary["source"][:5]))]
    return [*facts, ("Views", summary["view_config"]), ("Decoder", "; ".join(summary["sandbox"]) or "not recorded")]
