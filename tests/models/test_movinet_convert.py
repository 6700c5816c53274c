"""Published weights become models of this package: names, layouts, and what is said about weights that do not fit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vidray.errors import UsageError
from vidray.models.movinet.configuration import MoViNetConfig
from vidray.models.movinet.convert import convert_movinet
from vidray.models.movinet.modeling import MoViNetForVideoClassification
from vidray.models.movinet.names import from_community, from_tensorflow
from vidray.models.movinet.tf_checkpoint import TensorFlowCheckpoint
from vidray.models.movinet.variants import VARIANTS

DATA = Path(__file__).parents[1] / "data" / "tf_checkpoint"
"""``numbers``: written by TensorFlow 2.21. ``*.names``: what it calls the tensors of two real MoViNets."""
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
TF_LAYER_PATHS = {
    "expand": "_expansion",
    "depthwise": "_feature",
    "temporal": "_feature",
    "se.reduce": "_attention/_se_reduce",
    "se.expand": "_attention/_se_expand",
    "project": "_projection",
    "skip.projection": "_skip/_projection",
}
TF_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
PORT_LAYER_PATHS = {
    "expand": "expand.conv_1",
    "depthwise": "deep.conv_1",
    "temporal": "deep.conv_2",
    "se.reduce": "se.fc1.conv_1",
    "se.expand": "se.fc2.conv_1",
    "project": "project.conv_1",
}
PORT_HEADS = {"head": "classifier.0", "classifier": "classifier.3"}


def build(*, stream: bool, variant: str = "a0") -> MoViNetForVideoClassification:
    """A model in which no tensor is as a new model has it."""
    config = MoViNetConfig(variant=variant, stream=stream, num_labels=6)
    model = MoViNetForVideoClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in weights_of(model).items():
            if name.endswith(("running_var", "norm.weight", "rezero", "position_scale")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.1, generator=generator)
    return model


def weights_of(model: MoViNetForVideoClassification) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def tensorflow_name(name: str, *, stream: bool, num_layers: int) -> str:
    """What the Model Garden calls our tensor."""
    conv = "_conv/_conv" if stream else "_conv"
    module, _, tensor = name.rpartition(".")
    kernel = {"weight": "kernel", "bias": "bias"}
    if module in ("head", "classifier"):
        return f"model/layer_with_weights-1/_{module}/{conv}/{kernel[tensor]}"
    parts = module.removeprefix("movinet.").split(".")
    if parts[0] == "blocks":
        index, inner = int(parts[1]) + 1, ".".join(parts[2:])
    else:
        index, inner = (0 if parts[0] == "stem" else num_layers + 1), ".".join(parts)
    path = f"model/layer_with_weights-0/layer_with_weights-{index}/"
    if tensor == "rezero":
        return f"{path}_mobile_bottleneck/_rezero/scale"
    if tensor == "position_scale":
        return f"{path}_attention/_pos_encoding/_rezero/scale"
    if inner.startswith("se."):
        return f"{path}{TF_LAYER_PATHS[inner]}/{conv}/{kernel[tensor]}"
    layer, _, part = inner.rpartition(".")
    scope = TF_LAYER_PATHS[layer] if index not in (0, num_layers + 1) else f"_{layer}"
    temporal = "_temporal" if layer == "temporal" else ""
    if part == "norm":
        return f"{path}{scope}/_batch_norm{temporal}/{TF_NORM[tensor]}"
    depthwise = "depthwise_" if stream and layer in ("depthwise", "temporal") else ""
    return f"{path}{scope}/{conv.replace('_conv', f'_conv{temporal}', 1)}/{depthwise}kernel"


def tensorflow_value(name: str, tensor: Tensor, *, stream: bool) -> np.ndarray:
    """Our tensor as TensorFlow lays it out."""
    value = tensor.numpy()
    if name.endswith(("rezero", "position_scale")):
        return value.reshape(())
    if value.ndim == 2:  # a dense layer here is a convolution there
        value = value[..., None, None, None]
    if value.ndim != 5:
        return value
    if not stream:
        return np.einsum("oithw->thwio", value)
    if ".temporal." in name:
        return np.einsum("oithw->twoi", value)
    return np.einsum("oithw->hwoi" if ".depthwise." in name else "oithw->hwio", value)


def port_name(name: str, *, stream: bool, groups: list[int], strided: set[int]) -> str:
    """What the community's port calls our tensor. ``groups``: layers of each; ``strided``: layers that stride."""
    kind = "conv2d" if stream else "conv3d"
    module, _, tensor = name.rpartition(".")
    if module in PORT_HEADS:
        return f"{PORT_HEADS[module]}.conv_1.{kind}.{tensor}"
    parts = module.removeprefix("movinet.").split(".")
    if parts[0] != "blocks":
        scope = {"stem": "conv1", "project": "conv7"}[parts[0]]
        return f"{scope}.conv_1.{kind if parts[1] == 'conv' else 'norm'}.{tensor}"
    layer, group = int(parts[1]), 0
    while layer >= groups[group]:
        layer, group = layer - groups[group], group + 1
    path, inner = f"blocks.b{group}_l{layer}.", ".".join(parts[2:])
    if tensor == "rezero":
        return f"{path}alpha"
    if inner.startswith("se."):
        return f"{path}{PORT_LAYER_PATHS[inner]}.{kind}.{tensor}"
    inner, _, part = inner.rpartition(".")
    scope = PORT_LAYER_PATHS.get(inner) or f"res.{int(int(parts[1]) in strided)}.conv_1"
    return f"{path}{scope}.{kind if part == 'conv' else 'norm'}.{tensor}"


