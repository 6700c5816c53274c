"""What reaches the network is what Transformers' own processor makes of the same frames."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
import torch
import transformers

from tests.support.videos import make_video
from vidray.models.families import FAMILIES
from vidray.models.processors import read_view
from vidray.video.decoder import VideoDecoder, view_crops
from vidray.video.sampling import spread_spans

TOLERANCE = 0.04
"""Mean difference in standard deviations. Resizing alone differs from torchvision's by 0.2 to 0.8 of 255,
which is 0.004 to 0.02 with the deviations here; cropping where squeezing was meant differs by more than 0.3."""

VIDEOMAE, VIVIT, TIMESFORMER = "VideoMAEVideoProcessor", "VivitVideoProcessor", "TimesformerVideoProcessor"
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "minimal VideoMAE": ("timesformer", VIDEOMAE, {}),
    "minimal TimeSformer": ("timesformer", TIMESFORMER, {}),
    "minimal ViViT": ("vivit", VIVIT, {}),
    "minimal V-JEPA 2": ("vjepa2", "VJEPA2VideoProcessor", {}),
    "V-JEPA 2 whose size is not obeyed": (
        *("vjepa2", "VJEPA2VideoProcessor"),
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 256, "width": 256}},
    ),
    "int size": ("timesformer", VIDEOMAE, {"size": 256}),
    "int size, squared": ("timesformer", VIDEOMAE, {"size": 224, "default_to_square": True}),
    "squeezed": ("timesformer", VIDEOMAE, {"size": {"height": 224, "width": 224}}),
    "squeezed and cropped": (
        *("timesformer", TIMESFORMER),
        {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}},
    ),
    "squeezed, not cropped": (
        *("movinet", TIMESFORMER),
        {"size": {"height": 192, "width": 192}, "do_center_crop": False},
    ),
    "not normalised": ("timesformer", VIDEOMAE, {"do_normalize": False}),
    "not rescaled": (
        "timesformer",
        VIDEOMAE,
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [64.0] * 3},
    ),
    "another factor": ("timesformer", VIDEOMAE, {"rescale_factor": 1 / 127.5}),
    "ViViT with another factor": ("vivit", VIVIT, {"rescale_factor": 1 / 255}),
}


def waves(number: int, width: int, height: int) -> np.ndarray:
    """A smooth picture that looks different in every place."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = (128 + 0.4 * x - 30 * np.sin(y / 20), 60 + 0.6 * y, 128 + 60 * np.sin((x + 7 * number) / 25))
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def video() -> bytes:
    return make_video(num_frames=4, width=426, height=240, draw=waves)


@pytest.mark.parametrize("case", CASES)
def test_the_network_gets_what_transformers_processor_makes(case: str, video: bytes) -> None:
    model_type, kind, values = CASES[case]
    processor = getattr(transformers, kind)(**values)
    view = read_view({"video_processor_type": kind, **values}, config={}, family=FAMILIES[model_type])
    with av.open(io.BytesIO(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    expected = next(
        iter(processor(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), return_tensors="pt").values())
    )
    decoder = VideoDecoder(video)
    spans = spread_spans(duration_seconds=decoder.duration, view=view)[:1]
    (clip,) = decoder.sample(spans, num_frames=4, convert=view_crops(view))
    pixels = torch.from_numpy(np.stack(clip.pictures)[:, 0]).double()
    mine = ((pixels / 255 - torch.tensor(view.mean)) / torch.tensor(view.std)).permute(0, 3, 1, 2)
    assert mine.shape == expected[0].shape
    scale = expected[0].double().std()
    assert (mine - expected[0]).abs().mean() / scale < TOLERANCE
