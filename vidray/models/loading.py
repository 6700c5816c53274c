"""Builds a network and fills in its weights, completely or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from vidray.errors import UsageError
from vidray.models.families import Family

_MAX_NAMES = 8


def load_weights(
    family: Family, *, config: dict[str, Any], folder: str, dtype: torch.dtype | None = None
) -> torch.nn.Module:
    """A classifier of ``family`` with the weights in ``folder`` (safetensors), in eval mode, on the CPU.

    Transformers initialises at random what the file lacks and merely warns; a head like that scores garbage that
    looks like scores, so here every tensor must be used and every parameter be filled.

    Raises:
        UsageError: tensors are missing, left over or of another shape.
    """
    model, report = read_weights(family, config=config, folder=folder, dtype=dtype)
    refuse_incomplete(report, folder)
    return model


def read_weights(
    family: Family, *, config: dict[str, Any], folder: str, dtype: torch.dtype | None
) -> tuple[Any, dict[str, Any]]:
    """(the classifier in eval mode, Transformers' report of what does not fit, for `refuse_incomplete`)."""
    model_class, config_class = family.load_classes()
    with quiet():
        model, report = model_class.from_pretrained(
            folder,
            config=config_class.from_dict(config),
            dtype=dtype or torch.float32,
            attn_implementation=family.attention,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below with all their names
            output_loading_info=True,
        )
    align(model)
    return model.eval(), report


def align(model: torch.nn.Module) -> None:
    """Copy the tensors out of the mapped file, where they begin at any address.

    For weights off their alignment kernels take other ways: X3D's logits then differ in the last bit from those of the
    model that was saved.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def refuse_incomplete(report: dict[str, Any], folder: str) -> None:
    """Raise UsageError, with names, if anything in the report does not fit."""
    kinds = {
        "missing_keys": "parameters without a tensor in the file",
        "unexpected_keys": "tensors that the model has no place for",
        "mismatched_keys": "tensors of another shape than the model's",
    }
    problems = [f"{text}: {_shorten(report[kind])}" for kind, text in kinds.items() if report.get(kind)]
    problems += [str(message) for message in report.get("error_msgs") or ()]
    if problems:
        raise UsageError(
            f"the weights in {folder} do not fit config.json, and would score at random. " + "; ".join(problems)
        )


def _shorten(keys: Any) -> str:
    names = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in keys)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Transformers' progress bars and table of keys: what is wrong is in the error."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