def port_value(name: str, tensor: Tensor, *, stream: bool) -> Tensor:
    """Our tensor in the port's shape."""
    if name.endswith("rezero"):
        return tensor.reshape(())
    if tensor.ndim == 2:
        return tensor[..., None, None] if stream else tensor[..., None, None, None]
    if stream and tensor.ndim == 5:
        return tensor[..., 0] if ".temporal." in name else tensor[:, :, 0]
    return tensor


def save_port(model: MoViNetForVideoClassification, path: Path) -> dict[str, Tensor]:
    """The state dict that the port would save for the same network."""
    stream = model.config.stream
    groups = [len(layers) for layers in layers_of_groups(model)]
    strided = {index for index, spec in enumerate(model.movinet.specs) if spec.stride > 1}
    tensors = {
        port_name(name, stream=stream, groups=groups, strided=strided): port_value(name, tensor, stream=stream).clone()
        for name, tensor in weights_of(model).items()
    }
    tensors["conv1.conv_1.norm.num_batches_tracked"] = torch.tensor(7)
    torch.save(tensors, path)
    return tensors


def layers_of_groups(model: MoViNetForVideoClassification) -> list[list[str]]:
    """The layers of each group, counted from the table's text: ``280b*2`` are two."""
    groups = [group.partition(":")[2].split() for group in VARIANTS[model.config.variant].blocks.split("|")]
    return [[layer for layer in group for _ in range(int(layer.partition("*")[2] or 1))] for group in groups]


