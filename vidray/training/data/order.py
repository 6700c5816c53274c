"""Which clip comes when. Derived from seeds, never stored: a resumed run computes what the killed one would have done.

An epoch is a permutation of the training rows. Global batch k is its slice ``[k·G, (k+1)·G)``, and each rank has a
fixed slice of that::

    epoch     7 2 9 0 4 | 1 8 3 6 5 | ...        G = 5, three ranks with ceil(5 / 3) = 2 slots each
    ranks     0 0 1 1 2   0 0 1 1 2              the sixth slot is padding: the last of rank 2
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

PADDING = -1
"""The row of a slot without a video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochOrder:
    """The clips of one epoch."""

    rows: np.ndarray
    """(N,) int64: row of each clip's video."""
    occurrences: np.ndarray
    """(N,) int64: how often the same video came before in this epoch; all 0 unless sampling is balanced."""


def epoch_order(label_ids: np.ndarray, *, seed: int, epoch: int, balanced: bool = False) -> EpochOrder:
    """The order of an epoch with as many clips as there are rows.

    Without ``balanced`` every row comes once. With it every label that occurs comes equally often (but for one); the
    rows of a label come in turn, from where the epoch before stopped.

    Args:
        label_ids: (N,) label of each row.
    """
    num_rows = len(label_ids)
    rows = _balanced_rows(label_ids, seed=seed, epoch=epoch) if balanced else np.arange(num_rows)
    rows = rows[np.random.default_rng([seed, epoch]).permutation(num_rows)]
    return EpochOrder(rows=rows.astype(np.int64), occurrences=_occurrences(rows))


def _balanced_rows(label_ids: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    classes = np.unique(label_ids).tolist()
    share, rest = divmod(len(label_ids), len(classes))

    def num_before(place: int, epoch: int) -> int:
        """Clips of a label in all epochs before. The ``rest`` that remain in each epoch go around the labels."""
        return epoch * share + (epoch * rest - place + len(classes) - 1) // len(classes)

    parts = []
    for place, label in enumerate(classes):
        positions = np.arange(num_before(place, epoch), num_before(place, epoch + 1))
        parts.append(_take_in_turn(np.flatnonzero(label_ids == label), positions, seed=seed, label=label))
    return np.concatenate(parts)


def _take_in_turn(own: np.ndarray, positions: np.ndarray, *, seed: int, label: int) -> np.ndarray:
    """Elements of an endless row of permutations of ``own``."""
    rounds, places = np.divmod(positions, len(own))
    taken = np.empty(len(positions), np.int64)
    for number in np.unique(rounds).tolist():
        here = rounds == number
        taken[here] = own[np.random.default_rng([seed, label, number]).permutation(len(own))[places[here]]]
    return taken


def _occurrences(rows: np.ndarray) -> np.ndarray:
    """For each position, how often its value came before."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    counts = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    result = np.empty(len(rows), np.int64)
    result[order] = counts
    return result


def rank_slots(num_samples: int, start: int, *, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """(ceil(batch_size / world_size),) int64: positions in the epoch that a rank has in the global batch that begins at
    ``start``; ``PADDING`` where there is none."""
    share = -(-batch_size // world_size)
    positions = start + rank * share + np.arange(share)
    end = min(start + batch_size, num_samples)
    return np.where(positions < end, positions, PADDING)


def clip_seed(*, seed: int, epoch: int, row: int, occurrence: int = 0) -> int:
    """The seed of all that is random in one clip: 0 to 2^64 - 1, whoever decodes it and whenever."""
    text = f"{seed}/{epoch}/{row}/{occurrence}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
