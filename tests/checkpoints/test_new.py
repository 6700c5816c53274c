"""``vidray new`` makes checkpoints of every family that load, score and learn; or says in one line why not."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.videos import make_video
from vidray.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vidray.checkpoints.new import build_network
from vidray.checkpoints.write import write_checkpoint
from vidray.cli.main import main
from vidray.models.networks import NETWORKS
from vidray.models.predict import forward_views
from vidray.scoring.predictor import Predictor
from vidray.training.config import TrainConfig
from vidray.training.loop.build import build_model
from vidray.types import Limits
from vidray.video.views import decode_views

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("jump", "run", "Über den Zaun")

SMALL = [("VideoMAE", "small"), ("x3d", "xs"), ("movinet", "a0"), ("movinet", "a0-stream")]
_NARROW = {"hidden_size": 64, "num_attention_heads": 2}
_TINY = {**_NARROW, "num_hidden_layers": 1, "intermediate_size": 128}
SHRUNK: dict[tuple[str, str], dict[str, Any]] = {
    ("TimeSformer", "base"): _TINY,
    ("ViViT", "b-16x2"): _TINY,
    ("V-JEPA 2", "vitl-fpc16-256"): {
        **_NARROW,
        **{"num_hidden_layers": 1, "num_pooler_layers": 1, "pred_num_hidden_layers": 1},
    },
    ("VideoPrism", "base-f16r288"): {
        **_NARROW,
        **{"num_spatial_layers": 1, "num_temporal_layers": 1, "intermediate_size": 128},
    },
    ("Slow", "slow_r50"): {"width": 8},
    ("SlowFast", "slowfast_r50"): {"width": 8},
    ("MViT", "mvit_base_16x4"): {"width": 16},
}
"""Too large for a quick test: what makes them small; the same frames go in."""


def score_and_learn(checkpoint: Checkpoint) -> None:
    """One view of a video goes through the network; a step of training makes its loss on it smaller."""
    assert checkpoint.labels == LABELS
    view = dataclasses.replace(checkpoint.view, num_clips=1)
    views_VTHWC, _ = decode_views(make_video(num_frames=60), view=view, limits=Limits())
    (prediction,) = Predictor(checkpoint, view=view).predict([views_VTHWC])
    assert prediction.error is None
    assert {label for label, _ in prediction.top_k} == set(LABELS)
    assert sum(score for _, score in prediction.top_k) == pytest.approx(1, abs=1e-5)

    config = TrainConfig(source=("unused",), model="unused", output="unused")
    model = build_model(checkpoint, config, labels=LABELS).eval()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-3)

    def loss() -> torch.Tensor:
        logits = forward_views(model, torch.from_numpy(views_VTHWC), family=checkpoint.family, view=view)
        return torch.nn.functional.cross_entropy(logits, torch.tensor([1]))

    before = loss()
    before.backward()
    optimizer.step()
    with torch.no_grad():
        assert loss() < before


@pytest.mark.parametrize(("family", "variant"), SMALL)
def test_command_makes_what_loads_scores_and_learns(
    family: str, variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    folder = tmp_path / "made" / "my model"
    assert main(["new", family, variant, str(folder), "--labels", str(tmp_path / "labels.txt")]) == 0
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "something was left behind"
    preview, train = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert preview == ["vidray", "preview", "--source", "VIDEOS", "--model", str(folder)]
    assert train[1] == "train"
    assert train[-4:] == ["--model", str(folder), "--output", f"{folder}-trained"]
    score_and_learn(read_checkpoint(str(folder)))


@pytest.mark.parametrize(("family", "variant"), list(SHRUNK))
def test_large_ones_made_small_do_so_too(family: str, variant: str, tmp_path: Path) -> None:
    network = NETWORKS[family][variant]
    network = dataclasses.replace(network, config={**network.config, **SHRUNK[family, variant]})
    write_checkpoint(build_network(network, labels=LABELS, seed=0), network.view, tmp_path / "made")
    score_and_learn(read_checkpoint(str(tmp_path / "made")))


def test_all_families_are_tried() -> None:
    tried = {family.lower() for family, _ in [*SMALL, *SHRUNK]}
    same_code_as_slow = {"c2d", "i3d", "csn", "r2plus1d"}
    assert {family.lower() for family in NETWORKS} - tried - same_code_as_slow == {"pytorchvideo"}


def make(folder: Path, *flags: str) -> Path:
    assert main(["new", "x3d", "xs", str(folder), *flags]) == 0
    return folder


def test_seed_decides_on_the_weights_and_nothing_else_does(tmp_path: Path) -> None:
    first = make(tmp_path / "first", "--labels", "2")
    torch.rand(5)
    state = torch.get_rng_state()
    again = make(tmp_path / "again", "--labels", "2", "--seed", "0")
    assert torch.equal(torch.get_rng_state(), state)
    other = make(tmp_path / "other", "--labels", "2", "--seed", "1")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, other))
    same = {name for name in ours if torch.equal(ours[name], theirs[name])}
    assert all(
        name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") or ours[name].ndim == 1
        for name in same
    )


def test_number_of_labels_gives_numbered_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "made", "--labels", "12")
    assert read_checkpoint(str(folder)).labels == tuple(f"class_{i}" for i in range(12))


def test_labels_are_read_as_those_of_videos_are(tmp_path: Path) -> None:
    """A byte order mark, decomposed letters, Windows' line ends and spaces are no part of a name."""
    (tmp_path / "labels.txt").write_bytes("\ufeffa b \r\nU\u0308ben\r\n".encode())
    folder = make(tmp_path / "made", "--labels", str(tmp_path / "labels.txt"))
    assert read_checkpoint(str(folder)).labels == ("a b", "\u00dcben")


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    read_checkpoint(str(make(tmp_path / "made", "--labels", "2")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet", "r50", "new", "--labels", "2"], "FAMILY: got 'resnet', allowed are VideoMAE"),
        (["VideoMAE", "giant", "new", "--labels", "2"], "allowed for VideoMAE are small, base, large, huge"),
        (["x3d", "xs", "full", "--labels", "2"], "is there already; name a folder that is not or is empty"),
        (["x3d", "xs", "full/file", "--labels", "2"], "is there already"),
        (["x3d", "xs", "full/file/new", "--labels", "2"], "cannot write"),
        (["x3d", "xs", "s3://bucket/new", "--labels", "2"], "must be a folder on this machine"),
        (["x3d", "xs", "new", "--labels=--5"], "--5"),
        (["x3d", "xs", "new", "--labels", "1"], "got '1', allowed is a file with at least two lines, or a number"),
        (["x3d", "xs", "new", "--labels", "99999999999"], "a number from 2 to 1000000"),
        (["x3d", "xs", "new", "--labels=-2"], "a number from 2 to 1000000"),
        (["x3d", "xs", "new", "--labels", "gone.txt"], "gone.txt"),
        (["x3d", "xs", "new", "--labels", "one.txt"], "a file with at least two lines"),
        (["x3d", "xs", "new", "--labels", "twice.txt"], "doubles: ['a']"),
        (["x3d", "xs", "new", "--labels", "2", "--seed", "-1"], "--seed: got -1"),
        (["x3d", "xs", "new", "--labels", "2", "--sead", "1"], "--sead, which is no flag; the nearest: --seed"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line_and_nothing_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "one.txt").write_text("a\n")
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    there = sorted(tmp_path.rglob("*"))
    assert main(["new", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(tmp_path.rglob("*")) == there


def test_help_opens_with_two_examples_and_they_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("left\nright\n")
    with pytest.raises(SystemExit) as end:
        main(["new", "--help"])
    assert end.value.code == 0
    examples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  vidray new")]
    assert len(examples) == 2
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == "vidray"
        assert main(arguments) == 0
        read_checkpoint(arguments[3])
