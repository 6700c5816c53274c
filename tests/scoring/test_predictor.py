from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.checkpoints import VARIANTS, make_family, make_videomae
from tests.support.closeness import FLOAT32_ROUNDING, assert_same
from vidray.checkpoints.checkpoint import Checkpoint, load_model, read_checkpoint
from vidray.errors import DeviceLostError, UsageError
from vidray.models.predict import aggregate, forward_views
from vidray.scoring.predictor import Predictor, choose_precision, default_batch_size
from vidray.scoring.staging import as_one
from vidray.types import ViewConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(str(make_videomae(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def videos(checkpoint: Checkpoint) -> list[np.ndarray]:
    """Videos with 1 to 5 views, each (V, T, H, W, C) uint8."""
    return [make_video(checkpoint.view, num_views=v, seed=v) for v in (3, 1, 5, 2, 1)]


def make_video(view: ViewConfig, *, num_views: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    level = random.integers(0, 156, (num_views, view.num_frames, 1, 1, 3))
    return (level + random.integers(0, 100, (num_views, *view.views_shape[1:]))).astype(np.uint8)


def break_model(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, effect: Any) -> list[int]:
    """Put ``effect(pixels, output)`` behind the network's forward; returns the batch sizes it sees, as they come."""
    sizes: list[int] = []
    network = predictor._model

    def forward(**inputs: torch.Tensor) -> Any:
        (pixels,) = inputs.values()
        sizes.append(len(pixels))
        return effect(pixels, network(**inputs))

    monkeypatch.setattr(predictor, "_model", forward)
    return sizes


def is_poison(pixels: torch.Tensor) -> torch.Tensor:
    """(N,) bool: the views that are black all over."""
    return (pixels.flatten(1).amax(dim=1) < -1.5) & (pixels.flatten(1).std(dim=1) < 0.3)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 64])
def test_no_view_is_lost_whatever_the_batch_size(
    checkpoint: Checkpoint, videos: list[np.ndarray], batch_size: int
) -> None:
    model = load_model(checkpoint)
    results = Predictor(checkpoint, batch_size=batch_size, top_k=99).predict(videos)
    assert len(results) == len(videos)
    for video, scores in zip(videos, results, strict=True):
        with torch.inference_mode():
            logits = forward_views(model, torch.from_numpy(video), family=checkpoint.family, view=checkpoint.view)
        assert scores.error is None
        assert scores.logits is not None
        assert_same(scores.logits, logits, relative=FLOAT32_ROUNDING)
        expected = aggregate(logits, aggregation="prob", problem_type="single_label_classification")
        got = dict(scores.top_k)
        assert_same([got[label] for label in checkpoint.labels], expected, relative=FLOAT32_ROUNDING)


def test_results_do_not_share_memory_with_later_calls(checkpoint: Checkpoint, videos: list[np.ndarray]) -> None:
    predictor = Predictor(checkpoint)
    first = predictor.predict(videos[:1])[0].logits
    assert first is not None
    kept = first.copy()
    predictor.predict(videos[1:])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_views_that_lie_together_are_scored_where_they_lie_as_views_elsewhere_are(
    batch_size: int, checkpoint: Checkpoint, videos: list[np.ndarray]
) -> None:
    together = np.concatenate(videos)
    ends = np.cumsum([len(video) for video in videos])
    neighbours = [together[end - len(video) : end] for video, end in zip(videos, ends, strict=True)]
    predictor = Predictor(checkpoint, device="cpu", num_threads=1, batch_size=batch_size)
    apart, lying = predictor.predict([video.copy() for video in videos]), predictor.predict(neighbours)
    for one, other in zip(apart, lying, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)


def test_neighbours_in_memory_are_one_array_without_copying_and_others_none() -> None:
    block = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    whole = as_one(list(block[1:]))
    assert whole is not None
    np.testing.assert_array_equal(whole, block[1:])
    assert np.shares_memory(whole, block)
    assert as_one([block[0], block[2]]) is None
    assert as_one([block[1], block[0]]) is None
    assert as_one([block[0], block[1].copy()]) is None
    assert as_one([block[:, 0]]) is None, "not contiguous"
    block.flags.writeable = False
    assert as_one(list(block)) is None


def test_top_k_is_as_long_as_asked_for(checkpoint: Checkpoint, videos: list[np.ndarray]) -> None:
    best = Predictor(checkpoint, top_k=2).predict(videos[:1])[0].top_k
    assert len(best) == 2
    assert best[0][1] > best[1][1]


def test_aggregation_of_the_view_config_is_used(checkpoint: Checkpoint, videos: list[np.ndarray]) -> None:
    view = dataclasses.replace(checkpoint.view, aggregation="score")
    prob, score = (Predictor(checkpoint, view=v, top_k=99).predict(videos[2:3])[0] for v in (checkpoint.view, view))
    assert prob.logits is not None
    expected = torch.softmax(torch.from_numpy(prob.logits).mean(dim=0), dim=-1)
    assert_same([dict(score.top_k)[label] for label in checkpoint.labels], expected, relative=FLOAT32_ROUNDING)
    assert score.top_k != prob.top_k


def test_no_videos_give_no_scores(checkpoint: Checkpoint) -> None:
    assert Predictor(checkpoint).predict([]) == []


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 8, 32, 32, 3), dtype=np.float32),
        np.zeros((8, 32, 32, 3), dtype=np.uint8),
        np.zeros((1, 4, 32, 32, 3), dtype=np.uint8),
        np.zeros((0, 8, 32, 32, 3), dtype=np.uint8),
    ],
)
def test_arrays_of_another_kind_raise_since_no_video_is_to_blame(checkpoint: Checkpoint, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"views must be uint8 \(V, 8, 32, 32, 3\)"):
        Predictor(checkpoint).predict([array])


