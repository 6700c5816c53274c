"""From views to a video's prediction: the one way that scoring and the evaluation of training both go."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from vidray.models.families import Family
from vidray.types import Aggregation, EmbeddingKind, ViewConfig


def normalise(views_NTHWC: torch.Tensor, *, view: ViewConfig, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``(pixel / 255 - mean) / std`` of uint8 views, on their device: (N, T, H, W, C) to (N, T, C, H, W) ``dtype``.

    Computed in float32 whatever ``dtype`` is: bfloat16 has 8 significant bits, and would round the pixels first.
    """
    n, t, h, w, c = views_NTHWC.shape
    scale_WC, bias_WC = _scale_and_bias(view.mean, view.std, w, views_NTHWC.device)
    rows = views_NTHWC.reshape(n, t, h, w * c).float().mul_(scale_WC).add_(bias_WC)
    return rows.view(n, t, h, w, c).permute(0, 1, 4, 2, 3).to(dtype)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # training uses them too
def _scale_and_bias(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept: to copy new constants to a GPU, before every forward, is to wait until it has caught up.

    For one row of pixels, R G B R G B …: a broadcast over 3 channels alone is too short for vector units.
    """
    mean_C, std_C = (torch.tensor(values, dtype=torch.float64) * 255 for values in (mean, std))
    scale_WC, bias_WC = ((values.float().repeat(width)).to(device) for values in (1 / std_C, -mean_C / std_C))
    return scale_WC, bias_WC


def forward_views(
    model: Callable[..., Any],
    views_NTHWC: torch.Tensor,
    *,
    family: Family,
    view: ViewConfig,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Logits of uint8 views on the model's device: (N, T, H, W, C) to (N, num_labels) float32.

    Args:
        dtype: of the pixels given to the model; the model's own, or float32 under autocast.
    """
    return forward_pixels(model, normalise(views_NTHWC, view=view, dtype=dtype), family=family)


def forward_pixels(model: Callable[..., Any], pixels_NTCHW: torch.Tensor, *, family: Family) -> torch.Tensor:
    """Logits of normalised views: (N, T, C, H, W) to (N, num_labels) float32. Training mixes pixels before it."""
    logits = model(**{family.input_name: pixels_NTCHW}).logits
    if family.logits_have_time:
        logits = logits.squeeze(1)
    return logits.float()


def aggregate(logits_VC: torch.Tensor, *, aggregation: Aggregation, problem_type: str) -> torch.Tensor:
    """A video's scores from the logits of its views: (V, num_labels) to (num_labels,) float32.

    ``prob``: the mean of the views' probabilities (VideoMAE's test protocol). ``score``: the probabilities of the
    mean of their logits. Probabilities are sigmoids for ``multi_label_classification``, else softmaxes.
    """
    logits = logits_VC.float()
    if aggregation == "score":
        logits = logits.mean(dim=0, keepdim=True)
    if problem_type == "multi_label_classification":
        return torch.sigmoid(logits).mean(dim=0)
    return torch.softmax(logits, dim=-1).mean(dim=0)


class FeatureTap:
    """Takes what a network gives to its classifier out of the forward that makes the logits, which it does not change.

    Threads that run forwards side by side on one network each have their own.
    """

    def __init__(self, model: torch.nn.Module, family: Family) -> None:
        self._last = threading.local()
        model.get_submodule(family.head_name).register_forward_pre_hook(self._note)

    def _note(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # A copy: the classifier may be given a view of all tokens, whose memory would stay.
        features = inputs[0].to(torch.float32, copy=True)
        self._last.features_NF = features.flatten(1, -2).mean(dim=1) if features.ndim > 2 else features

    def take(self) -> torch.Tensor:
        """Of this thread's last forward, (N, features) float32 on the network's device."""
        features_NF: torch.Tensor = self._last.features_NF
        del self._last.features_NF
        return features_NF


def embed(features_VF: torch.Tensor, *, kind: EmbeddingKind) -> np.ndarray:
    """A video's embedding from the features of its views: (V, features) to (features,) float32.

    Features that are all 0 stay so: they have no direction.
    """
    mean_F = features_VF.mean(dim=0)
    return (normalize(mean_F, dim=0) if kind == "unit" else mean_F).numpy()


def top_k(scores_C: torch.Tensor, *, labels: Sequence[str], k: int) -> tuple[tuple[str, float], ...]:
    """The ``k`` best (label, score), best first; fewer if there are fewer. Equal scores keep the labels' order."""
    values, indices = torch.sort(scores_C, descending=True, stable=True)
    return tuple((labels[i], value) for value, i in zip(values[:k].tolist(), indices[:k].tolist(), strict=True))
