"""MoViNet A0 to A5, base and stream. Importing this makes the Auto classes of Transformers know them."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForVideoClassification

from vidray.models.movinet.configuration import MoViNetConfig
from vidray.models.movinet.modeling import MoViNetForVideoClassification
from vidray.models.movinet.state import LayerState, StreamState
from vidray.models.movinet.variants import VARIANTS

__all__ = ["VARIANTS", "LayerState", "MoViNetConfig", "MoViNetForVideoClassification", "StreamState"]

AutoConfig.register(MoViNetConfig.model_type, MoViNetConfig, exist_ok=True)
AutoModelForVideoClassification.register(MoViNetConfig, MoViNetForVideoClassification, exist_ok=True)