def test_views_that_the_model_cannot_take_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="8 frames of 32×32 pixels"):
        Predictor(checkpoint, view=dataclasses.replace(checkpoint.view, num_frames=16))


def test_video_that_breaks_the_forward_leaves_the_others_alone(
    checkpoint: Checkpoint, videos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(pixels: torch.Tensor, output: Any) -> Any:
        if is_poison(pixels).any():
            raise RuntimeError("cannot go on")
        return output

    predictor = Predictor(checkpoint, batch_size=4)
    expected = predictor.predict(videos)
    break_model(monkeypatch, predictor, explode)
    got = predictor.predict([*videos[:2], np.zeros_like(videos[0]), *videos[2:]])
    assert got[2].error == "RuntimeError: cannot go on"
    assert got[2].top_k == ()
    assert got[2].logits is None
    for scores, reference in zip(got[:2] + got[3:], expected, strict=True):
        assert scores.error is None
        assert scores.top_k[0][0] == reference.top_k[0][0]
        assert_same(scores.logits, reference.logits, relative=FLOAT32_ROUNDING)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_spoil_their_video_only(
    checkpoint: Checkpoint, videos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    def poison(pixels: torch.Tensor, output: Any) -> Any:
        output.logits[is_poison(pixels), 0] = value
        return output

    predictor = Predictor(checkpoint, batch_size=4)
    break_model(monkeypatch, predictor, poison)
    half_bad = np.concatenate([videos[0], np.zeros_like(videos[1])])
    got = predictor.predict([videos[0], half_bad, videos[1]])
    assert [scores.error is None for scores in got] == [True, False, True]
    assert "not finite in fp32" in str(got[1].error)


def test_batch_size_is_halved_when_memory_runs_out(
    checkpoint: Checkpoint, videos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(pixels: torch.Tensor, output: Any) -> Any:
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return output

    predictor = Predictor(checkpoint, batch_size=8)
    expected = predictor.predict(videos)
    sizes = break_model(monkeypatch, predictor, run_out)
    got = predictor.predict(videos)
    assert [scores.error for scores in got] == [None] * len(videos)
    for scores, reference in zip(got, expected, strict=True):
        assert_same(scores.logits, reference.logits, relative=FLOAT32_ROUNDING)
    assert sizes == [8, 4, *[2] * 6]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_calls_from_many_threads_get_their_own_videos_also_while_the_batch_size_is_halved(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    def run_out(pixels: torch.Tensor, output: Any) -> Any:
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return output

    calls = [[make_video(checkpoint.view, num_views=n % 5 + 1, seed=10 * n + k) for k in range(4)] for n in range(8)]
    predictor = Predictor(checkpoint, batch_size=8, num_threads=num_threads)
    expected = [predictor.predict(videos) for videos in calls]
    break_model(monkeypatch, predictor, run_out)
    with ThreadPoolExecutor(len(calls)) as threads:
        got = list(threads.map(predictor.predict, calls))
    for scores, reference in zip(chain(*got), chain(*expected), strict=True):
        assert scores.error is None
        assert_same(scores.logits, reference.logits, relative=FLOAT32_ROUNDING)
    assert predictor.batch_size == 2


def test_view_that_does_not_fit_alone_is_an_error_of_its_video(
    checkpoint: Checkpoint, videos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(pixels: torch.Tensor, output: Any) -> Any:
        if is_poison(pixels).any():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return output

    predictor = Predictor(checkpoint)
    break_model(monkeypatch, predictor, run_out)
    got = predictor.predict([videos[0], np.zeros_like(videos[1]), videos[1]])
    assert [scores.error is None for scores in got] == [True, False, True]
    assert "does not fit on cpu" in str(got[1].error)


def test_lost_device_is_raised_and_blamed_on_no_video(
    checkpoint: Checkpoint, videos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(pixels: torch.Tensor, output: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    predictor = Predictor(checkpoint)
    break_model(monkeypatch, predictor, lose)
    with pytest.raises(DeviceLostError, match="device-side assert"):
        predictor.predict(videos)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_scores_in_bf16(variant: str, tmp_path: Path) -> None:
    model_type, changes = VARIANTS[variant]
    checkpoint = read_checkpoint(str(make_family(tmp_path, model_type, labels=("left", "right"), **changes)))
    (scores,) = Predictor(checkpoint, precision="bf16").predict([make_video(checkpoint.view, num_views=2)])
    assert scores.error is None


def test_bf16_scores_are_near_those_of_fp32(checkpoint: Checkpoint, videos: list[np.ndarray]) -> None:
    fp32, bf16 = (Predictor(checkpoint, precision=p, top_k=99).predict(videos) for p in ("fp32", "bf16"))
    for a, b in zip(fp32, bf16, strict=True):
        # They come to 0.0024 of each other, with or without a processor's own bf16; two videos are 0.17 apart.
        assert dict(b.top_k) == pytest.approx(dict(a.top_k), abs=0.02)
        assert b.logits is not None
        assert b.logits.dtype == np.float32
        assert not np.array_equal(a.logits, b.logits)


def test_precision_and_device_that_are_not_there_are_refused(checkpoint: Checkpoint) -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == "fp32"
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        choose_precision("fp16", cpu)
    with pytest.raises(UsageError, match="auto, fp32, bf16, fp16"):
        choose_precision("int8", cpu)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no device 'toaster'"):
        Predictor(checkpoint, device="toaster")


@pytest.mark.parametrize(("size", "frames", "expected"), [(224, 16, 1), (112, 16, 4), (64, 8, 25), (16, 4, 32)])
def test_default_batch_on_cpus_stays_within_their_caches(size: int, frames: int, expected: int) -> None:
    assert default_batch_size(ViewConfig(num_frames=frames, size=size), torch.device("cpu")) == expected


def test_padded_batches_change_nothing(checkpoint: Checkpoint, videos: list[np.ndarray]) -> None:
    """``compile`` pads the last batch so that every forward has one shape; what fills it must not be seen."""
    predictor = Predictor(checkpoint, batch_size=5)
    expected = predictor.predict(videos)
    predictor._pads = True
    for scores, reference in zip(predictor.predict(videos), expected, strict=True):
        assert_same(scores.logits, reference.logits, relative=FLOAT32_ROUNDING)


def test_predictor_loads_the_checkpoint_from_a_folder_alone(tmp_path: Path) -> None:
    folder = make_videomae(tmp_path, labels=("a", "b"), num_frames=4, size=16, processor="new")
    checkpoint = read_checkpoint(str(folder))
    assert Predictor(checkpoint).predict([make_video(checkpoint.view, num_views=1)])[0].error is None
