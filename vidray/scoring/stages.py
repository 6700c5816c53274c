"""The two stages of a score run, as plain callables from one Arrow table to another: one row in, one row out.

Each runner keeps some of each in its workers. Nothing here knows of runners.
"""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vidray.cpu_tuning import memory_bytes, num_cpus
from vidray.errors import VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.scoring.output import PREDICTION_SCHEMA, ROW
from vidray.scoring.timing import BusyClock
from vidray.sources.rows import time_range_of, video_of
from vidray.storage.fetch import fetch
from vidray.storage.neighbours import MAX_BYTES, fetch_together, group_neighbours
from vidray.storage.ranges import PAGE_BYTES, RangedObject, open_ranged
from vidray.types import Limits, Status, TimeRange, VideoInfo, VideoRef, ViewConfig

if TYPE_CHECKING:
    from vidray.types import Scores

_INFO_COLUMNS = (
    "duration_seconds",
    "width",
    "height",
    "fps",
    "codec",
    "num_frames_expected",
    "num_frames_decoded",
    "decode_seconds",
    "sample_aspect_ratio",
    "num_time_jumps",
    "decoder_version",
)

STAGE_SCHEMA = pa.schema(
    [
        ("fetch_seconds", pa.float64()),
        ("decoder", pa.string()),
        ("sandbox", pa.string()),
        ("predict_seconds", pa.float64()),
        ("predictor", pa.string()),
        ("predict_started_at", pa.float64()),
        ("predict_ended_at", pa.float64()),
    ]
)
"""Internal columns: where the time of each row went, and how closed its decoder was. They reach the summary, not the
output."""

DECODED_SCHEMA = pa.schema(
    [
        (ROW, pa.int64()),
        *(PREDICTION_SCHEMA.field(name) for name in ("uri", "etag", "size_bytes", "status", "error", "attempts")),
        *(PREDICTION_SCHEMA.field(name) for name in (*_INFO_COLUMNS, "bytes_fetched")),
        *(STAGE_SCHEMA.field(name) for name in ("fetch_seconds", "decoder", "sandbox")),
        ("views", pa.large_binary()),
    ]
)
"""What decoding gives: ``views`` is one video's (V, T, H, W, C) uint8 tensor as bytes, null where it failed."""

PREDICTED_SCHEMA = pa.schema(
    [
        *(field for field in DECODED_SCHEMA if field.name != "views"),
        *(
            PREDICTION_SCHEMA.field(name)
            for name in ("label", "score", "top_k", "timeline", "segments", "embedding", "num_views", "scored_at")
        ),
        *(
            STAGE_SCHEMA.field(name)
            for name in ("predict_seconds", "predictor", "predict_started_at", "predict_ended_at")
        ),
    ]
)


_Fetched = bytes | RangedObject | VideoError


def worker_name() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


