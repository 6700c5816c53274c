"""The report of a training or an evaluation: one page, ``report/index.html``, and what it is made from beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vidray.checkpoints.checkpoint import CheckpointMeta, read_checkpoint
from vidray.errors import RunError
from vidray.pages import words
from vidray.pages.blocks import Bar, Block, Card, Cards, Cell, Figure, Page, Section, Strip, Table, Text
from vidray.pages.page import render
from vidray.storage.store import Store
from vidray.training import report_charts, report_facts
from vidray.training.evaluate import EvalResults, EvalSpec
from vidray.training.loop.checkpoint_writer import METRICS_FILE
from vidray.types import ViewConfig

PAGE_FILE = "report/index.html"
FACTS_FILE = "report/facts.json"
_MIN_LABELS_OF_TOP5 = 11
"""With fewer classes, the five best are no achievement."""
_NUM_SHOWN_CLASSES = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What a page is made from."""

    title: str
    labels: Sequence[str]
    view: ViewConfig
    figures: dict[str, Any]
    """Of ``classification_metrics``; {} where there was no evaluation."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of ``report_facts``; {} if they are not kept."""
    metrics_rows: Sequence[dict[str, Any]] = ()
    """Lines of metrics.jsonl."""
    training: dict[str, Any] = field(default_factory=dict)
    """Of vidray.json."""


def write_report(folder: Path, evaluated: Evaluated, results: EvalResults, spec: EvalSpec) -> None:
    """Put page and facts into a folder. ``evaluated`` may come without facts, and has the confusion in its figures."""
    facts = report_facts.report_facts(evaluated.figures, results, spec)
    (folder / FACTS_FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / FACTS_FILE).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    whole = Evaluated(**{name: getattr(evaluated, name) for name in Evaluated.__slots__} | {"facts": facts})
    (folder / PAGE_FILE).write_text(render(make_page(whole)), encoding="utf-8")


def checkpoint_page(location: str) -> str:
    """The report of a checkpoint as HTML, from what lies in its folder.

    Raises:
        UsageError: it is no checkpoint.
        RunError: it was not trained by vidray, so there is nothing to report.
    """
    checkpoint = read_checkpoint(location)
    meta = checkpoint.meta
    if not meta.metrics:
        raise RunError(f"{location} says nothing of a training or its figures; vidray evaluate --output makes a report")
    return render(make_page(_evaluated(location, meta)))


def _evaluated(location: str, meta: CheckpointMeta) -> Evaluated:
    store = Store(location)
    facts = store.read_json(FACTS_FILE) if store.exists(FACTS_FILE) else {}
    return Evaluated(
        title=words.file_name(location.rstrip("/")),
        labels=meta.labels,
        view=meta.view,
        figures=meta.metrics,
        facts=facts,
        metrics_rows=_read_metrics(store),
        training=meta.training,
    )


def _read_metrics(store: Store) -> list[dict[str, Any]]:
    lines = store.read(METRICS_FILE).splitlines() if store.exists(METRICS_FILE) else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RunError(f"{store.uri_for(METRICS_FILE)} cannot be read: {error}") from error


def make_page(evaluated: Evaluated) -> Page:
    """The page of an evaluation, and of the training before it if there was one."""
    sections = [_learning(evaluated), _confusions(evaluated), _classes(evaluated), _certainty(evaluated)]
    training = evaluated.training
    subtitle = f"fine-tuned from {training['base_model']}" if training.get("base_model") else "evaluation"
    return Page(
        title=evaluated.title,
        subtitle=subtitle,
        verdict=_verdict(evaluated),
        figures=_headlines(evaluated),
        sections=[*filter(None, sections), _mistakes(evaluated)],
        facts=_origin(evaluated),
    )


