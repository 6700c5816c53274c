"""A validation part never divides a group, has every label, and is about as large as asked for."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidray.errors import UsageError
from vidray.sources.splits import UCF101_GROUP, choose_validation, compile_group_regex, group_of, split_of

# A row is (label, number of its group); groups of one label only, as in UCF101.
rows_of_labels = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), min_size=2, max_size=200).map(
    lambda rows: rows + [(label, number) for label in "abcd" for number in (0, 1)]
)


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_labels, seed=st.integers(0, 2**31), fraction=st.sampled_from([0.1, 0.2, 0.5]))
def test_every_label_is_on_both_sides_and_no_group_is(rows: list[tuple[str, int]], seed: int, fraction: float) -> None:
    labels = [label for label, _ in rows]
    groups = [f"v_{label}_g{number:02d}" for label, number in rows]
    chosen = choose_validation(labels, groups, fraction=fraction, seed=seed)
    for label in "abcd":
        of_label = {group for row_label, group in zip(labels, groups, strict=True) if row_label == label}
        assert of_label & chosen
        assert of_label - chosen
    assert chosen == choose_validation(labels[::-1], groups[::-1], fraction=fraction, seed=seed)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=30, max_size=200),
    seed=st.integers(0, 99),
)
def test_groups_with_several_labels_are_not_divided_either(rows: list[tuple[str, int]], seed: int) -> None:
    labels, groups = [label for label, _ in rows], [f"scene{number}" for _, number in rows]
    try:
        chosen = choose_validation(labels, groups, fraction=0.2, seed=seed)
    except UsageError:
        num_groups = Counter(label for label, _ in set(rows))
        assert min(num_groups.values()) <= 3  # else there is a choice
        return
    trained = {label for label, group in zip(labels, groups, strict=True) if group not in chosen}
    validated = {label for label, group in zip(labels, groups, strict=True) if group in chosen}
    assert trained == validated == set(labels)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3])
def test_the_share_is_about_what_was_asked_for_in_every_label(fraction: float) -> None:
    labels = [label for label in "abc" for _ in range(100)]
    groups = [f"{label}{number // 4}" for label in "abc" for number in range(100)]
    for seed in range(5):
        chosen = choose_validation(labels, groups, fraction=fraction, seed=seed)
        counts = Counter(label for label, group in zip(labels, groups, strict=True) if group in chosen)
        assert all(abs(counts[label] - 100 * fraction) <= 4 for label in "abc")


def test_seeds_choose_differently() -> None:
    labels, groups = ["a", "b"] * 20, [f"g{i}" for i in range(40)]
    assert len({frozenset(choose_validation(labels, groups, fraction=0.2, seed=seed)) for seed in range(10)}) == 10


@pytest.mark.parametrize(
    ("uri", "group"),
    [
        ("s3://b/UCF101/Archery/v_Archery_g16_c05.avi", "v_Archery_g16"),
        ("/x/v_HandStandPushups_g01_c01.mp4", "v_HandStandPushups_g01"),
        ("/x/holiday.mp4", "/x/holiday.mp4"),
        ("/v_Archery_g16_c05/other.avi", "/v_Archery_g16_c05/other.avi"),
    ],
)
def test_ucf101_names_tell_their_group(uri: str, group: str) -> None:
    assert group_of(uri, UCF101_GROUP) == group


def test_a_regex_without_a_group_takes_the_whole_match() -> None:
    assert group_of("/cam3/day1/x.mp4", compile_group_regex(r"cam\d+")) == "cam3"
    assert group_of("/cam3/day1/x.mp4", compile_group_regex(r"(cam\d+)/(day\d)")) == "cam3"


def test_split_names() -> None:
    assert [split_of(name) for name in ("Train", "validation", "dev", "TEST", "jump")] == [
        "train",
        "val",
        "val",
        "test",
        None,
    ]
