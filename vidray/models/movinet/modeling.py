"""MoViNet as a Transformers model: saved, loaded and called like the video classifiers that come with Transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from vidray.models.movinet.configuration import MoViNetConfig
from vidray.models.movinet.layers import Bottleneck, StreamSqueezeExcitation
from vidray.models.movinet.network import BaseNetwork, StreamNetwork
from vidray.models.movinet.state import StreamState


class MoViNetForVideoClassification(PreTrainedModel):
    """A MoViNet and its classifier. ``pixel_values``: (B, T, C, H, W), RGB in [0, 1], any T, H and W."""

    config_class = MoViNetConfig
    config: MoViNetConfig
    base_model_prefix = "movinet"
    main_input_name = "pixel_values"
    input_modalities = "video"

    def __init__(self, config: MoViNetConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.movinet = build_network(config)
        self.head = nn.Linear(self.movinet.project.conv.out_channels, config.hidden_size)
        self.head_activation = nn.SiLU()  # swish in the stream networks too
        self.dropout = nn.Dropout(config.dropout_rate)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **_: Any
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Logits (B, num_labels) of whole clips (B, T, C, H, W); with ``labels``, (B,), the cross-entropy too."""
        self._check_frames(pixel_values)
        logits = self._classify(self.movinet(pixel_values))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def initial_state(self, *, batch_size: int, height: int, width: int) -> StreamState:
        """The state before the first frame. Raises ValueError if this is not a stream network."""
        return self._stream_network().initial_state(batch_size=batch_size, height=height, width=width)

    def forward_stream(self, frames: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Logits (B, num_labels) of the videos up to and including ``frames``, and the state to pass in next.

        Args:
            frames: (B, T, C, H, W), the next T frames of each video, T at least 1. H and W stay the same in a video.
            state: what the last call gave; None before the first frame.

        Memory grows with T, not with the length of the video. Raises: ValueError if this is not a stream network, or
        ``state`` does not fit ``frames``.
        """
        network = self._stream_network()
        self._check_frames(frames)
        features, state = network.forward_stream(frames, state)
        return self._classify(features), state

    def _classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.head_activation(self.head(features))))

    def _stream_network(self) -> StreamNetwork:
        if not isinstance(self.movinet, StreamNetwork):
            raise ValueError("only a stream network keeps a state between chunks: build it with stream=True")
        return self.movinet

    def _check_frames(self, frames: Tensor) -> None:
        if frames.ndim != 5 or frames.shape[2] != self.config.num_channels or 0 in frames.shape:
            expected = f"(batch, frames, {self.config.num_channels}, height, width)"
            raise ValueError(f"expected {expected}, none of them 0, got {tuple(frames.shape)}")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Transformers calls this for modules with weights that a checkpoint lacks; `init` leaves the others alone.
        if module is self.classifier:
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv3d | nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Bottleneck):
            init.zeros_(module.rezero)
        elif isinstance(module, StreamSqueezeExcitation):
            if module.position_scale is not None:
                init.zeros_(module.position_scale)
        else:
            super()._init_weights(module)  # batch norm, with its statistics


def build_network(config: MoViNetConfig) -> BaseNetwork | StreamNetwork:
    """The network that a config describes, without its classifier."""
    options: dict[str, Any] = {
        "num_channels": config.num_channels,
        "project_channels": config.project_channels,
        "activation": config.activation,
        "gating_activation": config.gating_activation,
        "drop_path_rate": config.drop_path_rate,
    }
    if config.stream:
        return StreamNetwork(config.layers(), position_encoding=bool(config.position_encoding), **options)
    return BaseNetwork(config.layers(), **options)