def save_tensorflow(model: MoViNetForVideoClassification, prefix: Path, **changes: np.ndarray | None) -> list[str]:
    """The checkpoint that the Model Garden would save for the same network. Returns its names."""
    options = {"stream": model.config.stream}
    num_layers = len(model.movinet.specs)
    tensors = {
        tensorflow_name(name, num_layers=num_layers, **options): tensorflow_value(name, tensor, **options)
        for name, tensor in weights_of(model).items()
    }
    names = list(tensors)
    tensors["save_counter"] = np.array(1, np.int64)
    tensors["optimizer/iter"] = np.array(1, np.int64)
    tensors[f"{names[0]}/.OPTIMIZER_SLOT/optimizer/momentum"] = np.zeros(3, np.float32)
    tensors |= changes
    write_bundle(prefix, {name + SUFFIX: value for name, value in tensors.items() if value is not None})
    return names


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block of a LevelDB table, without shared prefixes."""
    body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in entries)
    return body + struct.pack("<II", 0, 1)


def write_bundle(prefix: Path, tensors: dict[str, np.ndarray], *, entries_per_block: int = 100) -> None:
    """A TensorFlow checkpoint, with an index of several blocks."""
    data, entries = bytearray(), [(b"", field(1, 1))]
    for name, value in sorted(tensors.items()):
        code = {"float32": 1, "int64": 9}[value.dtype.name]
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        entry = field(1, code) + field(2, shape) + field(4, len(data)) + field(5, value.nbytes)
        entries.append((name.encode(), entry))
        data += value.tobytes()
    table, handles = b"", []
    for start in range(0, len(entries), entries_per_block):
        content = block(entries[start : start + entries_per_block])
        handles.append((entries[start : start + entries_per_block][-1][0], varint(len(table)) + varint(len(content))))
        table += content + bytes(5)
    index = block(handles)
    footer = (varint(0) + varint(0) + varint(len(table)) + varint(len(index))).ljust(40, b"\0")
    table += index + bytes(5) + footer + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(prefix.name + ".index").write_bytes(table)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)


def assert_same(converted: MoViNetForVideoClassification, model: MoViNetForVideoClassification) -> None:
    expected, got = weights_of(model), weights_of(converted)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert converted.config.activation == model.config.activation
    assert converted.config.position_encoding == model.config.position_encoding
    assert not converted.training


def test_reads_what_tensorflow_wrote():
    checkpoint = TensorFlowCheckpoint(DATA / "numbers")
    assert len(checkpoint.names) == 29
    for index in range(12):
        kernel = checkpoint.read(f"layer_{index}/kernel{SUFFIX}")
        np.testing.assert_array_equal(kernel, np.arange(24, dtype=np.float32).reshape(2, 3, 4) + 100 * index)
        assert kernel.dtype == np.float32
        assert checkpoint.read(f"layer_{index}/scale{SUFFIX}") == index / 4
    assert checkpoint.read(f"count{SUFFIX}") == 2**40 + 7
    assert checkpoint.read(f"half{SUFFIX}").tolist() == [0.5, -2]
    assert checkpoint.read(f"flag{SUFFIX}").tolist() == [True, False]
    assert checkpoint.read(f"empty{SUFFIX}").shape == (0, 3)


def test_says_what_it_cannot_read():
    with pytest.raises(ValueError, match="has the TensorFlow dtype 7"):
        TensorFlowCheckpoint(DATA / "numbers").read("_CHECKPOINTABLE_OBJECT_GRAPH")


@pytest.mark.parametrize("damage", [lambda index: index[:-1], lambda index: b"", lambda index: b"x" * 1000])
def test_damaged_index_is_refused(damage, tmp_path: Path):
    (tmp_path / "ckpt.index").write_bytes(damage((DATA / "numbers.index").read_bytes()))
    with pytest.raises(ValueError, match="is not the index of a TensorFlow checkpoint, or is damaged"):
        TensorFlowCheckpoint(tmp_path / "ckpt")


def test_short_data_file_is_refused(tmp_path: Path):
    for path in DATA.glob("numbers.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[: None if path.suffix == ".index" else 500])
    with pytest.raises(ValueError, match=r"layer_9/kernel.* should have 96 bytes, got 0"):
        TensorFlowCheckpoint(tmp_path / "numbers").read(f"layer_9/kernel{SUFFIX}")


@pytest.mark.parametrize(("variant", "stream"), [("a0", False), ("a3", True)])
def test_every_name_in_a_real_checkpoint_has_its_tensor(variant, stream):
    names = (DATA / f"movinet_{variant}_{'stream' if stream else 'base'}.names").read_text().split()
    with torch.device("meta"):
        expected = weights_of(MoViNetForVideoClassification(MoViNetConfig(variant=variant, stream=stream)))
    ours = from_tensorflow(name + SUFFIX for name in names)
    assert sorted(ours.values()) == sorted(expected)
    # And the checkpoints that these tests write have the same names as the real ones.
    num_layers = len(MoViNetConfig(variant=variant).layers())
    assert {tensorflow_name(name, stream=stream, num_layers=num_layers) for name in expected} == set(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backbone/layer_with_weights-3/_expansion/_conv/kernel", "movinet.blocks.2.expand.conv.weight"),
        ("model/_backbone/layer_with_weights-0/_stem/_batch_norm/gamma", "movinet.stem.norm.weight"),
        ("model/layer_with_weights-0/layer_with_weights-3/_expansion/_pool/kernel", None),
        ("model/layer_with_weights-2/_head/_conv/kernel", None),
    ],
)
def test_tensorflow_names(name, expected):
    assert from_tensorflow([name + SUFFIX]) == {name + SUFFIX: expected}


def test_community_names_that_are_unknown_have_none():
    assert from_community(["blocks.b0_l0.deep.conv_1.conv3d.weight", "blocks.b0_l0.surplus.weight", "cgap.x"]) == {
        "blocks.b0_l0.deep.conv_1.conv3d.weight": "movinet.blocks.0.depthwise.conv.weight",
        "blocks.b0_l0.surplus.weight": None,
        "cgap.x": None,
    }


@pytest.mark.parametrize(("variant", "stream"), [("a0", False), ("a0", True), ("a3", True)])
def test_tensorflow_checkpoint_becomes_the_same_model(variant, stream, tmp_path: Path):
    model = build(variant=variant, stream=stream)
    save_tensorflow(model, tmp_path / "ckpt-1")
    assert_same(convert_movinet(tmp_path / "ckpt-1"), model)


def test_tensorflow_checkpoint_is_found_by_its_index_and_by_its_folder(tmp_path: Path):
    model = build(stream=False)
    save_tensorflow(model, tmp_path / "ckpt-1")
    assert_same(convert_movinet(tmp_path / "ckpt-1.index", variant="a0", stream=False), model)
    assert_same(convert_movinet(tmp_path), model)


@pytest.mark.parametrize(("variant", "stream"), [("a0", False), ("a0", True), ("a3", False)])
def test_state_dict_of_the_port_becomes_the_same_model(variant, stream, tmp_path: Path):
    model = build(variant=variant, stream=stream)
    tensors = save_port(model, tmp_path / "weights")
    # A3 changes its width where it does not stride: there the port has no pooling before the projection.
    assert ("blocks.b3_l0.res.0.conv_1.norm.bias" in tensors) == (variant == "a3")
    assert_same(convert_movinet(tmp_path / "weights"), model)


def test_labels_come_in_the_order_of_the_logits(tmp_path: Path):
    save_port(build(stream=False), tmp_path / "weights")
    config = convert_movinet(tmp_path / "weights", labels=["a", "b", "c", "d", "e", "f"]).config
    assert config.id2label == dict(enumerate("abcdef"))
    assert config.label2id["f"] == 5
    with pytest.raises(UsageError, match="the weights are for 6 classes, got 2 labels"):
        convert_movinet(tmp_path / "weights", labels=["left", "right"])


def test_what_does_not_fit_is_named(tmp_path: Path):
    model = build(stream=False)
    scale = "model/layer_with_weights-0/layer_with_weights-4/_mobile_bottleneck/_rezero/scale"
    stem = "model/layer_with_weights-0/layer_with_weights-0/_stem/_conv/kernel"
    bias = "model/layer_with_weights-1/_head/_conv/bias"
    save_tensorflow(model, tmp_path / "ckpt", **{stem: np.zeros((1, 3, 3, 3, 16), np.float32), bias: None})
    with pytest.raises(UsageError) as error:
        convert_movinet(tmp_path / "ckpt")
    assert "does not fit MoViNet a0 base:" in str(error.value)
    assert "missing head.bias" in str(error.value)
    assert "movinet.stem.conv.weight has shape (16, 3, 1, 3, 3), needs (8, 3, 1, 3, 3)" in str(error.value)
    save_tensorflow(model, tmp_path / "ckpt", **{f"{stem}_2": np.zeros(1, np.float32)})
    with pytest.raises(UsageError, match=r"a MoViNet has no such tensors:\n  model/.*_stem/_conv/kernel_2/"):
        convert_movinet(tmp_path / "ckpt")
    save_tensorflow(model, tmp_path / "ckpt", **{scale: None})
    with pytest.raises(UsageError, match=r"the weights have 14 layers, MoViNets have .*15: 'a0'"):
        convert_movinet(tmp_path / "ckpt")


def test_another_network_than_asked_for_is_refused(tmp_path: Path):
    save_port(build(stream=False), tmp_path / "weights")
    with pytest.raises(UsageError, match="has the weights of MoViNet a0 base, MoViNet a2 base was asked for"):
        convert_movinet(tmp_path / "weights", variant="a2")
    with pytest.raises(UsageError, match="has the weights of MoViNet a0 base, MoViNet a0 stream was asked for"):
        convert_movinet(tmp_path / "weights", stream=True)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04broken"])
def test_file_that_holds_no_weights_is_refused(content, tmp_path: Path):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read weights from"):
        convert_movinet(tmp_path / "weights")


def test_folder_without_one_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="must hold one TensorFlow checkpoint, has"):
        convert_movinet(tmp_path)
    with pytest.raises(UsageError, match="cannot read weights from"):
        convert_movinet(tmp_path / "absent")
