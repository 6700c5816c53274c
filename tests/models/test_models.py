from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import make_family, make_videomae
from tests.support.closeness import FLOAT32_ROUNDING, assert_differs, assert_same
from vidray.checkpoints.checkpoint import load_model, read_checkpoint
from vidray.models.families import FAMILIES
from vidray.models.predict import aggregate, forward_views, normalise, top_k
from vidray.scoring.predictor import Predictor
from vidray.types import ViewConfig

pytestmark = pytest.mark.usefixtures("one_thread")

PIXEL_ROUNDING = 1e-6
"""A pixel takes a few roundings of float32 and no sum: two ways to it differ by 5e-7 at most, on any processor."""
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LABELS = ("left", "right", "still")


def random_views(view: ViewConfig, *, num_views: int = 2, seed: int = 0) -> torch.Tensor:
    """Views, (N, T, H, W, C) uint8, of differing brightness, so that their logits differ clearly."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 100, (num_views, *view.views_shape[1:]), generator=generator)
    level = torch.randint(0, 156, (num_views, view.num_frames, 1, 1, 3), generator=generator)
    return (noise + level).to(torch.uint8)


def test_table_covers_the_video_classifiers_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES as NAMES

    ours = {row.model_type: row.model_class for row in FAMILIES.values() if row.module.startswith("transformers.")}
    assert ours == dict(NAMES)


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_table_holds_the_defaults_that_transformers_builds_with(model_type: str) -> None:
    family = FAMILIES[model_type]
    model_class, config_class = family.load_classes()
    config = config_class()
    assert config.model_type == model_type
    assert getattr(config, family.num_frames_key) == family.default_num_frames
    assert getattr(config, family.size_key) == family.default_size
    assert model_class.main_input_name == family.input_name


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_family_scores_as_transformers_does_with_its_own_processor(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForVideoClassification

    folder = make_family(tmp_path, model_type, labels=LABELS)
    checkpoint = read_checkpoint(str(folder))
    views = random_views(checkpoint.view)
    expected_pixels = transformers_pixels(folder, model_type, views)
    assert_same(normalise(views, view=checkpoint.view), expected_pixels, relative=PIXEL_ROUNDING)

    reference = AutoModelForVideoClassification.from_pretrained(folder)
    with torch.inference_mode():
        expected = reference(**{FAMILIES[model_type].input_name: expected_pixels}).logits.reshape(len(views), -1)
    scores = Predictor(checkpoint).predict([views.numpy()])[0]
    assert scores.error is None
    assert scores.logits is not None
    assert_same(scores.logits, expected, relative=FLOAT32_ROUNDING)
    assert_differs(expected[0], expected[1], relative=FLOAT32_ROUNDING, factor=100)


def transformers_pixels(folder: Path, model_type: str, views: torch.Tensor) -> torch.Tensor:
    """(N, T, C, H, W) as Transformers' own processor class makes them from views that have the right size."""
    from transformers import VideoMAEVideoProcessor, VivitVideoProcessor, VJEPA2VideoProcessor

    classes = {"vivit": VivitVideoProcessor, "vjepa2": VJEPA2VideoProcessor}
    processor = classes.get(model_type, VideoMAEVideoProcessor).from_pretrained(folder)
    videos = list(views.permute(0, 1, 4, 2, 3))
    batch = processor(videos, do_resize=False, do_center_crop=False, return_tensors="pt")
    return batch.get("pixel_values", batch.get("pixel_values_videos"))


def test_normalised_pixels_keep_every_axis_and_channel_in_place() -> None:
    view = ViewConfig(num_frames=2, size=4, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    views = random_views(view, num_views=3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (view.mean, view.std))
    expected = (views.permute(0, 1, 4, 2, 3) / 255 - mean) / std
    got = normalise(views, view=view)
    assert got.shape == (3, 2, 3, 4, 4)
    assert_same(got, expected, relative=PIXEL_ROUNDING)
    assert normalise(views, view=view, dtype=torch.bfloat16).equal(got.bfloat16())


def test_multi_label_checkpoint_scores_with_sigmoids(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(str(make_videomae(tmp_path, problem_type=MULTI)))
    views = random_views(checkpoint.view)
    with torch.inference_mode():
        logits = forward_views(load_model(checkpoint), views, family=checkpoint.family, view=checkpoint.view)
    scores = dict(Predictor(checkpoint, top_k=99).predict([views.numpy()])[0].top_k)
    expected = torch.sigmoid(logits).mean(dim=0)
    assert_same([scores[label] for label in checkpoint.labels], expected, relative=FLOAT32_ROUNDING)
    assert sum(scores.values()) != pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("aggregation", "problem_type", "expected"),
    [
        # Two views with odds 3:1 and 1:9 for the first of two classes.
        ("prob", SINGLE, [(0.75 + 0.1) / 2, (0.25 + 0.9) / 2]),
        ("score", SINGLE, [1 / (1 + 3**0.5), 3**0.5 / (1 + 3**0.5)]),
        # Each class for itself: the sigmoids of its logits, which are ln 3, -ln 9 and 0, 0.
        ("prob", MULTI, [(0.75 + 0.1) / 2, 0.5]),
        ("score", MULTI, [1 / (1 + 3**0.5), 0.5]),
    ],
)
def test_aggregation_of_views(aggregation: Any, problem_type: str, expected: list[float]) -> None:
    logits = torch.tensor([[3.0, 1.0], [1 / 9, 1.0]]).log()
    got = aggregate(logits, aggregation=aggregation, problem_type=problem_type)
    assert got.tolist() == pytest.approx(expected)  # within 1e-6 of each: some ten roundings of float32


def test_top_k_is_sorted_and_equal_scores_keep_the_labels_order() -> None:
    scores = torch.tensor([0.2, 0.3, 0.2, 0.3])
    assert [label for label, _ in top_k(scores, labels="abcd", k=3)] == ["b", "d", "a"]
    assert len(top_k(scores, labels="abcd", k=9)) == 4
