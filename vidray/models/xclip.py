"""X-CLIP as a classifier whose labels are words: Transformers' own model, which reads the words once.

Bolin Ni et al., Expanding Language-Image Pretrained Models for General Video Recognition, ECCV 2022.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.x_clip.configuration_x_clip import XCLIPConfig
from transformers.models.x_clip.modeling_x_clip import XCLIPModel

from vidray.errors import UsageError

__all__ = ["XCLIPConfig", "XCLIPForVideoClassification"]


class XCLIPForVideoClassification(XCLIPModel):
    """After ``read``, from (N, T, C, H, W) pixels to logits (N, texts): the similarity of each clip to each text."""

    config: Any
    text_model: Any

    @torch.inference_mode()
    def read(self, texts: Sequence[str], *, folder: str) -> None:
        """Encodes the texts, and keeps that in place of the text encoder.

        Args:
            folder: where the tokenizer's files lie.

        Raises:
            UsageError: there is no tokenizer, or a text is longer than the model reads.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder} has no tokenizer that could read the labels: {error}") from error
        tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
        longest = self.config.text_config.max_position_embeddings
        if tokens["input_ids"].shape[1] > longest:
            text = max(texts, key=lambda text: len(tokenizer(text)["input_ids"]))
            raise UsageError(f"--labels: {textwrap.shorten(text, 60)!r} is too long, allowed are {longest} tokens")
        encoded = self.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        self.text_model = _ReadTexts(encoded.pooler_output)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Logits as an ``ImageClassifierOutput``."""
        return ImageClassifierOutput(logits=super().forward(pixel_values=pixel_values).logits_per_video)


class _ReadTexts(torch.nn.Module):
    """What the text encoder said, in its place."""

    def __init__(self, pooled_LF: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("pooled_LF", pooled_LF)

    def forward(self, **kwargs: Any) -> tuple[None, Any]:
        return None, self.pooled_LF
