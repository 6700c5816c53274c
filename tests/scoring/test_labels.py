"""`--labels`: X-CLIP tells apart what words say, as Transformers' own call does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vidray
from tests.support import runs
from tests.support.checkpoints import processor_values, write_processor
from tests.support.videos import make_video
from vidray.cli.main import main as cli
from vidray.models.predict import normalise
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.types import Limits, ViewConfig
from vidray.video.views import decode_views

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ["a person is dancing", "a person is cooking", "rain"]
START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small X-CLIP with random weights, and a tokenizer that was made from a few words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import CLIPTokenizerFast, XCLIPConfig, XCLIPModel

    folder = tmp_path_factory.mktemp("xclip")
    words = ByteLevelBPETokenizer(end_of_word_suffix="</w>", lowercase=True)
    words.train_from_iterator([*LABELS, "a video of dancing"], vocab_size=400, special_tokens=[START, END])
    words.save_model(str(folder))
    tokenizer = CLIPTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    mit = {f"mit_{name}": value for name, value in small.items()}
    config = XCLIPConfig(
        text_config={
            **{"vocab_size": len(tokenizer), "max_position_embeddings": 60, **small},
            **{"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id},
        },
        vision_config={"image_size": 32, "patch_size": 16, "num_frames": 4, **small, **mit},
        **{"projection_dim": 32, "prompt_layers": 1, "prompt_num_attention_heads": 2},
    )
    torch.manual_seed(3)
    network = XCLIPModel(config)
    with torch.no_grad():
        for parameter in network.parameters():  # its initial values hardly tell texts or clips apart
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        network.prompts_generator.alpha.fill_(0.5)
    network.save_pretrained(folder)
    write_processor(folder, processor_values(32))
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        generator = np.random.default_rng(number)

        def draw(frame: int, width: int, height: int, generator=generator) -> np.ndarray:
            return np.kron(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((height // 4, width // 4, 1)))

        data = make_video(num_frames=40, width=48, height=48, draw=lambda *a, draw=draw: draw(*a).astype(np.uint8))
        (folder / f"{number}.mp4").write_bytes(data)
    return sorted(folder.iterdir())


def by_transformers(model: Path, view: ViewConfig, data: bytes, texts: list[str]) -> list[float]:
    """Transformers' own call, text and clip together."""
    from transformers import AutoTokenizer, XCLIPModel

    views, _ = decode_views(data, view=view, limits=Limits())
    pixels = normalise(torch.from_numpy(views), view=view)
    words = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = XCLIPModel.from_pretrained(model).eval()(pixel_values=pixels, **words)
    return found.logits_per_video.softmax(-1).mean(0).tolist()


def score(videos: list[Path], model: Path, output: Path, **more) -> list[dict]:
    config = ScoreConfig(
        source=(str(videos[0].parent),), model=str(model), output=str(output), runner="local", device="cpu", **more
    )
    job = ScoreJob(config)
    job.run()
    return [row | {"view": job.view} for row in runs.read_rows(output) if row["result_key"] == job.result_key]


@pytest.mark.parametrize("prompt", ["{}", "a video of {}"])
def test_scores_are_those_of_transformers_own_call(model, videos, tmp_path, prompt) -> None:
    rows = score(videos, model, tmp_path / "out", labels="; ".join(LABELS), prompt=prompt)
    differences = []
    for row, video in zip(rows, videos, strict=True):
        expected = by_transformers(model, row["view"], video.read_bytes(), [prompt.replace("{}", x) for x in LABELS])
        found = {entry["label"]: entry["score"] for entry in row["top_k"]}
        assert [found[label] for label in LABELS] == pytest.approx(expected, abs=1e-4)
        differences.append(max(expected) - min(expected))
    assert max(differences) > 0.01, "the control: texts are told apart"


