"""Makes a model of this package from a published state dict (``.pyth``). Every tensor finds its place, or is named."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidray.errors import UsageError
from vidray.models.pytorchvideo.modeling import MODEL_CLASSES, PyTorchVideoForVideoClassification
from vidray.models.pytorchvideo.network import find_head
from vidray.models.pytorchvideo.variants import find_variant


def convert_pytorchvideo(
    source: str | Path, *, variant: str, labels: Sequence[str] | None = None
) -> PyTorchVideoForVideoClassification:
    """The model of a file of PyTorchVideo's model zoo, in eval mode.

    Args:
        source: a file with a state dict, mostly under the key ``model_state``. No code in it is run.
        variant: a name of the table of variants. X3D XS, S and M have the same tensors: say which it is.
        labels: names of the classes, in the order of the logits. None: numbers.

    Raises: UsageError that names each tensor which is missing, left over, or of the wrong shape.
    """
    model_class = MODEL_CLASSES[find_variant(variant).architecture]
    config_class: Any = model_class.config_class
    with torch.device("meta"):
        blueprint = model_class(config_class(variant=variant))
    head = _head_name(blueprint)
    state = read_state(Path(source))
    weight = state.get(f"{head}.weight")
    num_labels = blueprint.num_labels if weight is None else len(weight)  # None: named as missing below
    if labels is not None and len(labels) != num_labels:
        raise UsageError(f"{source} is for {num_labels} classes, got {len(labels)} labels")
    id2label = dict(enumerate(labels or map(str, range(num_labels))))
    label2id = {label: index for index, label in id2label.items()}
    model = model_class(config_class(variant=variant, id2label=id2label, label2id=label2id))
    renamed = {_our_name(name, head): tensor for name, tensor in state.items()}
    _check_fit(renamed, model, head=head, source=source)
    model.load_state_dict(renamed)
    return model.eval()


def read_state(source: Path) -> dict[str, Tensor]:
    """The tensors of a file under its own names. Raises UsageError if it cannot be read, or holds something else."""
    try:
        values = torch.load(source, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UsageError(f"cannot read weights from {source}: {error}") from error
    state = values.get("model_state", values) if isinstance(values, dict) else values
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{source} must hold a state dict, or one under the key model_state; got something else")
    return state


def _head_name(model: PyTorchVideoForVideoClassification) -> str:
    """Where PyTorchVideo has the classifier, for instance ``blocks.6.proj``."""
    head = find_head(model.network)
    return next(f"{name}.proj" for name, module in model.network.named_modules() if module is head)


def _our_name(name: str, head: str) -> str:
    return f"classifier{name.removeprefix(head)}" if name.startswith(f"{head}.") else f"network.{name}"


def _their_name(name: str, head: str) -> str:
    if name.startswith("classifier."):
        return f"{head}{name.removeprefix('classifier')}"
    return name.removeprefix("network.")


def _check_fit(
    renamed: dict[str, Tensor], model: PyTorchVideoForVideoClassification, *, head: str, source: str | Path
) -> None:
    """Raise UsageError with every tensor that does not fit, by the file's names."""
    own = model.state_dict()
    faults = [f"missing {_their_name(name, head)}" for name in own.keys() - renamed.keys()]
    faults += [f"left over {_their_name(name, head)}" for name in renamed.keys() - own.keys()]
    for name in own.keys() & renamed.keys():
        got, needed = tuple(renamed[name].shape), tuple(own[name].shape)
        if got != needed:
            faults.append(f"{_their_name(name, head)} has shape {got}, needs {needed}")
    if faults:
        lines = "".join(f"\n  {fault}" for fault in sorted(faults))
        raise UsageError(f"{source} does not fit {model.config.variant}:{lines}")