class DecodeStage:
    """Fetches objects on threads and decodes them, one after the other, in a sandbox of its own."""

    def __init__(
        self,
        *,
        view: ViewConfig,
        limits: Limits,
        fetch_threads: int = 8,
        fetch_memory_bytes: int | None = None,
        range_reads_above_bytes: int | None = None,
        child_module: str = "vidray.sandbox.child",
    ) -> None:
        self._view = view
        self._limits = limits
        # Where a clip is the whole video, or PyTorchVideo decodes, all bytes are read anyway.
        can_use_parts = view.span == "stride" and view.decoder == "vidray"
        self._range_reads_above_bytes = range_reads_above_bytes if can_use_parts else None
        self._together_bytes = min(
            MAX_BYTES, MAX_BYTES if self._range_reads_above_bytes is None else self._range_reads_above_bytes
        )
        self._window = fetch_threads
        # Two blocks may be in this stage at once.
        self._window_bytes = (fetch_memory_bytes or memory_bytes() // (8 * num_cpus())) // 2
        self._fetchers = ThreadPoolExecutor(fetch_threads, thread_name_prefix="vidray-fetch")
        self._sandbox = Sandbox(view=view, limits=limits, child_module=child_module)
        self._sandbox.start()
        # Two blocks may be in this stage at once, so that one is fetched while the other is decoded.
        self._decoding = threading.Lock()
        self._name = worker_name()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Plan rows → DECODED_SCHEMA, in the same order. Never raises for a video."""
        planned = block.to_pylist()
        fetched = self._fetch_ahead([video_of(values) for values in planned])
        with self._decoding:
            # One allocation for all, of which the column is made without copying.
            buffer = np.empty((block.num_rows, *self._view.views_shape), np.uint8)
            rows = [
                self._decode(data, seconds, time_range_of(values), out)
                for values, (data, seconds), out in zip(planned, fetched, buffer, strict=True)
            ]
        plan_columns = [block[name] for name in (ROW, "uri", "etag", "attempts")]
        columns = dict(zip((ROW, "uri", "etag", "attempts"), plan_columns, strict=True))
        columns["views"] = _views_column(buffer, [row["status"] == Status.OK.value for row in rows])
        columns |= {name: _column(rows, name) for name in DECODED_SCHEMA.names if name not in columns}
        return pa.table({name: columns[name] for name in DECODED_SCHEMA.names}, schema=DECODED_SCHEMA)

    def _fetch_ahead(self, refs: list[VideoRef]) -> Iterator[tuple[_Fetched, float]]:
        """Objects in order, with a window of requests under way: so many, and so many bytes, but always one. Half of it
        is asked for at once and held while the block before is decoded, the rest when iterated.
        """
        waiting: deque[tuple[int, Future[list[tuple[_Fetched, float]]]]] = deque()
        todo = deque(group_neighbours(refs, max_bytes=self._together_bytes))

        def ask(window: int) -> None:
            num_bytes = sum(size for size, _ in waiting)
            while todo and len(waiting) < window:
                size = sum(PAGE_BYTES if self._takes_parts(ref) else ref.size_bytes or 0 for ref in todo[0])
                if waiting and num_bytes + size > self._window_bytes:
                    return
                waiting.append((size, self._fetchers.submit(self._fetch, todo.popleft())))
                num_bytes += size

        def drain() -> Iterator[tuple[_Fetched, float]]:
            ask(self._window)
            while waiting:
                _, future = waiting.popleft()
                results = future.result()[::-1]
                del future  # with what it holds
                ask(self._window)
                while results:
                    yield results.pop()

        ask(-(-self._window // 2))
        return drain()

    def _takes_parts(self, ref: VideoRef) -> bool:
        """True if only those bytes of the object are fetched that its views need."""
        if self._range_reads_above_bytes is None or ref.etag is None:
            return False
        return (ref.size_bytes or 0) > self._range_reads_above_bytes

    def _fetch(self, refs: list[VideoRef]) -> list[tuple[_Fetched, float]]:
        """What one request gives, and the share of each in the time."""
        started = time.perf_counter()
        results: list[_Fetched] = []
        if len(refs) > 1:
            results += fetch_together(refs, limits=self._limits)
        else:
            results.append(self._fetch_one(refs[0]))
        seconds = (time.perf_counter() - started) / len(refs)
        return [(result, seconds) for result in results]

    def _fetch_one(self, ref: VideoRef) -> _Fetched:
        try:
            return (open_ranged if self._takes_parts(ref) else fetch)(ref, limits=self._limits)
        except VideoError as error:
            return error

    def _decode(self, data: _Fetched, fetch_seconds: float, time_range: TimeRange, out: np.ndarray) -> dict[str, Any]:
        row: dict[str, Any] = {"fetch_seconds": fetch_seconds, "decoder": self._name}
        if isinstance(data, VideoError):
            return row | failure_columns(data)
        row["size_bytes"] = row["bytes_fetched"] = len(data) if isinstance(data, bytes) else data.size_bytes
        try:
            _, info = self._sandbox.decode(data, out=out, time_range=time_range)
        except VideoError as error:
            row |= failure_columns(error)
        else:
            row |= info_columns(info) | {"status": Status.OK.value}
        if isinstance(data, RangedObject):
            row |= {"bytes_fetched": data.bytes_fetched, "fetch_seconds": data.fetch_seconds}
        return row | sandbox_columns(self._sandbox)


def failure_columns(error: VideoError) -> dict[str, Any]:
    return {"status": error.status.value, "error": error.message}


def info_columns(info: VideoInfo) -> dict[str, Any]:
    return {name: getattr(info, name) for name in _INFO_COLUMNS}


def sandbox_columns(sandbox: Sandbox) -> dict[str, Any]:
    """What the kernel closes to the decoder; null where none has started."""
    return {"sandbox": None if sandbox.confinement is None else str(sandbox.confinement)}


def score_columns(best: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """What the best (label, score), best first, say of a video; nulls where there are none."""
    top_k = [{"label": label, "score": score} for label, score in best]
    return {**top_k[0], "top_k": top_k} if top_k else {"label": None, "score": None, "top_k": None}


def _column(rows: list[dict[str, Any]], name: str) -> pa.Array:
    return pa.array([row.get(name) for row in rows], DECODED_SCHEMA.field(name).type)


def _views_column(buffer: np.ndarray, is_ok: list[bool]) -> pa.LargeBinaryArray:
    """One value per video over the memory of ``buffer`` (N, V, T, H, W, C); null where decoding failed."""
    buffer[np.invert(is_ok)] = 0  # what lay in this memory before does not leave the process
    offsets = np.arange(len(buffer) + 1, dtype=np.int64) * (buffer.nbytes // max(1, len(buffer)))
    valid = np.packbits(np.array(is_ok, dtype=bool), bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets), pa.py_buffer(buffer.reshape(-1))]
    return pa.Array.from_buffers(pa.large_binary(), len(buffer), buffers)


def views_of(block: pa.Table, view: ViewConfig) -> list[np.ndarray]:
    """(V, T, H, W, C) uint8 arrays of the rows that decoded, over the block's own memory: nothing is copied."""
    views: list[np.ndarray] = []
    for chunk in block["views"].chunks:
        # By hand: the buffers of PyArrow's scalars are copies.
        _, offsets, values = chunk.buffers()
        starts = np.frombuffer(offsets, np.int64)[chunk.offset :][: len(chunk)]
        is_ok = chunk.is_valid().to_numpy(zero_copy_only=False)
        views += [np.frombuffer(values, np.uint8, view.num_bytes, start) for start in starts[is_ok]]
    return [flat.reshape(view.views_shape) for flat in views]


class PredictStage:
    """Holds one model and scores blocks of decoded videos."""

    def __init__(
        self,
        *,
        view: ViewConfig,
        **settings: Any,
    ) -> None:
        """Args:
        settings: the other arguments of ``Predictor``.
        """
        from vidray.scoring.predictor import Predictor  # torch: only in the process that predicts

        self._view = view
        self._name = worker_name()
        self._busy = BusyClock()
        self._predictor = Predictor(view=view, **settings)

    def __call__(self, block: pa.Table) -> pa.Table:
        """DECODED_SCHEMA → PREDICTED_SCHEMA, in the same order; failed rows pass through. May be called side by side,
        so that the next block is there when one ends.
        """
        started_at = time.time()
        views = views_of(block, self._view)
        with self._busy:
            scored = iter(self._predictor.predict(views))
        # A block of failures alone has no rows to say the time of the one beside it.
        ended_at, seconds = time.time(), self._busy.take() if views else 0.0
        rows = [
            self._row(values, next(scored) if values["status"] == Status.OK.value else None)
            for values in block.drop_columns(["views"]).to_pylist()
        ]
        for row in rows:
            if row["predictor"] is not None:
                row |= {"predict_started_at": started_at, "predict_ended_at": ended_at}
                row["predict_seconds"] = seconds / len(views)
        return pa.Table.from_pylist(rows, PREDICTED_SCHEMA)

    def _row(self, values: dict[str, Any], scores: Scores | None) -> dict[str, Any]:
        row = values | {"scored_at": datetime.datetime.now(datetime.UTC), "predictor": None}
        if scores is None:
            return row
        row["predictor"] = self._name
        if scores.error is not None:
            return row | {"status": Status.MODEL_ERROR.value, "error": scores.error}
        more = {"embedding": scores.embedding, "num_views": self._view.num_views}
        return row | score_columns(scores.top_k) | more
