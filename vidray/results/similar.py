"""``vidray similar``: the videos whose embeddings are most like that of one of them, or pairs that are nearly the same.

Every row is compared: the search is exact. For one video it holds one part at a time; for pairs the embeddings lie in a
file, and it holds two blocks of that.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidray.errors import RunError, UsageError
from vidray.flags import require, shown_as
from vidray.results.read import CurrentRows, shown_names
from vidray.sources.rows import WHOSE
from vidray.storage.redaction import public_uri
from vidray.types import Status

_BLOCK = 2048
_ROUNDING = 1e-5
"""Of float32: what comes so near is looked at in float64."""


@dataclass(frozen=True, kw_only=True)
class SimilarConfig:
    """List the videos most like one of them, or those that are nearly the same, by the embeddings of vidray score
    --embeddings. Reads only."""

    output: Annotated[str, shown_as("URI")]
    """The folder that vidray score wrote to."""
    to: Annotated[str | None, shown_as("URI")] = None
    """A video whose row is there: its `uri`; of a local file any path. Of a span: with #t=START,END behind it. Where
    several models scored it, only rows of the one that did so last are compared."""
    k: int = 20
    """With --to: how many to list."""
    duplicates: Annotated[float | None, shown_as("SIMILARITY")] = None
    """List all pairs at least so similar, such as 0.98, of the model that scored last."""

    def __post_init__(self) -> None:
        require(self.k >= 1, "--k", self.k, "at least 1")
        require((self.to is None) != (self.duplicates is None), "--to", self.to, "a video, or --duplicates without it")
        least = self.duplicates
        require(least is None or 0 < least <= 1, "--duplicates", least, "above 0, and at most 1")


class Neighbour(NamedTuple):
    """A video that was compared."""

    similarity: float
    """Cosine of the angle between the embeddings: 1 for the same direction, -1 for the opposite one; 0 where an
    embedding is 0."""
    uri: str
    """Of a span with its seconds: ``clip.mp4#t=1.5,3``."""


class Pair(NamedTuple):
    """Two videos that are nearly the same."""

    similarity: float
    uri: str
    other: str


def similar(config: SimilarConfig) -> list[Neighbour]:
    """The most similar videos, best first; equal ones by their URIs. Only rows of one result key are compared.

    Raises:
        UsageError: the output has no embeddings, or none of that video.
        RunError: there are no rows, or the store failed.
    """
    assert config.to is not None
    rows = CurrentRows(config.output)
    index = rows.index.filter(pc.equal(rows.index["status"], Status.OK.value))
    asked, key, vector_F = _find(rows, index, config.to)
    best: list[Neighbour] = []
    for names, embeddings_NF in _embeddings(rows, index.filter(pc.equal(index["result_key"], key))):
        if embeddings_NF.shape[1] != len(vector_F):
            raise RunError(f"{rows.uri} has embeddings of {embeddings_NF.shape[1]} numbers beside {len(vector_F)}")
        block = zip(cosine(embeddings_NF, vector_F).tolist(), names, strict=True)
        others = (Neighbour(similarity, name) for similarity, name in block if name != asked)
        best = heapq.nsmallest(config.k, [*best, *others], key=lambda other: (-other.similarity, other.uri))
    return best


def duplicates(config: SimilarConfig) -> Iterator[Pair]:
    """Every pair at least so similar, in the order of their parts. Embeddings that are 0 are like nothing.

    Raises:
        UsageError: the output has no embeddings.
        RunError: there are no rows, or the store failed.
    """
    assert config.duplicates is not None
    rows = CurrentRows(config.output)
    uris: list[str] = []
    with tempfile.TemporaryFile(prefix="vidray-similar-") as file:
        width = 0
        for some, embeddings_NF in map(_embeddings_of, rows.latest("embedding")):
            lengths = np.linalg.norm(embeddings_NF, axis=1, keepdims=True)
            file.write((embeddings_NF / np.where(lengths > 0, lengths, 1)).astype(np.float32).tobytes())
            uris += some
            width = embeddings_NF.shape[1]
        if not uris:
            raise _no_embeddings(rows)
        file.flush()
        units_NF = np.memmap(file, np.float32, "r", shape=(len(uris), width))
        for at in range(0, len(uris), _BLOCK):
            for other in range(at, len(uris), _BLOCK):
                yield from _pairs(units_NF, at, other, uris, least=config.duplicates)


def _pairs(units_NF: np.ndarray, at: int, other: int, uris: list[str], *, least: float) -> Iterator[Pair]:
    """The pairs between two blocks, or within one."""
    rows, columns = np.array(units_NF[at : at + _BLOCK]), np.array(units_NF[other : other + _BLOCK])
    close = np.argwhere(rows @ columns.T >= least - _ROUNDING)
    for row, column in close[close[:, 0] + at < close[:, 1] + other]:
        similarity = float(cosine(rows[row][None], columns[column])[0])
        if similarity >= least:
            yield Pair(similarity, *sorted((uris[at + row], uris[other + column])))


def cosine(embeddings_NF: np.ndarray, vector_F: np.ndarray) -> np.ndarray:
    """(N,) float64: the cosines of the angles to a vector, computed in float64."""
    rows, vector = embeddings_NF.astype(np.float64), vector_F.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
    cosines: np.ndarray = rows @ vector / np.where(lengths > 0, lengths, 1)
    return cosines


def _find(rows: CurrentRows, index: pa.Table, video: str) -> tuple[str, str, np.ndarray]:
    """Name, result key and embedding (features,) of the row that was scored last and has one."""
    asked = {public_uri(video), os.path.abspath(video)}
    uris = pa.array([name.rpartition("#t=")[0] or name for name in asked] + list(asked))
    mine = index.filter(pc.is_in(index["uri"], uris)).sort_by([("scored_at", "descending")])
    for place, name in enumerate(shown_names(mine)):
        row = mine.slice(place, 1)
        if name in asked:
            for _, (vector_F,) in _embeddings(rows, row):
                return name, row["result_key"][0].as_py(), vector_F
    if next(_embeddings(rows, index), None) is None:
        raise _no_embeddings(rows)
    raise UsageError(
        f"--to: got {public_uri(video)!r}, allowed is the uri of a row of {rows.uri} with an embedding; of a span with "
        "#t=START,END behind it"
    )


def _no_embeddings(rows: CurrentRows) -> UsageError:
    return UsageError(f"--output: {rows.uri} holds no embeddings; vidray score --embeddings makes them")


def _embeddings(rows: CurrentRows, index: pa.Table) -> Iterator[tuple[list[str], np.ndarray]]:
    """(names, (N, features) float32) of those that have one, block by block."""
    for block in rows.blocks(index, [*WHOSE, "embedding"]):
        known = block.filter(block["embedding"].is_valid())
        if known.num_rows:
            yield _embeddings_of(known)


def _embeddings_of(block: pa.Table) -> tuple[list[str], np.ndarray]:
    values = block["embedding"].combine_chunks().flatten().to_numpy()
    return shown_names(block), values.reshape(block.num_rows, -1)