def _verdict(evaluated: Evaluated) -> str:
    figures, facts = evaluated.figures, evaluated.facts
    text = f"{words.percent(figures['accuracy'])} of {words.count(figures['num_videos'], 'video')} are classified as "
    text += "they are labelled."
    seen = {name: entry for name, entry in figures["per_class"].items() if entry["num_videos"]}
    weakest = min(seen, key=lambda name: seen[name]["recall"])
    if len(seen) > 1 and seen[weakest]["recall"] < 1:
        text += (
            f" Hardest is {words.short(weakest, 60)}, found in {words.percent(seen[weakest]['recall'])} of its videos"
        )
        pairs = [pair for pair in _confused(facts) if facts["labels"][pair[0]] == weakest] if facts else []
        text += f" and most often taken for {words.short(facts['labels'][pairs[0][1]], 60)}." if pairs else "."
    return text


def _headlines(evaluated: Evaluated) -> list[Figure]:
    figures, training = evaluated.figures, evaluated.training
    num = figures["num_videos"]
    low, high = wilson_interval(round(figures["accuracy"] * num), num)
    tiles = [
        Figure(name="accuracy", value=words.percent(figures["accuracy"]), note=_between(low, high)),
        Figure(
            name="mean class accuracy",
            value=words.percent(figures["mean_class_accuracy"]),
            note="every class counts alike",
        ),
    ]
    if len(evaluated.labels) >= _MIN_LABELS_OF_TOP5:
        note = "the actual class is among the five best"
        tiles.append(Figure(name="top-5 accuracy", value=words.percent(figures["top5_accuracy"]), note=note))
    tiles.append(
        Figure(name="calibration error", value=words.percent(figures["ece"]), note="confidence less accuracy, mean")
    )
    views = words.count(figures.get("num_views", evaluated.view.num_views), "view")
    failed = figures.get("num_failed", 0)
    note = f"{views} each" + (f"; {failed:,} more could not be decoded" if failed else "")
    tiles.append(Figure(name="videos", value=f"{num:,}", note=note, tone="warn" if failed else ""))
    if training.get("best_epoch") is not None:
        epochs = training.get("settings", {}).get("epochs", "?")
        tiles.append(Figure(name="best epoch", value=str(training["best_epoch"]), note=f"of {epochs}"))
    return tiles


def _between(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f}% with 95% confidence"


def wilson_interval(num_right: int, num: int) -> tuple[float, float]:
    """95% confidence interval of a share (Wilson, 1927), which holds for few videos and near 0 and 1 too."""
    z, share = 1.96, num_right / num
    middle = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * float(np.sqrt(share * (1 - share) / num + z**2 / (4 * num**2)))
    return max(0.0, middle - half), min(1.0, middle + half)


def _learning(evaluated: Evaluated) -> Section | None:
    best = evaluated.training.get("best_epoch")
    pictures = report_charts.learning_curves(evaluated.metrics_rows, best_epoch=best)
    if pictures is None:
        return None if not evaluated.training else Section(title="Learning", blocks=[_missing(METRICS_FILE)])
    return Section(
        title="Learning",
        text=f"The weights after epoch {best} are the ones that are published." if best is not None else "",
        blocks=[pictures],
    )


def _confusions(evaluated: Evaluated) -> Section:
    facts = evaluated.facts
    if not facts:
        return Section(title="What is taken for what", blocks=[_missing(FACTS_FILE)])
    labels = facts["labels"]
    totals = np.zeros(len(labels))
    for actual, _, number in facts["confusion"]:
        totals[actual] += number
    rows = [_confusion_row(labels[a], labels[p], number, number / totals[a]) for a, p, number in _confused(facts)[:20]]
    blocks: list[Block] = [report_charts.confusion(facts["confusion"], labels)]
    if rows:
        head = ["actual", "predicted", "videos", "of the actual class"]
        blocks.append(Table(caption="Most frequent confusions", head=head, rows=rows))
    text = "A row is an actual class; its cells say what share of its videos was predicted as what."
    return Section(title="What is taken for what", text=text, blocks=blocks)


def _confusion_row(actual: str, predicted: str, number: int, share: float) -> list[Cell]:
    return [actual, predicted, number, Bar(share=share, text=words.percent(share), tone="bad")]


