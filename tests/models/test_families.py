"""Every family and variant, as a tiny network: trained by two workers, saved, loaded again, scored; and its head alone.

What each variant has at its published size is in test_catalogue; the job on Ray in test_families_job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import family_training
from tests.support.checkpoints import VARIANTS
from tests.support.closeness import FLOAT32_ROUNDING, assert_differs, assert_same
from tests.support.family_training import FREEZING, LABELS, NUM_VIDEOS, logits_of
from vidray.checkpoints.checkpoint import load_model, read_checkpoint
from vidray.models.catalogue import CATALOGUE
from vidray.models.families import FAMILIES
from vidray.scoring.predictor import Predictor
from vidray.training.loop.optim import UNUSED

pytestmark = pytest.mark.usefixtures("one_thread")

Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def trained(place: Path) -> Results:
    """By variant, what the first and the second worker found."""
    return family_training.train_all(place)


def test_every_variant_of_the_catalogue_has_a_tiny_one_here() -> None:
    from_transformers = {entry.model_type for entry in CATALOGUE if FAMILIES[entry.model_type].model_class in _NAMES}
    others = {entry.variant for entry in CATALOGUE if entry.model_type not in from_transformers}
    assert from_transformers | {_name(variant) for variant in others} == set(VARIANTS)
    assert {VARIANTS[name][0] for name in FREEZING} == set(FAMILIES)


_NAMES = {row.model_class for row in FAMILIES.values() if row.module.startswith("transformers.")}


def _name(variant: str) -> str:
    return f"movinet_{variant.replace('-', '_')}" if variant.endswith(("-base", "-stream")) else variant


@pytest.mark.parametrize("name", VARIANTS)
def test_two_workers_learn_the_motion_and_agree(name: str, trained: Results) -> None:
    """As DistributedDataParallel would demand, each parameter that learns has a gradient in every step."""
    first, second = (found["whole"] for found in trained[name])
    assert first["losses"] == second["losses"]
    assert first["losses"][-1] < 0.8 * first["losses"][0], first["losses"]
    assert first["without_gradient"] == second["without_gradient"] == []
    assert first["digest"] == second["digest"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_moves_but_those_that_a_classifier_does_not_use(name: str, trained: Results) -> None:
    found = trained[name][0]["whole"]
    still = {parameter for parameter in found["parameters"] if parameter not in found["changed"]}
    unused = UNUSED.get(VARIANTS[name][0], ())
    assert still == {parameter for parameter in found["parameters"] if parameter.startswith(unused)}


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_network_is_loaded_again_to_identical_logits(name: str, trained: Results, place: Path) -> None:
    checkpoint = read_checkpoint(str(place / name / "trained"))
    assert checkpoint.labels == LABELS
    expected = torch.load(place / name / "logits.pt")
    assert torch.equal(logits_of(load_model(checkpoint), checkpoint), expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize("name", VARIANTS)
def test_predictor_scores_with_what_was_trained(name: str, trained: Results, place: Path) -> None:
    checkpoint = read_checkpoint(str(place / name / "trained"))
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (2, *checkpoint.view.views_shape[1:]), dtype=torch.uint8, generator=generator)
    scores = Predictor(checkpoint).predict([views.numpy()])[0]
    assert scores.error is None
    assert scores.logits is not None
    expected = torch.load(place / name / "logits.pt")
    assert_same(scores.logits, expected, relative=FLOAT32_ROUNDING)
    assert_differs(expected[0], expected[1], relative=FLOAT32_ROUNDING, factor=50)


@pytest.mark.parametrize("name", FREEZING)
def test_frozen_backbone_stays_to_the_bit_while_its_head_learns(name: str, trained: Results) -> None:
    first, second = (found["head"] for found in trained[name])
    assert first["changed"] == second["changed"] == ["classifier.weight", "classifier.bias"]
    assert first["without_gradient"] == []
    assert first["losses"][-1] < 0.99 * first["losses"][0], first["losses"]
    assert first["digest"] == second["digest"]


@pytest.mark.parametrize("name", FREEZING)
def test_evaluation_of_the_new_head_counts_every_video_once(name: str, trained: Results) -> None:
    first, second = (found["confusion"] for found in trained[name])
    assert first == second
    assert [sum(row) for row in first] == [NUM_VIDEOS // 2] * 2
