"""Splits videos off for validation: whole groups, stratified by label, the same ones for the same seed.

Clips that were cut from one scene look alike. With some of them in training and some in validation a model is praised
for remembering the scene, so a *group* is never divided.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from vidray.errors import UsageError

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in _SPLIT_NAMES.items() for name in names}

UCF101_GROUP = re.compile(r"(v_[^/]+_g\d+)_c\d+(?:\.[^./]+)?$")
"""``v_Archery_g16_c05.avi``: the fifth clip of group 16 of its class; clips of one group show one scene."""


def split_of(name: str) -> str | None:
    """``train``, ``val`` or ``test`` for what people call them (``Validation``, ``valid``, ...); None for others."""
    return _SPLIT_OF.get(name.strip().lower())


def group_of(uri: str, pattern: re.Pattern[str] = UCF101_GROUP) -> str:
    """What ``pattern`` finds in a URI: its first group, or all of the match; where it finds nothing, the URI itself."""
    match = pattern.search(uri)
    if match is None:
        return uri
    return match[1] if pattern.groups and match[1] is not None else match[0]


def compile_group_regex(text: str) -> re.Pattern[str]:
    """Raises UsageError for what is no regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"--group-regex: got {text!r}, which is no regular expression: {error}") from error


def choose_validation(labels: Sequence[str], groups: Sequence[str], *, fraction: float, seed: int) -> set[str]:
    """The groups that validate: about ``fraction`` of every label's videos, at least one group of each label, and at
    least one left to train on.

    Only the seed and the groups' names decide the order in which groups are considered; what all names start with, such
    as a bucket, does not count. A group is taken if that brings the counts of its labels nearer to the wanted ones. A
    label that got none then gets its smallest group.

    Args:
        labels: each video's label.
        groups: each video's group.
        fraction: between 0 and 1.
        seed: another seed gives another choice.

    Raises:
        UsageError: a label has all its videos in one group, or no choice leaves every label on both sides.
    """
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for label, group in zip(labels, groups, strict=True):
        members[group][label] += 1
    _check_divisible(members, labels)
    prefix = _common_folder(members)  # the same split wherever the videos lie
    choice = _Choice(members, {label: fraction * count for label, count in Counter(labels).items()})
    for group in sorted(members, key=lambda name: _rank(seed, name.removeprefix(prefix))):
        if choice.leaves_training(group) and choice.improves(group):
            choice.take(group)
    for label in sorted(set(labels)):
        if not choice.counts[label]:
            choice.take_smallest(label)
    return choice.chosen


class _Choice:
    """The groups chosen so far, and what that means for each label."""

    def __init__(self, members: dict[str, Counter[str]], wanted: dict[str, float]) -> None:
        self._members, self._wanted = members, wanted
        self._groups_left = Counter(label for labels in members.values() for label in labels)
        self.counts: Counter[str] = Counter()
        self.chosen: set[str] = set()

    def leaves_training(self, group: str) -> bool:
        """True if every label of this group has another group that is not chosen."""
        return all(self._groups_left[label] > 1 for label in self._members[group])

    def improves(self, group: str) -> bool:
        """True if it brings the counts nearer to the wanted ones, by the sum of squared differences."""
        return self._distance(self._members[group]) < self._distance(dict.fromkeys(self._members[group], 0))

    def _distance(self, more: dict[str, int]) -> float:
        return sum((self._wanted[label] - self.counts[label] - count) ** 2 for label, count in more.items())

    def take(self, group: str) -> None:
        self.chosen.add(group)
        self.counts.update(self._members[group])
        self._groups_left.subtract(self._members[group].keys())

    def take_smallest(self, label: str) -> None:
        """Takes the smallest free group of a label. Raises UsageError if each is the last one of some label."""
        free = [g for g in self._members if label in self._members[g] and g not in self.chosen]
        free = [g for g in free if self.leaves_training(g)]
        if not free:
            raise UsageError(
                f"no validation split can be made: every group with the label {label!r} holds the last videos of "
                "some label. Give a source with a validation split, or smaller groups (--group-regex)"
            )
        self.take(min(free, key=lambda group: (self._members[group].total(), group)))


def _check_divisible(members: dict[str, Counter[str]], labels: Iterable[str]) -> None:
    num_groups = Counter(label for of_group in members.values() for label in of_group)
    alone = sorted(label for label, count in num_groups.items() if count == 1)
    if not alone:
        return
    counts = Counter(labels)
    named = ", ".join(f"{label!r} ({counts[label]} videos)" for label in alone[:5]) + (" ..." if alone[5:] else "")
    raise UsageError(
        f"{len(alone)} labels have all their videos in one group: {named}. Training and validation need at least one "
        "group each; add videos, remove these labels, or give a source with a validation split"
    )


def _common_folder(names: Iterable[str]) -> str:
    """What all names start with, up to their last common slash."""
    ordered = sorted(names)
    first, last = ordered[0], ordered[-1]
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[:length].rpartition("/")[0]


def _rank(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=16).digest()
