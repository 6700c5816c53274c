"""PyTorchVideo's networks as Transformers models: saved, loaded and called like those that come with Transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from vidray.models.pytorchvideo.configuration import (
    PyTorchVideoConfig,
    PyTorchVideoMViTConfig,
    PyTorchVideoResNetConfig,
    PyTorchVideoSlowFastConfig,
    PyTorchVideoX3DConfig,
)
from vidray.models.pytorchvideo.network import build_network, check_input, pathways


class PyTorchVideoForVideoClassification(PreTrainedModel):
    """A network of PyTorchVideo and a classifier behind it. Not for itself: see its subclasses.

    ``pixel_values``: (B, T, C, H, W), normalised with mean 0.45 and std 0.225.
    """

    config: PyTorchVideoConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    input_modalities = "video"

    def __init__(self, config: PyTorchVideoConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.network, num_features = build_network(config)
        self.classifier = nn.Linear(num_features, self.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **_: Any
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Logits (B, num_labels) of clips (B, T, C, H, W); with ``labels``, (B,), the cross-entropy too.

        Raises: UsageError that says which frames and sizes the network takes, if these are others.
        """
        check_input(tuple(pixel_values.shape), self.config)
        logits = self.classifier(self.network(self._arrange(pixel_values.transpose(1, 2))))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def _arrange(self, pixels: Tensor) -> Any:
        """What the network takes for a clip (B, C, T, H, W)."""
        return pixels

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The classifier alone. PyTorchVideo has initialised the network in its own way, which Transformers' would undo.
        if module is self.classifier:
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)


class PyTorchVideoResNetForVideoClassification(PyTorchVideoForVideoClassification):
    """Slow, C2D, I3D, CSN or R(2+1)D."""

    config_class = PyTorchVideoResNetConfig


class PyTorchVideoSlowFastForVideoClassification(PyTorchVideoForVideoClassification):
    """SlowFast. The pathways are made inside, from one clip."""

    config_class = PyTorchVideoSlowFastConfig

    def _arrange(self, pixels: Tensor) -> list[Tensor]:
        return pathways(pixels)


class PyTorchVideoX3DForVideoClassification(PyTorchVideoForVideoClassification):
    """X3D."""

    config_class = PyTorchVideoX3DConfig


class PyTorchVideoMViTForVideoClassification(PyTorchVideoForVideoClassification):
    """MViT."""

    config_class = PyTorchVideoMViTConfig


MODEL_CLASSES: dict[str, type[PyTorchVideoForVideoClassification]] = {
    "resnet": PyTorchVideoResNetForVideoClassification,
    "slowfast": PyTorchVideoSlowFastForVideoClassification,
    "x3d": PyTorchVideoX3DForVideoClassification,
    "mvit": PyTorchVideoMViTForVideoClassification,
}
"""By architecture."""
