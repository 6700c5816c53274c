"""What a family cannot take is refused, whichever way it comes in, and the error says what it can."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import make_family, processor_values, write_processor
from tests.support.videos import make_video
from vidray.checkpoints.checkpoint import load_model, read_checkpoint, write_vidray_json
from vidray.cli.main import main
from vidray.errors import UsageError
from vidray.models.families import FAMILIES
from vidray.models.processors import check_view
from vidray.scoring.predictor import Predictor
from vidray.training.config import TrainConfig
from vidray.training.loop.build import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("left", "right")

CANNOT = {
    # model type: (frames, size) that it refuses, and what the error says that it takes; its tiny config has 4 of 32
    "videomae": [((8, 32), "only what it was built for, 4 frames of 32×32"), ((4, 64), "only what it was built for")],
    "timesformer": [((8, 32), "only what it was built for, 4 frames of 32×32"), ((4, 48), "only what it was")],
    "vivit": [((8, 32), "only what it was built for, 4 frames of 32×32"), ((4, 64), "only what it was built for")],
    "vjepa2": [((4, 48), "any number of frames of just 32×32")],
    "videoprism_vision_model": [((8, 36), "only what it was built for, 4 frames of 36×36"), ((4, 54), "4 frames of")],
    "pytorchvideo_resnet": [((3, 32), "at least 4 frames of at least 32×32"), ((4, 31), "at least 32×32")],
    "pytorchvideo_slowfast": [((12, 32), "just 8 frames of at least 32×32"), ((8, 31), "just 8 frames")],
    "pytorchvideo_x3d": [((3, 32), "at least 4 frames of at least 32×32"), ((4, 31), "at least 32×32")],
    "pytorchvideo_mvit": [((8, 32), "only what it was built for, 4 frames of 32×32"), ((4, 64), "4 frames of 32×32")],
}
CAN = {
    "vjepa2": [(8, 32), (2, 32)],
    "pytorchvideo_resnet": [(6, 40)],
    "pytorchvideo_slowfast": [(8, 40)],
    "pytorchvideo_x3d": [(6, 40)],
    "movinet": [(3, 24), (7, 50)],
}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    folder = tmp_path_factory.mktemp("untrained")
    return {name: make_family(folder / name, name, labels=LABELS) for name in FAMILIES}


def test_every_family_is_asked_what_it_can_take() -> None:
    assert set(CANNOT) | set(CAN) == set(FAMILIES)


@pytest.mark.parametrize(
    ("model_type", "shape", "allowed"), [(name, *row) for name, rows in CANNOT.items() for row in rows]
)
def test_frames_and_sizes_that_it_cannot_take_are_refused_with_what_it_can(
    model_type: str, shape: tuple[int, int], allowed: str, untrained: dict[str, Path]
) -> None:
    checkpoint = read_checkpoint(str(untrained[model_type]))
    view = dataclasses.replace(checkpoint.view, num_frames=shape[0], size=shape[1], short_side=None)
    with pytest.raises(UsageError, match=f"{allowed}.*{shape[0]} frames of {shape[1]} pixels"):
        check_view(view, config=checkpoint.config, family=checkpoint.family)
    with pytest.raises(UsageError, match=allowed):
        Predictor(checkpoint, view=view)


@pytest.mark.parametrize(("model_type", "shape"), [(name, shape) for name, shapes in CAN.items() for shape in shapes])
def test_frames_and_sizes_that_it_is_said_to_take_it_takes(
    model_type: str, shape: tuple[int, int], untrained: dict[str, Path]
) -> None:
    checkpoint = read_checkpoint(str(untrained[model_type]))
    view = dataclasses.replace(checkpoint.view, num_frames=shape[0], size=shape[1], short_side=None)
    views = torch.randint(0, 256, (1, *view.views_shape[1:]), dtype=torch.uint8).numpy()
    assert Predictor(checkpoint, view=view).predict([views])[0].error is None


@pytest.mark.parametrize("command", ["score", "train", "evaluate"])
@pytest.mark.parametrize(
    ("num_frames", "size", "got"), [(4, 48, "frames of 48 pixels"), (6, 32, "6 frames of 32 pixels")]
)
def test_command_refuses_views_that_timesformer_was_not_built_for(
    command: str, num_frames: int, size: int, got: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers would fail on them in the middle of the run, or attend over wrong tokens."""
    model = make_family(tmp_path / "model", "timesformer", labels=LABELS)
    if size != 32:
        write_processor(model, processor_values(size), style="new")
    else:
        write_vidray_json(model, read_checkpoint(str(model)).meta)
        content = json.loads((model / "vidray.json").read_text())
        content["view"]["num_frames"] = num_frames
        (model / "vidray.json").write_text(json.dumps(content))
    for label in LABELS:
        (tmp_path / "videos" / label).mkdir(parents=True)
        (tmp_path / "videos" / label / "0.mp4").write_bytes(make_video(num_frames=8))
    places = ["--source", str(tmp_path / "videos"), "--model", str(model)]
    output = [] if command == "evaluate" else ["--output", str(tmp_path / "out")]
    capsys.readouterr()
    assert main([command, *places, *output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert got in line
    assert "timesformer takes" in line


_OTHER_SIZES: dict[str, dict[str, Any]] = {
    **{name: {"num_hidden_layers": 2, "intermediate_size": 96} for name in ("videomae", "timesformer", "vivit")},
    "vjepa2": {"num_hidden_layers": 2, "mlp_ratio": 2},
    "videoprism_vision_model": {"num_spatial_layers": 2, "intermediate_size": 96},
    "pytorchvideo_resnet": {"variant": "i3d_r50", "width": 16},
    "pytorchvideo_slowfast": {"variant": "slowfast_r101", "width": 16},
    "pytorchvideo_x3d": {"variant": "x3d_l", "width": 16},
    "pytorchvideo_mvit": {"width": 32},
    "movinet": {"blocks": "8:32d 16b|16:32c 40c|24:48b 40d 40d"},
}


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_weights_of_another_variant_are_refused_and_each_way_in_says_which_tensors(
    model_type: str, untrained: dict[str, Path], tmp_path: Path
) -> None:
    folder = make_family(tmp_path, model_type, labels=LABELS, **_OTHER_SIZES[model_type])
    weights = load_file(untrained[model_type] / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = read_checkpoint(str(folder), require_head=False)
    with pytest.raises(UsageError, match=r"do not fit config.json.*(without a tensor|of another shape).*: \S+\."):
        load_model(checkpoint)
    config = TrainConfig(source=("unused",), model="unused", output="unused")
    with pytest.raises(UsageError, match=r"lack parts of the backbone or have them in another shape: \S+\."):
        build_model(checkpoint, config, labels=LABELS)


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_wrong_number_of_labels_is_refused_with_both_numbers(
    model_type: str, untrained: dict[str, Path], tmp_path: Path
) -> None:
    folder = make_family(tmp_path, model_type, labels=("a", "b", "c"))
    config = json.loads((untrained[model_type] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="has 3 rows for the 2 labels of id2label"):
        read_checkpoint(str(folder))
    read_checkpoint(str(folder), require_head=False)
