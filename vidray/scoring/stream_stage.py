"""The stage of a score run that sees whole videos, chunk by chunk (``--streaming``, ``--segments``): plan rows in,
prediction rows out. Each worker of a runner keeps one.

Fetching, decoding and predicting are one stage, because decoders and network take turns on each video: a chunk is
decoded when the network is about to want it, and beside the bytes of its file only a few chunks of a video are ever in
memory. Each video has a thread, which fetches it, asks a sandbox for chunks and waits for their scores.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vidray.cpu_tuning import memory_bytes
from vidray.errors import VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.scoring.output import ROW
from vidray.scoring.stages import (
    PREDICTED_SCHEMA,
    failure_columns,
    info_columns,
    sandbox_columns,
    worker_name,
)
from vidray.sources.rows import time_range_of, video_of
from vidray.storage.fetch import fetch
from vidray.types import EmbeddingKind, Limits, Status, TimeRange, VideoRef, ViewConfig
from vidray.video.sampling import stream_chunks

if TYPE_CHECKING:
    from vidray.checkpoints.checkpoint import Checkpoint
    from vidray.scoring.config import Device, Precision
    from vidray.scoring.segment_predictor import SegmentPredictor
    from vidray.scoring.stream_predictor import StreamPredictor


class StreamStage:
    """Holds one network, and a decoder for each of the videos that are scored side by side."""

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        view: ViewConfig,
        limits: Limits,
        num_videos: int,
        device: Device = "auto",
        precision: Precision = "auto",
        num_threads: int | None = None,
        top_k: int = 5,
        embedding: EmbeddingKind | None = None,
        fetch_memory_bytes: int | None = None,
        child_module: str = "vidray.sandbox.child",
    ) -> None:
        self._view, self._limits, self._name = view, limits, worker_name()
        self._sandboxes: SimpleQueue[tuple[int, Sandbox]] = SimpleQueue()
        for number in range(num_videos):
            sandbox = Sandbox(view=view, limits=limits, child_module=child_module)
            sandbox.start()  # before torch is imported: both take a while
            self._sandboxes.put((number, sandbox))
        self._threads = ThreadPoolExecutor(num_videos, thread_name_prefix="vidray-stream")
        self._budget = ByteBudget(fetch_memory_bytes or memory_bytes() // 8)
        self._predictor = _predictor_class(view)(
            checkpoint,
            view=view,
            device=device,
            precision=precision,
            max_videos=num_videos,
            num_threads=num_threads,
            top_k=top_k,
            embedding=embedding,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Plan rows → PREDICTED_SCHEMA, in the same order. Never raises for a video.

        May be called from several threads: their videos share the network, so that the end of one block, with few
        videos left, is the beginning of the next.
        """
        futures = [self._threads.submit(self._score, values) for values in block.to_pylist()]
        return pa.Table.from_pylist([future.result() for future in futures], PREDICTED_SCHEMA)

    def _score(self, values: dict[str, Any]) -> dict[str, Any]:
        """One video from its plan row to its prediction row."""
        row = {name: values[name] for name in (ROW, "uri", "etag", "attempts")}
        ref, time_range = video_of(values), time_range_of(values)
        number, sandbox = self._sandboxes.get()
        row["decoder"] = f"{self._name}/{number}"
        try:
            with self._budget.held(ref.size_bytes or 0):
                result = self._watch(sandbox, ref, time_range, row)
        except VideoError as error:
            result = failure_columns(error) | {"scored_at": _now()}
        finally:
            self._sandboxes.put((number, sandbox))
        return row | result | sandbox_columns(sandbox)

    def _watch(self, sandbox: Sandbox, ref: VideoRef, time_range: TimeRange, row: dict[str, Any]) -> dict[str, Any]:
        scores, started_at = self._predictor.begin(), 0.0
        scores.time_range = time_range
        # The object's bytes are passed on and not kept here: the sandbox lets go of them when the child has them.
        chunks = sandbox.stream(self._fetch(ref, row), time_range=time_range)
        with contextlib.closing(chunks):
            for chunk, (frames_THWC, info) in zip(stream_chunks(self._view), chunks, strict=False):
                scores.info = info
                if len(frames_THWC):
                    started_at = started_at or time.time()
                    scores.add(chunk, frames_THWC)
        return {
            **scores.columns(),
            **info_columns(scores.info),
            "status": Status.OK.value,
            "scored_at": _now(),
            "predictor": self._name,
            "predict_started_at": started_at,
            "predict_ended_at": time.time(),
        }

    def _fetch(self, ref: VideoRef, row: dict[str, Any]) -> bytes:
        started = time.perf_counter()
        try:
            data = fetch(ref, limits=self._limits)
        finally:
            row["fetch_seconds"] = time.perf_counter() - started
        row["size_bytes"] = row["bytes_fetched"] = len(data)
        return data


def _predictor_class(view: ViewConfig) -> type[StreamPredictor] | type[SegmentPredictor]:
    """Imports torch, which only the process that predicts has."""
    if view.span == "segments":
        from vidray.scoring.segment_predictor import SegmentPredictor

        return SegmentPredictor
    from vidray.scoring.stream_predictor import StreamPredictor

    return StreamPredictor


class ByteBudget:
    """Lets threads hold so many bytes together; one that wants more than that must be alone."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes, self._num_held = num_bytes, 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, num_bytes: int) -> Iterator[None]:
        """Waits until there is room. First come, first served: small ones could keep a large one waiting for ever."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and self._has_room(num_bytes))
            self._queue.popleft()
            self._num_held += num_bytes
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._num_held -= num_bytes
                self._changed.notify_all()

    def _has_room(self, num_bytes: int) -> bool:
        return not self._num_held or self._num_held + num_bytes <= self._num_bytes


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
