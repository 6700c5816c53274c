"""A page shows what it is given, to everybody, and does nothing else."""

from __future__ import annotations

import pytest

from tests.support.browser import opened
from vidray.pages.blocks import (
    Bar,
    Card,
    Cards,
    Code,
    Figure,
    Heat,
    Page,
    Picture,
    Pictures,
    Section,
    Strip,
    Table,
    Text,
)
from vidray.pages.charts import chart, colour
from vidray.pages.page import render
from vidray.pages.words import percent, short, visible

HOSTILE = (
    "<script>document.title='taken'</script>\"'><img src=http://127.0.0.1:9/x onerror=alert(1)>\u202e\x00 {{ 7*7 }}"
)
LONG = "x" * 4000


def hostile_page() -> Page:
    blocks = [
        Text(text=HOSTILE),
        Table(
            caption=HOSTILE,
            head=["a", HOSTILE],
            rows=[[HOSTILE, Code(text=HOSTILE)], [LONG, Bar(share=0.5, text=HOSTILE)]],
        ),
        Heat(
            caption="m",
            rows_are="actual",
            columns_are="predicted",
            names=[HOSTILE, LONG],
            shares=[[1.0, 0.0], [0.5, 0.5]],
            counts=[[3, 0], [1, 1]],
        ),
        Pictures(
            pictures=[
                Picture(title=HOSTILE, alt=HOSTILE, svg=chart(lambda axes: axes.plot([0, 1], color=colour("accent"))))
            ]
        ),
        Cards(title=HOSTILE, cards=[Card(title=HOSTILE, uri=LONG, strip=Strip(problem=HOSTILE))]),
    ]
    return Page(
        title=HOSTILE,
        verdict=HOSTILE,
        sections=[Section(title=HOSTILE, text=HOSTILE, blocks=blocks)],
        figures=[Figure(name=HOSTILE, value=HOSTILE, note=HOSTILE)],
        facts=[(HOSTILE, HOSTILE)],
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1150, 360])
def test_hostile_strings_are_shown_run_nothing_ask_nothing_and_fit(tmp_path, width, scheme):
    (tmp_path / "page.html").write_text(render(hostile_page()))
    with opened(tmp_path / "page.html", width=width, scheme=scheme) as (page, noticed):
        assert noticed == []
        assert page.title().startswith("<script>")
        assert page.evaluate("document.querySelectorAll('script, img[onerror]').length") == 0
        assert page.evaluate("document.documentElement.scrollWidth") == width
        text = page.inner_text("h1")
        assert "\\u202e" in text or "…" in text
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 19, 22)"
        assert dark == (scheme == "dark")


def test_a_chart_has_the_colours_of_the_page_in_dark_and_light(tmp_path):
    (tmp_path / "page.html").write_text(render(hostile_page()))
    found = set()
    for scheme in ("light", "dark"):
        with opened(tmp_path / "page.html", scheme=scheme) as (page, _):
            query = "getComputedStyle(document.querySelector('svg text')).fill"
            found.add(page.evaluate(query))
    assert len(found) == 2


def test_marks_that_act_unseen_are_written_out():
    assert visible("a\u202eb\x00c\nd\ud800") == "a\\u202eb\\x00c d\\ud800"
    assert visible("Łódź 日本 👩\u200d💻") == "Łódź 日本 👩\u200d💻"


@pytest.mark.parametrize("length", [2, 10, 33])
def test_a_long_name_keeps_its_ends(length):
    text = short("abcdefghijklmnopqrstuvwxyz0123456789", length)
    assert len(text) == length
    assert "…" in text
    assert text.endswith("9")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (0.0004, "0.04%"), (0.5, "50%"), (0.9994, "99.94%"), (0.999999, "99.99%"), (1, "100%")],
)
def test_a_share_that_is_not_all_is_not_written_as_all(share, text):
    assert percent(share) == text
