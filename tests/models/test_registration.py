"""After ``import vidray``, Transformers knows vidray's models, in whatever order the two are imported."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.checkpoints import make_family
from tests.support.closeness import FLOAT32_ROUNDING, assert_same
from vidray.checkpoints.checkpoint import Checkpoint, load_model, read_checkpoint
from vidray.checkpoints.write import write_checkpoint
from vidray.models.catalogue import CATALOGUE
from vidray.models.families import FAMILIES
from vidray.scoring.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")

OURS = [row.model_type for row in FAMILIES.values() if row.module.startswith("vidray.")]


ORDERS = [
    "import vidray; from transformers import AutoConfig, AutoModelForVideoClassification as M",
    "from transformers import AutoConfig, AutoModelForVideoClassification as M; import vidray",
    "import vidray; import vidray.models.movinet.modeling; from transformers import AutoConfig, "
    "AutoModelForVideoClassification as M",
]
KNOWS_THEM = (
    f"print([AutoConfig.for_model(name).model_type for name in {OURS}]); "
    "from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING as names; "
    f"print(all(type(AutoConfig.for_model(name)) in names for name in {OURS}))"
)
COUNT_FINDERS = (
    "import importlib; before = list(sys.meta_path); import vidray; importlib.reload(vidray); "
    "waiting = [f for f in sys.meta_path if f not in before]; "
    "import transformers.models.auto.modeling_auto as auto; "
    "print(len(waiting), [f for f in sys.meta_path if f in waiting], type(auto.__loader__).__name__)"
)
RUN_EACH = """
import os, sys
import torch

for code in sys.argv[1:]:
    if os.fork() == 0:
        exec(code)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    print("---", flush=True)
"""


def run(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What each program prints in a process of its own, forked where torch alone is loaded: that takes longest."""
    programs = [*(f"{imports}; {KNOWS_THEM}" for imports in ORDERS), COUNT_FINDERS]
    outputs = run(RUN_EACH, *programs).split("---\n")[:-1]
    return dict(zip([*ORDERS, COUNT_FINDERS], outputs, strict=True))


def test_importing_vidray_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, vidray, vidray.models; print({'torch', 'transformers', 'pytorchvideo'} & set(sys.modules))"
    assert run(code) == "set()\n"


@pytest.mark.parametrize("imports", ORDERS)
def test_auto_classes_know_the_models_in_whatever_order(imports: str, printed: dict[str, str]) -> None:
    assert printed[imports] == f"{OURS}\nTrue\n"


def test_word_is_left_once_and_taken_back(printed: dict[str, str]) -> None:
    assert printed[COUNT_FINDERS] == "1 [] SourceFileLoader\n"


SCORED_BY_PIPELINE = [name for name in FAMILIES if name != "videoprism_vision_model"]


@pytest.mark.parametrize("model_type", SCORED_BY_PIPELINE)
def test_pipeline_of_transformers_scores_as_vidray_does(model_type: str, tmp_path: Path) -> None:
    """From a folder as vidray publishes it."""
    from transformers import pipeline

    checkpoint = published(model_type, tmp_path)
    view = checkpoint.view
    generator = np.random.default_rng(0)
    side = view.short_side or view.size
    frames = generator.integers(0, 256, (view.num_frames, side, side, 3), dtype=np.uint8)
    margin = round((side - view.size) / 2)
    views = frames[None, :, margin : margin + view.size, margin : margin + view.size]
    ours = dict(Predictor(checkpoint, top_k=3).predict([views])[0].top_k)

    pipe = pipeline("video-classification", model=checkpoint.folder)
    inputs = pipe.video_processor(torch.from_numpy(frames).permute(0, 3, 1, 2), return_tensors="pt")
    theirs = {row["label"]: row["score"] for row in pipe.postprocess(pipe.forward(inputs), top_k=3)}
    assert theirs.keys() == ours.keys()
    assert_same([theirs[label] for label in ours], list(ours.values()), relative=FLOAT32_ROUNDING)


def test_pipeline_of_transformers_loads_videoprism_but_cannot_score_it_as_the_table_says(tmp_path: Path) -> None:
    from transformers import pipeline

    checkpoint = published("videoprism_vision_model", tmp_path)
    pipe = pipeline("video-classification", model=checkpoint.folder)
    frames = torch.zeros(checkpoint.view.views_shape[1:], dtype=torch.uint8).permute(0, 3, 1, 2)
    outputs = pipe.forward(pipe.video_processor(frames, return_tensors="pt"))
    assert outputs.logits.shape == (1, 1, 3)
    with pytest.raises((TypeError, ValueError, KeyError)):
        pipe.postprocess(outputs, top_k=3)
    (entry,) = [row for row in CATALOGUE if row.model_type == "videoprism_vision_model"]
    assert "pipeline cannot score it" in entry.note


def published(model_type: str, folder: Path) -> Checkpoint:
    """A tiny checkpoint that went through vidray's own writer, and takes frames of its size as they are."""
    start = read_checkpoint(str(make_family(folder / "start", model_type, labels=("left", "right", "still"))))
    view = dataclasses.replace(start.view, short_side=None)
    write_checkpoint(load_model(start), view, folder / "published")
    return read_checkpoint(str(folder / "published"))
