"""Networks that give features in place of scores: a classifier without its last layer, or a bare backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from vidray.models.families import Family
from vidray.models.loading import read_weights, refuse_incomplete
from vidray.models.predict import FeatureTap


def load_features(
    family: Family, *, config: dict[str, Any], folder: str, dtype: torch.dtype | None = None
) -> nn.Module:
    """A network of ``family`` whose logits are its features, (N, features) float32; in eval mode, on the CPU.

    They are what the classifier is given. Only where the weights have neither a classifier nor the family's ``pooler``
    are they the mean of the backbone's tokens.

    Raises:
        UsageError: other tensors are missing, left over or of another shape; or there is half a classifier or pooler.
    """
    model, report = read_weights(family, config=config, folder=folder, dtype=dtype)
    missing = set(report["missing_keys"])
    head, pooler = _names(model, (family.head_name,)), _names(model, family.pooler)
    is_bare, lacks_pooler = head <= missing, head | pooler <= missing
    if is_bare:
        missing -= head | pooler if lacks_pooler else head
        left = {name for name in report["unexpected_keys"] if not name.startswith(family.pretraining_tensors)}
        report = {**report, "missing_keys": missing, "unexpected_keys": left}
    refuse_incomplete(report, folder)
    return _TokenMean(model, family) if lacks_pooler and family.pooler else _ClassifierInput(model, family)


def _names(model: nn.Module, modules: tuple[str, ...]) -> set[str]:
    """Of the tensors in some modules of the network."""
    beginnings = tuple(f"{module}." for module in modules)
    return {name for name in model.state_dict() if name.startswith(beginnings)}


class _ClassifierInput(nn.Module):
    """What the network gives to its classifier, whose own answer does not count."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        super().__init__()
        self.model = model
        self._tap = FeatureTap(model, family)

    def forward(self, **pixels: torch.Tensor) -> Any:
        self.model(**pixels)
        return ImageClassifierOutput(logits=self._tap.take())


class _TokenMean(nn.Module):
    """The mean of the tokens that the backbone ends with."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__()
        self.backbone = model.base_model
        self._options = dict(family.backbone_options)

    def forward(self, **pixels: torch.Tensor) -> Any:
        tokens_NLF = self.backbone(**pixels, **self._options).last_hidden_state
        return ImageClassifierOutput(logits=tokens_NLF.float().mean(dim=1))
