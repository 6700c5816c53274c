"""Views in, scores out: one network on one device, batching across videos. Plain torch, no Ray.

OpenMP's threads spin at every barrier by default. Where decoders want the same cores that is ruinous: two threads on
two cores with three to eight busy neighbours gave 2 to 4 clips/s, and 9 to 37 when they sleep instead (two layers × 96,
16×224×224; 38 to 44 on an idle machine).
libgomp reads the variable once, when torch is loaded; a process that has loaded torch before must have it set already.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np

from vidray.cpu_tuning import ENVIRONMENT, keep_freed_memory

os.environ.setdefault("OMP_WAIT_POLICY", ENVIRONMENT["OMP_WAIT_POLICY"])

import torch

from vidray.checkpoints.checkpoint import Checkpoint, load_model
from vidray.errors import DeviceLostError, UsageError
from vidray.models.predict import FeatureTap, aggregate, embed, forward_views, top_k
from vidray.models.processors import check_view
from vidray.scoring.staging import Prefetcher
from vidray.types import EmbeddingKind, Scores, ViewConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_MESSAGE = 500
_CPU_BATCH_BYTES = 2_500_000


class Predictor:
    """Scores views with a checkpoint. Loads the network when made; ``predict`` may be called again and again.

    Also from several threads: what one call leaves idle between its batches and at its end, another uses.

    Args:
        checkpoint: what to score with.
        view: the effective view config; None: the checkpoint's.
        device: ``"auto"`` (CUDA if there is one, else the CPU) or any torch device.
        precision: ``"auto"`` is bf16 on CUDA devices that have it, and fp32 elsewhere, see ``choose_precision``.
        compile: compile the network with ``torch.compile``; batches are then padded to one size.
        batch_size: views per forward, at most; None: 16 on CUDA, and on CPUs what fits their caches.
        num_threads: CPU threads, for the whole process. Each runs batches of its own, except in networks of 3D
            convolutions, where all share one. None: one batch at a time, on torch's threads as they are.
        top_k: how many labels to return.
        embedding: which embeddings to return too, if any. Not with ``compile``.

    Raises:
        UsageError: the checkpoint cannot be loaded, or cannot take such views, or the device is not there.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        view: ViewConfig | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        compile: bool = False,
        batch_size: int | None = None,
        num_threads: int | None = None,
        top_k: int = 5,
        embedding: EmbeddingKind | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.view = view or checkpoint.view
        self.device = choose_device(device)
        self._family = checkpoint.family
        # Threads that share a batch wait for each other in every layer: where layers are small matrix products, a batch
        # for each thread is a fifth faster. 3D convolutions are up to twice as fast with threads that share.
        has_lanes = self.device.type == "cpu" and self._family.batches_side_by_side and not compile
        self._num_lanes = num_threads or 1 if has_lanes else 1
        self._lanes = ThreadPoolExecutor(self._num_lanes, thread_name_prefix="vidray-predict")
        self.threads_per_batch = 1 if self._num_lanes > 1 else num_threads
        """CPU threads of one forward; None: as many as torch has."""
        if self.threads_per_batch is not None:
            torch.set_num_threads(self.threads_per_batch)
        self.precision = choose_precision(precision, self.device)
        self._pads = compile
        self._buffers = self._make_buffers(batch_size or default_batch_size(self.view, self.device))
        self.top_k = top_k
        self.embedding = embedding
        self._dtype = DTYPES[self.precision]
        check_view(self.view, config=checkpoint.config, family=self._family)
        model = load_network(checkpoint, dtype=self._dtype, device=self.device)
        self._tap = FeatureTap(model, self._family) if embedding and checkpoint.labels else None
        self._model: Callable[..., Any] = torch.compile(model) if compile else model

    @property
    def batch_size(self) -> int:
        """Views per forward, at most."""
        return self._buffers.batch_size

    def _make_buffers(self, batch_size: int) -> _BatchBuffers:
        prefetchers: queue.SimpleQueue[Prefetcher] = queue.SimpleQueue()
        for _ in range(self._num_lanes):
            prefetchers.put(Prefetcher(self.view, self.device, batch_size=batch_size, pads=self._pads))
        return _BatchBuffers(batch_size, prefetchers)

    def predict(self, views: Sequence[np.ndarray]) -> list[Scores]:
        """Score videos, in order.

        Args:
            views: each video's views, (V, T, H, W, C) uint8 as the view config says (V may differ).

        A video that the model cannot score gets an ``error`` and leaves the others alone.

        Raises:
            ValueError: an array is not of that kind, which no video can be blamed for.
            DeviceLostError: the device is of no use to this process any more.
        """
        for array in views:
            self._check(array)
        try:
            return [self._score(found) for found in self._forward_videos(views)]
        except Exception as error:
            if lost := device_lost(error):
                raise lost from error
            if len(views) == 1:
                return [Scores(error=f"{type(error).__name__}: {error}"[:MAX_MESSAGE])]
        # Outside the handler, so that the failed batch's memory is free again.
        return [self.predict([array])[0] for array in views]

    def score_each_view(self, scores: Scores) -> list[Scores]:
        """What a video's scores would be by each of its views alone."""
        assert scores.logits is not None
        return [self._score(_Found(logits_1C, None)) for logits_1C in torch.from_numpy(scores.logits).split(1)]

    def _check(self, array: np.ndarray) -> None:
        expected = self.view.views_shape[1:]
        if array.dtype != np.uint8 or array.ndim != 5 or array.shape[1:] != expected or len(array) == 0:
            raise ValueError(
                f"views must be uint8 (V, {', '.join(map(str, expected))}), got {array.dtype} {array.shape}"
            )

    def _forward_videos(self, videos: Sequence[np.ndarray]) -> list[_Found]:
        """On the CPU, of each video's views. Halves the batch size for good when memory runs out."""
        flat = [view for video in videos for view in video]
        while flat:
            buffers = self._buffers
            with contextlib.suppress(torch.OutOfMemoryError):
                return _split(self._forward(flat, buffers), [len(video) for video in videos])
            if buffers.batch_size == 1:
                raise MemoryError(f"one view of {self.view.views_shape[1:]} does not fit on {self.device}")
            if buffers is self._buffers:  # else another call has halved it meanwhile
                self._buffers = self._make_buffers(buffers.batch_size // 2)
            torch.cuda.empty_cache()
        return []

    def _forward(self, flat: Sequence[np.ndarray], buffers: _BatchBuffers) -> list[_Found]:
        """Batch by batch. One lane has all batches, several take one after the other."""
        starts = range(0, len(flat), buffers.batch_size)
        batches = [flat[start : start + buffers.batch_size] for start in starts]
        shares = [batches] if self._num_lanes == 1 else [[batch] for batch in batches]
        results = self._lanes.map(self._run, shares, itertools.repeat(buffers.prefetchers))
        return [found for share in results for found in share]

    @torch.inference_mode()
    def _run(self, batches: Sequence[Sequence[np.ndarray]], prefetchers: queue.SimpleQueue[Prefetcher]) -> list[_Found]:
        """Some batches, one after the other. Runs on a lane; there is a prefetcher for each lane."""
        results, prefetcher = [], prefetchers.get()
        try:
            for batch, rows in zip(batches, prefetcher.stage(iter(batches)), strict=True):
                logits = forward_views(self._model, rows, family=self._family, view=self.view, dtype=self._dtype)
                features = self._tap.take()[: len(batch)] if self._tap else None
                results.append(_Found(logits[: len(batch)], features))
        finally:
            prefetchers.put(prefetcher)
        return results

    def _score(self, found: _Found) -> Scores:
        logits_VC = found.logits
        if not torch.isfinite(logits_VC).all():
            return Scores(error=not_finite(self.checkpoint, self.precision))
        if not self.checkpoint.labels:
            return Scores(embedding=embed(logits_VC, kind=self.embedding or "mean"))
        problem_type = self.checkpoint.meta.problem_type
        scores = aggregate(logits_VC, aggregation=self.view.aggregation, problem_type=problem_type)
        best = top_k(scores, labels=self.checkpoint.labels, k=self.top_k)
        kind, features_VF = self.embedding, found.features
        embedding = embed(features_VF, kind=kind) if kind and features_VF is not None else None
        return Scores(top_k=best, logits=logits_VC.numpy(), embedding=embedding)


class _Found(NamedTuple):
    """What the network says of some views, float32."""

    logits: torch.Tensor
    """(N, num_labels); of a checkpoint without labels its features."""
    features: torch.Tensor | None
    """(N, features), if embeddings are asked for beside labels."""


def _split(batches: Sequence[_Found], lengths: Sequence[int]) -> list[_Found]:
    """Of views that lie one behind the other: so many for each video, on the CPU."""
    logits = torch.cat([found.logits for found in batches]).cpu().split(lengths)
    noted = [found.features for found in batches if found.features is not None]
    features = torch.cat(noted).cpu().split(lengths) if noted else [None] * len(lengths)
    return [_Found(*pair) for pair in zip(logits, features, strict=True)]


class _BatchBuffers(NamedTuple):
    """Where batches are made; replaced as a whole when memory is too short."""

    batch_size: int
    prefetchers: queue.SimpleQueue[Prefetcher]
    """One for each lane."""


def not_finite(checkpoint: Checkpoint, precision: str) -> str:
    """What to say of a video that the network gives no finite numbers for."""
    return f"the model's {'logits' if checkpoint.labels else 'features'} are not finite in {precision}"


def load_network(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The network on its device, in eval mode; on CPUs the process is set up for speed."""
    if device.type == "cpu":
        keep_freed_memory()
    return load_model(checkpoint, dtype=dtype, only_scores=True).to(device)


def choose_device(device: str) -> torch.device:
    """``"auto"``: CUDA if there is one, else the CPU. Raises UsageError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"there is no device {device!r} here: {str(error).splitlines()[0]}") from error


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """What ``"auto"`` stands for on this device.

    On CPUs that is fp32 even where bf16 is faster: in a cluster with several kinds of CPU, a video's scores would
    depend on the machine that it fell to. Who wants the speed asks for bf16, everywhere alike.

    Raises:
        UsageError: fp16 on a CPU, which has no arithmetic for it and overflows where bf16 does not.
    """
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if precision not in DTYPES:
        raise UsageError(f"precision must be one of auto, {', '.join(DTYPES)}, got {precision!r}")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(f"{torch.cuda.get_device_name(device)} has no bf16 arithmetic: take --precision fp32 or fp16")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 needs a GPU; on a CPU use fp32 or bf16")
    return precision


def default_batch_size(view: ViewConfig, device: torch.device) -> int:
    """Views per forward. On CPUs about 2.5 MB of uint8.

    Larger batches leave the caches: of clips of 16×224×224 two layers × 96 did 41 a second one by one, 38 in pairs, and
    34 in fours and eights (two cores).
    """
    if device.type == "cuda":
        return 16
    view_bytes = view.num_bytes // view.num_views
    return max(1, min(32, _CPU_BATCH_BYTES // view_bytes))


def device_lost(error: Exception) -> DeviceLostError | None:
    """What to raise if no further video could be scored with the device of this process."""
    if not isinstance(error, torch.AcceleratorError):
        return None
    return DeviceLostError(f"{type(error).__name__}: {error}"[:MAX_MESSAGE])
