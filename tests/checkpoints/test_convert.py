"""``vidray convert`` makes folders that score, or says of each tensor what is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.test_movinet_convert import build, save_port
from tests.support.closeness import FLOAT32_ROUNDING, assert_same
from vidray.checkpoints.checkpoint import read_checkpoint
from vidray.checkpoints.convert import ConvertPyTorchVideo, convert, read_labels
from vidray.cli.main import main
from vidray.errors import UsageError
from vidray.models.movinet.configuration import MoViNetConfig
from vidray.models.movinet.variants import movinet_view
from vidray.models.pytorchvideo.convert import convert_pytorchvideo
from vidray.scoring.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = {"x3d_xs": "blocks.5.proj", "slowfast_r50": "blocks.6.proj", "mvit_base_16x4": "head.proj"}


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """The state dict of PyTorchVideo's X3D-XS with 5 classes, none of its tensors as a new network has it."""
    from pytorchvideo.models import hub

    torch.manual_seed(3)
    network = hub.x3d_xs(model_num_class=5)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else tensor.normal_(0, 0.1)
    return network.state_dict()


@pytest.fixture
def source(published: dict[str, Tensor], tmp_path: Path) -> Path:
    return save(published, tmp_path / "X3D_XS.pyth")


def save(state: dict[str, Tensor], path: Path) -> Path:
    """As PyTorchVideo's model zoo does it."""
    torch.save({"model_state": state, "epoch": 300, "cfg": "x3d"}, path)
    return path


def test_converted_folder_scores_as_the_original_network(
    published: dict[str, Tensor], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pytorchvideo.models import hub

    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcde") + "\n")
    output = tmp_path / "made" / "x3d"
    assert main(["convert", "pytorchvideo", "x3d_xs", str(source), str(output), "--labels", str(labels)]) == 0
    assert "pytorchvideo_x3d, 5 labels" in capsys.readouterr().out
    assert [path.name for path in output.parent.iterdir()] == ["x3d"], "something was left behind"

    checkpoint = read_checkpoint(str(output))
    view = checkpoint.view
    assert checkpoint.labels == tuple("abcde")
    assert (view.num_frames, view.stride, view.size) == (4, 12, 182)
    assert checkpoint.meta.training["converted_from"]["name"] == "X3D_XS.pyth"
    assert "from `X3D_XS.pyth`" in (output / "README.md").read_text()

    views = np.random.default_rng(0).integers(0, 256, (1, *view.views_shape[1:]), dtype=np.uint8)
    network = hub.x3d_xs(model_num_class=5, head_activation=None).eval()
    network.load_state_dict(published)
    pixels = (torch.from_numpy(views).permute(0, 4, 1, 2, 3) / 255 - 0.45) / 0.225
    with torch.inference_mode():
        expected = network(pixels)
    got = Predictor(checkpoint).predict([views])[0].logits
    assert got is not None
    assert expected.std() > 1e-3
    assert_same(got, expected, relative=FLOAT32_ROUNDING)


def test_without_vidray_json_the_folder_has_the_same_geometry(source: Path, tmp_path: Path) -> None:
    convert(ConvertPyTorchVideo(variant="x3d_xs", source=str(source), output=str(tmp_path / "out")))
    whole = read_checkpoint(str(tmp_path / "out"))
    (tmp_path / "out" / "vidray.json").unlink()
    again = read_checkpoint(str(tmp_path / "out"))
    assert again.view == whole.view
    assert again.labels == whole.labels == ("0", "1", "2", "3", "4")
    assert again.fingerprint == whole.fingerprint


@pytest.mark.parametrize("variant", list(HEADS))
def test_every_tensor_of_the_original_finds_its_place(variant: str, tmp_path: Path) -> None:
    from pytorchvideo.models import hub

    network = getattr(hub, variant)(**{"head_num_classes" if "mvit" in variant else "model_num_class": 4})
    model = convert_pytorchvideo(save(network.state_dict(), tmp_path / "weights.pyth"), variant=variant)
    ours = model.state_dict()
    for name, tensor in network.state_dict().items():
        head = HEADS[variant]
        place = name.replace(head, "classifier") if name.startswith(head) else f"network.{name}"
        assert torch.equal(ours.pop(place), tensor), name
    assert ours == {}


def test_each_tensor_that_does_not_fit_is_named(published: dict[str, Tensor], tmp_path: Path) -> None:
    state = dict(published)
    state["blocks.0.extra"] = torch.zeros(1)
    del state["blocks.1.res_blocks.0.branch2.conv_a.weight"]
    state["blocks.0.norm.weight"] = torch.zeros(7)
    with pytest.raises(UsageError) as error:
        convert_pytorchvideo(save(state, tmp_path / "weights.pyth"), variant="x3d_xs")
    message = str(error.value)
    assert "does not fit x3d_xs" in message
    assert "\n  left over blocks.0.extra" in message
    assert "\n  missing blocks.1.res_blocks.0.branch2.conv_a.weight" in message
    assert "\n  blocks.0.norm.weight has shape (7,), needs (24,)" in message
    assert message.count("\n") == 3


def test_weights_of_another_variant_are_refused(source: Path) -> None:
    with pytest.raises(UsageError, match=r"does not fit x3d_l:\n  missing blocks"):
        convert_pytorchvideo(source, variant="x3d_l")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_state": {}}, "must hold a state dict"),
        ({"weights": 3}, "must hold a state dict"),
        ({"a.weight": torch.zeros(2)}, "left over a.weight"),
        ([1, 2], "must hold a state dict"),
    ],
)
def test_file_with_something_else_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pyth")
    with pytest.raises(UsageError, match=message):
        convert_pytorchvideo(tmp_path / "weights.pyth", variant="x3d_xs")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code in the file was run",)


