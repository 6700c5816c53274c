"""What others call the tensors of a MoViNet, and what they are called here.

Two sources: checkpoints of the TensorFlow Model Garden (paths through its Keras objects), and the state dicts of the
community's PyTorch port (github.com/Atze00/MoViNet-pytorch). Either way the variant does not matter for the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_TF_VARIABLE = "/.ATTRIBUTES/VARIABLE_VALUE"
_TF_NETWORK = re.compile(r"(?:(?:model/)?(?:layer_with_weights-0|_backbone)|backbone)/layer_with_weights-(\d+)/(.+)")
"""A layer of the backbone: in a whole classifier, or in a checkpoint of the backbone alone. 0 is the stem."""
_TF_CLASSIFIER = re.compile(r"(?:model/)?layer_with_weights-1/(_head|_classifier)/_conv(?:/_conv)?/(kernel|bias)")
_TF_NO_WEIGHT = re.compile(
    r"_CHECKPOINTABLE_OBJECT_GRAPH|(optimizer|save_counter|global_step)(/|$)|.*/\.OPTIMIZER_SLOT/"
)

_TF_MODULES = {
    "_stem": "stem",
    "_expansion": "expand",
    "_feature": "depthwise",
    "_attention/_se_reduce": "se.reduce",
    "_attention/_se_expand": "se.expand",
    "_projection": "project",
    "_skip/_projection": "skip.projection",
    "_project": "project",
}
_TF_SCALARS = {
    "_mobile_bottleneck/_rezero/scale": "rezero",
    "_attention/_pos_encoding/_rezero/scale": "se.position_scale",
}
_TF_TENSORS = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_TF_PART = re.compile(r"(.+?)/_(conv|batch_norm)(_temporal)?(?:/_conv)?/(\w+)")

_PORT_MODULES = {
    "expand": "expand",
    "deep": "depthwise",
    "deep.conv_2": "temporal",
    "se.fc1": "se.reduce",
    "se.fc2": "se.expand",
    "project": "project",
    "res.0": "skip.projection",
    "res.1": "skip.projection",
}
_PORT_WRAPPERS = {"conv_1", "conv2d", "conv3d"}
"""Modules of the port that only hold another one."""
_PORT_BLOCK = re.compile(r"blocks\.b(\d+)_l(\d+)\.(.+)")
_PORT_PART = re.compile(r"(.+?)(\.norm)?\.(weight|bias|running_mean|running_var)")
_PORT_OUTER = {"conv1": "stem", "conv7": "project"}
_PORT_CLASSIFIER = {"classifier.0": "head", "classifier.3": "classifier"}


def from_tensorflow(names: Iterable[str]) -> dict[str, str | None]:
    """Names in a Model Garden checkpoint -> names here; None where there is none. Leaves out optimizer and counters."""
    return {name: _from_tensorflow(name) for name in names if not _TF_NO_WEIGHT.match(name)}


def _from_tensorflow(name: str) -> str | None:
    path = name.removesuffix(_TF_VARIABLE)
    if match := _TF_CLASSIFIER.fullmatch(path):
        return f"{match[1].removeprefix('_')}.{_TF_TENSORS[match[2]]}"
    if not (match := _TF_NETWORK.fullmatch(path)):
        return None
    # Layer 0 is the stem, and the last is the projection: what is inside tells them apart from the blocks.
    outside = match[2].startswith(("_stem/", "_project/"))
    inside = _tensorflow_part(match[2])
    scope = "movinet." if outside else f"movinet.blocks.{int(match[1]) - 1}."
    return inside and scope + inside


def _tensorflow_part(path: str) -> str | None:
    """``_feature/_conv_temporal/_conv/depthwise_kernel`` -> ``temporal.conv.weight``."""
    if path in _TF_SCALARS:
        return _TF_SCALARS[path]
    match = _TF_PART.fullmatch(path)
    if not match or match[1] not in _TF_MODULES or match[4] not in _TF_TENSORS:
        return None
    module = "temporal" if match[3] else _TF_MODULES[match[1]]
    return _join(module, is_norm=match[2] == "batch_norm", tensor=_TF_TENSORS[match[4]])


def _join(module: str, *, is_norm: bool, tensor: str) -> str:
    """Where a tensor of a module is. The squeeze-excitation has no batch norm, so nothing to tell apart."""
    if module.startswith("se."):
        return f"{module}.{tensor}"
    return f"{module}.{'norm' if is_norm else 'conv'}.{tensor}"


def from_community(names: Iterable[str]) -> dict[str, str | None]:
    """Names in a state dict of the port -> names here; None where there is none. Leaves out the counters of batches."""
    weights = [name for name in names if not name.endswith(".num_batches_tracked")]
    # The port numbers layers within groups; here they are numbered through.
    groups = sorted({(int(match[1]), int(match[2])) for match in map(_PORT_BLOCK.match, weights) if match})
    positions = {group: index for index, group in enumerate(groups)}
    return {name: _from_community(name, positions) for name in weights}


def _from_community(name: str, positions: dict[tuple[int, int], int]) -> str | None:
    path = ".".join(part for part in name.split(".") if part not in _PORT_WRAPPERS)
    if match := _PORT_BLOCK.fullmatch(path):
        inside = "rezero" if match[3] == "alpha" else _community_part(match[3], _PORT_MODULES)
        return inside and f"movinet.blocks.{positions[int(match[1]), int(match[2])]}.{inside}"
    module, _, tensor = path.rpartition(".")
    if module in _PORT_CLASSIFIER:
        return f"{_PORT_CLASSIFIER[module]}.{tensor}"
    inside = _community_part(path, _PORT_OUTER)
    return inside and f"movinet.{inside}"


def _community_part(path: str, modules: dict[str, str]) -> str | None:
    """``deep.conv_2.norm.bias`` -> ``temporal.norm.bias``."""
    match = _PORT_PART.fullmatch(path)
    if not match or match[1] not in modules:
        return None
    return _join(modules[match[1]], is_norm=bool(match[2]), tensor=match[3])