def _confused(facts: dict[str, Any]) -> list[list[int]]:
    """[actual, predicted, count] off the diagonal, the most frequent first."""
    return sorted((pair for pair in facts["confusion"] if pair[0] != pair[1]), key=lambda pair: -pair[2])


def _classes(evaluated: Evaluated) -> Section:
    per_class = evaluated.figures["per_class"]
    seen = sorted((n for n in per_class if per_class[n]["num_videos"]), key=lambda name: per_class[name]["recall"])
    rows = [
        [
            name,
            Bar(share=per_class[name]["recall"], text=words.percent(per_class[name]["recall"])),
            Bar(share=per_class[name]["precision"], text=words.percent(per_class[name]["precision"])),
            per_class[name]["num_videos"],
        ]
        for name in seen
    ]
    table = Table(
        caption="Classes, the hardest first",
        head=["class", "found (recall)", "right when predicted (precision)", "videos"],
        rows=rows[:_NUM_SHOWN_CLASSES],
        more=rows[_NUM_SHOWN_CLASSES:],
        more_title=f"{len(rows) - _NUM_SHOWN_CLASSES} classes that are found more often",
    )
    unseen = len(per_class) - len(seen)
    note = [Text(text=f"{words.count(unseen, 'class').replace('classs', 'classes')} had no video.")] if unseen else []
    return Section(title="Class by class", blocks=[table, *note])


def _certainty(evaluated: Evaluated) -> Section:
    text = "Whether a score means what it says: of videos with a score of 0.8, 80% should be right."
    if not evaluated.facts:
        return Section(title="How sure it is", text=text, blocks=[_missing(FACTS_FILE)])
    return Section(title="How sure it is", text=text, blocks=[report_charts.certainty(evaluated.facts)])


def _mistakes(evaluated: Evaluated) -> Section:
    if not evaluated.facts:
        return Section(title="Worst mistakes", blocks=[_missing(FACTS_FILE)])
    cards = [_card(mistake) for mistake in evaluated.facts["mistakes"]]
    if not cards:
        return Section(title="Worst mistakes", blocks=[Text(text="There is none.", tone="good")])
    text = "The wrong predictions with the highest scores. Some may be right, and the label wrong."
    note = "Frames as the model saw them, of the middle clip."
    return Section(title="Worst mistakes", text=text, blocks=[Cards(title="Surest first", note=note, cards=cards)])


def _card(mistake: dict[str, Any]) -> Card:
    clip = mistake["clip"]
    facts = [f"actual: {mistake['actual']} (probability {mistake['actual_score']:.3f})"]
    facts += [f"clip: {words.seconds(clip[0])} to {words.seconds(clip[1])}"] if clip else []
    return Card(
        title=f"predicted: {mistake['top_k'][0][0]}",
        uri=mistake["uri"],
        strip=Strip(frames=mistake["frames"], times=mistake["times"], problem=mistake["problem"]),
        facts=facts,
        top_k=[
            Bar(share=score, text=label, tone="good" if label == mistake["actual"] else "")
            for label, score in mistake["top_k"]
        ],
    )


def _missing(name: str) -> Text:
    return Text(text=f"Not shown: {name} is missing beside this checkpoint; trainings now keep it.", tone="warn")


def _origin(evaluated: Evaluated) -> list[tuple[str, Any]]:
    training, view = evaluated.training, evaluated.view
    split = training.get("split", {}).get("num_videos", {})
    found = [
        ("Base model", training.get("base_model")),
        ("Recipe", training.get("recipe")),
        ("Videos", ", ".join(f"{number:,} {name}" for name, number in split.items())),
        ("View", f"{view.num_frames} frames of {view.size} × {view.size} px, span {view.span}, stride {view.stride}"),
        ("Versions", ", ".join(f"{name} {number}" for name, number in training.get("versions", {}).items())),
        ("Commit", training.get("git_commit")),
    ]
    return [(name, value) for name, value in found if value]
