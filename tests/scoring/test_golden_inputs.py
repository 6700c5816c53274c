"""What reaches each family's model, for one fixed video, is what it has always been.

The known answers were written down once. A test that fails here says that every score changes: if that is meant, the
result key must change with it, and the answers below are written anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.checkpoints import make_family
from tests.support.videos import LOSSLESS, make_video
from vidray.checkpoints.checkpoint import read_checkpoint
from vidray.models.families import FAMILIES
from vidray.scoring.predictor import Predictor
from vidray.types import Limits
from vidray.video.views import decode_views

pytestmark = pytest.mark.usefixtures("one_thread")

BRIGHT = 132
MARGIN = 4
"""No pixel is nearer to the threshold: rounding, which differs between machines, cannot change an answer."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FACEBOOK = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
VIVIT = ((0.75, 0.75, 0.75), (0.25, 0.25, 0.25))  # 2 × pixel − 1, then 0.5 and 0.5
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

GOLDEN: dict[str, tuple[tuple[int, ...], tuple[tuple[float, ...], tuple[float, ...]], str]] = {
    # (views, frames, channels, height, width); (mean, std) of pixels in [0, 1]; hash of which pixels are bright
    "videomae": ((5, 4, 3, 32, 32), IMAGENET, "224b01c9558a3c41"),
    "timesformer": ((5, 4, 3, 32, 32), FACEBOOK, "224b01c9558a3c41"),
    "vivit": ((5, 4, 3, 32, 32), VIVIT, "224b01c9558a3c41"),
    "vjepa2": ((5, 4, 3, 32, 32), IMAGENET, "21b898155d99528f"),  # its class resizes to 256/224 of the crop
    "videoprism_vision_model": ((5, 4, 3, 36, 36), PLAIN, "d892f57c22e5b9d8"),
    "pytorchvideo_resnet": ((5, 4, 3, 32, 32), FACEBOOK, "bb468d5c67e27895"),
    "pytorchvideo_slowfast": ((5, 8, 3, 32, 32), FACEBOOK, "ceb5b61fad5c9293"),
    "pytorchvideo_x3d": ((5, 4, 3, 32, 32), FACEBOOK, "f1bcef11209f64d0"),
    "pytorchvideo_mvit": ((5, 4, 3, 32, 32), FACEBOOK, "224b01c9558a3c41"),
    "movinet": ((1, 4, 3, 32, 32), PLAIN, "f0ce073475346afc"),
}


def colours(number: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3): a grid of 4 × 3 fields, each channel of each bright or dark as a hash of the frame number says."""
    bits = np.unpackbits(np.frombuffer(hashlib.sha256(b"%d" % number).digest(), dtype=np.uint8))[:36].reshape(3, 4, 3)
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    return (30 + 190 * bits[rows][:, columns]).astype(np.uint8)


@pytest.fixture(scope="module")
def video() -> bytes:
    """4 s, 96 × 72 pixels, lossless."""
    return make_video(
        num_frames=120,
        fps=30,
        width=96,
        height=72,
        codec="libx264rgb",
        pix_fmt="rgb24",
        draw=colours,
        options=LOSSLESS["libx264rgb"],
    )


def tensor_at_the_model(folder: Path, video: bytes) -> torch.Tensor:
    """(V, T, C, H, W): what the Predictor hands to the network."""
    checkpoint = read_checkpoint(str(folder))
    views, _ = decode_views(video, view=checkpoint.view, limits=Limits())
    predictor = Predictor(checkpoint, batch_size=len(views))
    network, seen = predictor._model, []

    def forward(**inputs: torch.Tensor) -> Any:
        seen.append(inputs[checkpoint.family.input_name].clone())
        return network(**inputs)

    predictor._model = forward
    assert predictor.predict([views])[0].error is None
    return torch.cat(seen)


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_input_of_the_model_is_what_it_has_always_been(model_type: str, video: bytes, tmp_path: Path) -> None:
    shape, (mean, std), expected = GOLDEN[model_type]
    got = tensor_at_the_model(make_family(tmp_path, model_type, labels=("a", "b", "c")), video)
    assert got.shape == shape
    channels = (1, 1, 3, 1, 1)
    pixels = (got.double() * torch.tensor(std).view(channels) + torch.tensor(mean).view(channels)) * 255
    # Five roundings of float32 and no sum: within 1e-4 of a whole number on any processor.
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)
    assert pixels.min() >= 0
    assert pixels.max() <= 255.001
    assert (pixels - BRIGHT).abs().min() > MARGIN
    bright = np.packbits((pixels > BRIGHT).numpy())
    assert hashlib.sha256(bright.tobytes()).hexdigest()[:16] == expected
