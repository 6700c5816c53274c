"""Tables fit the screen, and nothing in a cell is obeyed by a terminal."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from vidray.results.table import cell, clean, format_table, shrunk, text_width


def test_numbers_stand_right_and_text_left():
    table = pa.table({"label": ["a", "long"], "n": [1, 200]})
    assert format_table(table).splitlines() == ["label    n", "─────  ───", "a        1", "long   200"]


@pytest.mark.parametrize("width", [12, 20, 33, 80])
def test_no_line_is_wider_than_the_screen_and_both_ends_of_a_long_cell_stay(width):
    uri = "s3://bucket/a/very/long/folder/name/clip-0001.mp4"
    table = pa.table({"uri": [uri, "短い名前" * 9], "label": ["x" * 30] * 2, "n": [1, 2]})
    lines = format_table(table, width=width).splitlines()
    assert all(text_width(line) <= width for line in lines if not line.startswith("and "))
    if width > 20:
        assert lines[2].startswith("s3")
        assert "1.mp4" in lines[2]


def test_columns_that_do_not_fit_are_named():
    table = pa.table({f"column_{n}": ["some text"] for n in range(9)})
    last = format_table(table, width=30).splitlines()[-1]
    assert last.startswith("and 7 columns that do not fit: column_2, ")


def test_the_widest_columns_give_way():
    assert shrunk([5, 100, 40], 49) == [5, 20, 20]
    assert shrunk([5, 10], 80) == [5, 10]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (0.93, "0.93"),
        (1.0, "1"),
        (0.0, "0"),
        (1e-7, "1e-07"),
        (12345.678, "12345.678"),
        (float("nan"), "nan"),
        (datetime.datetime(2026, 11, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), "2026-11-01 02:03:04"),
        ([{"label": "é", "score": 0.93000001}], '[{"label": "é", "score": 0.93}]'),
        ([("corrupt", 2)], '{"corrupt": 2}'),
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202eb", "a\\u202eb"),
    ],
)
def test_a_cell_is_one_line(value, text):
    assert cell(value) == text


def test_what_can_be_printed_stays():
    assert clean("Größe 短い 🎥 a\u0301") == "Größe 短い 🎥 a\u0301"