def test_file_with_code_in_it_is_refused_and_the_code_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model_state": Evil()}, tmp_path / "weights.pyth")
    with pytest.raises(UsageError, match="cannot read weights"):
        convert_pytorchvideo(tmp_path / "weights.pyth", variant="x3d_xs")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_file_that_cannot_be_read_is_a_usage_error(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "weights.pyth").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read weights"):
        convert_pytorchvideo(tmp_path / "weights.pyth", variant="x3d_xs")


def test_unknown_variant_is_refused_with_the_names(source: Path) -> None:
    with pytest.raises(UsageError, match=r"no network 'x4d'.*slow_r50, c2d_r50.*mvit_base_32x3"):
        convert_pytorchvideo(source, variant="x4d")


def test_wrong_number_of_labels_is_refused_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\n")
    config = ConvertPyTorchVideo(variant="x3d_xs", source=str(source), output=str(tmp_path / "out"), labels=str(labels))
    with pytest.raises(UsageError, match="for 5 classes, got 2 labels"):
        convert(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["X3D_XS.pyth", "labels.txt"]


@pytest.mark.parametrize("output", ["", "s3://bucket/model"])
def test_output_that_is_there_or_not_here_is_refused(output: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is there already|must be a folder on this machine"):
        convert(ConvertPyTorchVideo(variant="x3d_xs", source=str(source), output=output or str(tmp_path)))


@pytest.mark.parametrize("text", ["", "a\n\nb", "a\nb\na"])
def test_useless_labels_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(UsageError, match="one name per line"):
        read_labels(tmp_path / "labels.txt")


def test_movinet_of_the_community_becomes_a_folder_that_scores(tmp_path: Path) -> None:
    model = build(stream=False)
    save_port(model, tmp_path / "weights.pt")
    output = tmp_path / "movinet"
    assert main(["convert", "movinet", str(tmp_path / "weights.pt"), str(output), "--variant", "a0"]) == 0
    checkpoint = read_checkpoint(str(output))
    view = checkpoint.view
    assert (view.num_frames, view.size, view.span, view.num_clips, view.stride) == (50, 172, "full", 1, 6)
    assert json.loads((output / "video_preprocessor_config.json").read_text())["image_mean"] == [0.0] * 3
    views = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3), dtype=np.uint8)
    got = Predictor(checkpoint, view=dataclasses.replace(view, num_frames=4, size=32)).predict([views])[0].logits
    with torch.inference_mode():
        expected = model(torch.from_numpy(views).permute(0, 1, 4, 2, 3) / 255).logits
    assert got is not None
    assert_same(got, expected, relative=FLOAT32_ROUNDING)


def test_movinet_that_is_not_what_was_asked_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_port(build(stream=False), tmp_path / "weights.pt")
    assert main(["convert", "movinet", str(tmp_path / "weights.pt"), str(tmp_path / "out"), "--kind", "stream"]) == 2
    assert "MoViNet a0 base, MoViNet a0 stream was asked for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("variant", "stride"), [("a0", 6), ("a3", 2), ("a4", 4)])
def test_movinet_wants_one_view_of_the_whole_video(variant: str, stride: int) -> None:
    view = movinet_view(MoViNetConfig(variant=variant))
    assert (view.span, view.num_clips, view.stride) == ("full", 1, stride)
