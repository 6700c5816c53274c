"""Makes a MoViNet of this package from published weights. Every tensor finds its place, or is named in the error."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vidray.errors import UsageError
from vidray.models.movinet.configuration import MoViNetConfig
from vidray.models.movinet.modeling import MoViNetForVideoClassification
from vidray.models.movinet.names import from_community, from_tensorflow
from vidray.models.movinet.tf_checkpoint import TensorFlowCheckpoint
from vidray.models.movinet.variants import VARIANTS, parse_blocks

Shape = tuple[int, ...]


def convert_movinet(
    source: str | Path,
    *,
    variant: str | None = None,
    stream: bool | None = None,
    labels: Sequence[str] | None = None,
) -> MoViNetForVideoClassification:
    """The model of a checkpoint, in eval mode.

    Args:
        source: a TensorFlow Model Garden checkpoint (``.../ckpt-1``, its ``.index`` file, or the folder that holds just
            that one), or a file with a state dict of the community's PyTorch port.
        variant: ``a0`` to ``a5``. None: found out from the weights.
        stream: whether it is a stream network. None: found out from the weights.
        labels: names of the classes, in the order of the logits. None: numbers.

    Raises: UsageError that names each tensor which is missing, left over, or of the wrong shape.
    """
    weights = read_weights(Path(source))
    config = _config(weights, labels)
    _check_request(config, variant, stream, source)
    model = MoViNetForVideoClassification(config)
    model.load_state_dict(_fitted(weights, model, source))
    return model.eval()


def read_weights(source: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names of this package, with their dimensions in PyTorch's order.

    Dimensions of size 1 may differ from the model's. Raises: UsageError if the file cannot be read, or it has a tensor
    that a MoViNet does not have.
    """
    prefix = _tensorflow_prefix(source)
    try:
        return _read_community(source) if prefix is None else _read_tensorflow(prefix)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UsageError(f"cannot read weights from {source}: {error}") from error


def _tensorflow_prefix(source: Path) -> Path | None:
    """What the names of a TensorFlow checkpoint's files have in common; None if it is not one."""
    if source.is_dir():
        indices = sorted(source.glob("*.index"))
        if len(indices) != 1:
            raise UsageError(f"{source} must hold one TensorFlow checkpoint, has {[path.name for path in indices]}")
        source = indices[0]
    if source.suffix == ".index":
        return source.with_suffix("")
    return source if source.with_name(f"{source.name}.index").exists() else None


def _read_tensorflow(prefix: Path) -> dict[str, Tensor]:
    checkpoint = TensorFlowCheckpoint(prefix)
    names = _known(from_tensorflow(checkpoint.names), prefix)
    tensors = {name: torch.from_numpy(checkpoint.read(name).copy()) for name in names}
    return {names[name]: _from_channels_last(tensor, name) for name, tensor in tensors.items()}


def _from_channels_last(tensor: Tensor, name: str) -> Tensor:
    """A TensorFlow kernel (..., in, out) as (out, in, ...); other tensors as they are."""
    if tensor.ndim < 4:
        return tensor
    # Keras' 2D depthwise kernels are (H, W, channels, 1): the channels are what comes out.
    if "/depthwise_kernel" in name:
        tensor = tensor.transpose(-1, -2)
    return tensor.permute(-1, -2, *range(tensor.ndim - 2))


def _read_community(path: Path) -> dict[str, Tensor]:
    values = torch.load(path, map_location="cpu", weights_only=True)
    tensors = values.get("state_dict", values)
    names = _known(from_community(tensors), path)
    return {ours: tensors[name] for name, ours in names.items()}


def _known(names: dict[str, str | None], source: Path) -> dict[str, str]:
    """``names``, if there is one here for each of them."""
    if not names:
        raise UsageError(f"{source} has no tensors")
    if unknown := [name for name, ours in names.items() if ours is None]:
        raise UsageError(f"{source}: a MoViNet has no such tensors:{_lines(unknown)}")
    return {name: ours for name, ours in names.items() if ours is not None}


def _config(weights: dict[str, Tensor], labels: Sequence[str] | None) -> MoViNetConfig:
    """The config that the names and shapes of the weights tell."""
    bias = weights.get("classifier.bias")
    if bias is None:
        raise UsageError("the weights have no classifier: they must be those of a whole network")
    if labels is not None and len(labels) != len(bias):
        raise UsageError(f"the weights are for {len(bias)} classes, got {len(labels)} labels")
    id2label = {index: str(index) for index in range(len(bias))} if labels is None else dict(enumerate(labels))
    return MoViNetConfig(
        variant=_variant(weights),
        stream=any(".temporal." in name for name in weights),
        position_encoding=any(name.endswith(".position_scale") for name in weights),
        id2label=id2label,
        label2id={label: index for index, label in id2label.items()},
    )


def _variant(weights: dict[str, Tensor]) -> str:
    """The variant with as many layers as the weights have; no two have the same number."""
    num_layers = sum(name.endswith(".rezero") for name in weights)
    allowed = {
        len(parse_blocks(variant.blocks, stem_channels=variant.stem_channels)): name
        for name, variant in VARIANTS.items()
    }
    if num_layers not in allowed:
        raise UsageError(f"the weights have {num_layers} layers, MoViNets have {allowed}")
    return allowed[num_layers]


def _check_request(config: MoViNetConfig, variant: str | None, stream: bool | None, source: str | Path) -> None:
    """Raises UsageError if the weights are of another network than was asked for."""
    found = _network_name(config.variant, config.stream)
    asked = _network_name(variant or config.variant, config.stream if stream is None else stream)
    if found != asked:
        raise UsageError(f"{source} has the weights of {found}, {asked} was asked for")


def _network_name(variant: str, stream: bool) -> str:
    return f"MoViNet {variant} {'stream' if stream else 'base'}"


def _fitted(weights: dict[str, Tensor], model: MoViNetForVideoClassification, source: str | Path) -> dict[str, Tensor]:
    """A whole state dict for ``model``: ``weights`` in its shapes. Raises UsageError that names what does not fit."""
    own = model.state_dict()
    counters = {name for name in own if name.endswith(".num_batches_tracked")}  # PyTorch's own, no one else has them
    faults = [f"missing {name}" for name in own.keys() - counters - weights.keys()]
    faults += [f"left over {name}" for name in weights.keys() - own.keys()]
    for name in weights.keys() & own.keys():
        got, needed = tuple(weights[name].shape), tuple(own[name].shape)
        if _without_ones(got) != _without_ones(needed):
            faults.append(f"{name} has shape {got}, needs {needed}")
    if faults:
        network = _network_name(model.config.variant, model.config.stream)
        raise UsageError(f"{source} does not fit {network}:{_lines(faults)}")
    fitted = {name: weight.reshape(own[name].shape) for name, weight in weights.items()}
    return fitted | {name: own[name] for name in counters}


def _lines(items: Sequence[str]) -> str:
    """Each on a line of its own: there can be hundreds."""
    return "".join(f"\n  {item}" for item in sorted(items))


def _without_ones(shape: Shape) -> Shape:
    """Conversions differ in dimensions of size 1 (2D, 3D and dense kernels), and in nothing else."""
    return tuple(size for size in shape if size != 1)