def test_a_loaded_model_answers_the_same(model, videos, tmp_path) -> None:
    rows = score(videos, model, tmp_path / "out", labels=";".join(LABELS), prompt="a video of {}")
    with vidray.load(model, labels=LABELS, prompt="a video of {}", device="cpu") as classifier:
        answer = {entry["label"]: entry["score"] for entry in classifier(videos[0])}
    assert answer == pytest.approx({entry["label"]: entry["score"] for entry in rows[0]["top_k"]}, abs=1e-5)


def test_labels_and_prompt_are_in_the_result_key_and_a_file_is_the_same_as_words(model, videos, tmp_path) -> None:
    output = tmp_path / "out"
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    asked = [
        {"labels": ";".join(LABELS)},
        {"labels": ";".join(LABELS[:2])},
        {"labels": ";".join(LABELS), "prompt": "a {}"},
        {"labels": str(tmp_path / "labels.txt")},
    ]
    keys = [{row["result_key"] for row in score(videos, model, output, **more)} for more in asked]
    assert [len(key) for key in keys] == [1, 1, 1, 1]
    assert keys[3] == keys[0]
    assert len(set.union(*keys)) == 3
    assert len({row["fingerprint"] for row in runs.read_rows(output)}) == 3


def test_windows_have_labels_too(model, videos, tmp_path) -> None:
    rows = score(videos, model, tmp_path / "out", labels=";".join(LABELS), segments=0.5, span="full")
    assert [len(row["segments"]) for row in rows] == [3, 3, 3]
    assert {segment["label"] for row in rows for segment in row["segments"]} <= set(LABELS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "has no classes of its own: vidray score --labels"),
        (["--labels", "running"], "--labels: got 'running', allowed is two labels or more, with ; between, or a file"),
        (["--labels", "a;b;a"], "--labels: got 'a', allowed is each once"),
        (["--labels", "a;;b"], "allowed is no empty one"),
        (["--labels", "a;b", "--prompt", "a video"], "--prompt: got 'a video', allowed is a text with {} in it"),
        (["--prompt", "a {}"], "--prompt: got 'a {}', allowed is a prompt with --labels"),
        (["--labels", "a;b", "--embeddings"], "--embeddings: got True, allowed is not with --labels"),
    ],
)
def test_what_will_not_do_is_refused_by_name(flags, message, model, videos, tmp_path, capsys) -> None:
    places = ["--source", str(videos[0]), "--model", str(model), "--output", str(tmp_path / "out")]
    assert cli(["score", *places, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_label_that_is_too_long_is_named(model, videos, tmp_path, capsys) -> None:
    places = ["--source", str(videos[0]), "--model", str(model), "--output", str(tmp_path / "out")]
    assert cli(["score", *places, "--labels", f"rain;{'dancing ' * 60}", "--runner", "local"]) != 0
    assert "is too long, allowed are 60 tokens" in capsys.readouterr().err


def test_a_model_with_classes_takes_none_and_x_clip_is_not_trained(model, videos, tmp_path, capsys) -> None:
    from tests.support.checkpoints import make_videomae

    other = make_videomae(tmp_path / "other")
    places = ["--source", str(videos[0]), "--output", str(tmp_path / "out")]
    assert cli(["score", *places, "--model", str(other), "--labels", "a;b"]) == 2
    assert "allowed is none with a model that has its own (videomae)" in capsys.readouterr().err
    classes = runs.make_classes(tmp_path / "classes", num_videos=8)
    for command in (["train", "--output", str(tmp_path / "t")], ["evaluate"]):
        assert cli([*command, "--source", str(classes), "--model", str(model)]) == 2
        assert "has no classes of its own" in capsys.readouterr().err
    assert "id2label" not in json.loads((model / "config.json").read_text())


def test_one_video_is_shown_with_labels_too(model, videos, capsys) -> None:
    flags = ["show", str(videos[0]), "--model", str(model)]
    assert cli(flags) == 2
    assert "--labels" in capsys.readouterr().err
    assert cli([*flags, "--labels", ";".join(LABELS), "--top-k", "3"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{label} " in text for label in LABELS)
