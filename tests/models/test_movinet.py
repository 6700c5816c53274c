"""MoViNet: its size, its padding, its streaming, and how Transformers saves and loads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForVideoClassification

from tests.support.closeness import FLOAT64_ROUNDING, assert_differs, assert_same
from vidray.models.movinet.configuration import MoViNetConfig
from vidray.models.movinet.layers import Skip, position_encoding, same_padding
from vidray.models.movinet.modeling import MoViNetForVideoClassification
from vidray.models.movinet.state import StreamState
from vidray.models.movinet.variants import VARIANTS, LayerSpec, parse_blocks

pytestmark = pytest.mark.usefixtures("one_thread")

TINY_BLOCKS = "8:24d 16b|16:32c 40c|24:48b 40d"
"""Every way around a layer, kernels of 1, 3 and 5 frames, and odd sizes on the way down."""
PUBLISHED_COUNTS = {  # base: all values, trainable ones; stream: all values
    "a0": (3_126_071, 3_111_799, 3_765_983),
    "a1": (4_717_912, 4_690_296, 6_481_560),
    "a2": (5_280_922, 5_249_562, 7_366_050),
    "a3": (7_443_289, 7_397_545, 11_043_146),
    "a4": (11_422_727, 11_349_463, 18_228_326),
    "a5": (18_763_355, 18_650_523, 31_636_734),
}


def build(*, stream: bool, seed: int = 0, num_labels: int = 5, **options) -> MoViNetForVideoClassification:
    torch.manual_seed(seed)
    return MoViNetForVideoClassification(MoViNetConfig(stream=stream, num_labels=num_labels, **options))


def tiny(*, stream: bool, **options) -> MoViNetForVideoClassification:
    return build(stream=stream, **{"blocks": TINY_BLOCKS, "project_channels": 48, "hidden_size": 64, **options})


def awaken(model: MoViNetForVideoClassification) -> MoViNetForVideoClassification:
    """Makes every layer count: at its start ReZero hides all of them, and batch norm has seen nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("rezero", "position_scale")):
                parameter.uniform_(0.5, 1.0)
            elif name.startswith("classifier"):
                parameter.normal_(0, 0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None  # the mean of all batches
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(2, 6, 3, 40, 40))
    return model.eval()


def random_frames(*shape: int) -> Tensor:
    """In float64: between two ways to the same logits no mistake hides below its rounding, on any processor."""
    return torch.rand(shape, dtype=torch.float64)


def stream_in_chunks(model, frames: Tensor, chunks: list[int], *, forget=lambda state: state) -> Tensor:
    """Logits after the last chunk; ``forget`` is applied to each state on its way."""
    assert sum(chunks) == frames.shape[1]
    state = None
    for chunk in frames.split(chunks, dim=1):
        logits, state = model.forward_stream(chunk, state if state is None else forget(state))
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_are_the_published_ones(variant):
    def count(*, stream):
        with torch.device("meta"):
            model = build(variant=variant, stream=stream, num_labels=600)
        values = [t.numel() for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")]
        return sum(values), sum(parameter.numel() for parameter in model.parameters())

    assert (*count(stream=False), count(stream=True)[0]) == PUBLISHED_COUNTS[variant]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(6, 3, 1, (1, 1)), (6, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (6, 5, 2, (1, 2)), (7, 5, 2, (2, 2)), (1, 3, 2, (1, 1))],
)
def test_padding_is_tensorflows_same(size, kernel, stride, expected):
    assert same_padding(size, kernel=kernel, stride=stride) == expected


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 7), (6, 7), (5, 2), (1, 3)])
def test_skip_averages_the_pixels_that_exist(height, width):
    image = np.random.default_rng(0).normal(size=(height, width))
    expected = np.empty((-(-height // 2), -(-width // 2)))
    for row in range(expected.shape[0]):
        for column in range(expected.shape[1]):
            top, left = 2 * row - height % 2, 2 * column - width % 2
            expected[row, column] = image[max(top, 0) : top + 3, max(left, 0) : left + 3].mean()
    spec = LayerSpec(in_channels=1, expand_channels=8, out_channels=1, kernel_frames=1, kernel_pixels=3, stride=2)
    pooled = Skip(spec)._pool(torch.from_numpy(image)[None, None, None])
    assert_same(pooled[0, 0, 0], expected, relative=FLOAT64_ROUNDING)


def test_position_encoding_is_sines_then_cosines_of_the_frame_number():
    encoding = position_encoding(torch.tensor([[0, 7]]), channels=4, dtype=torch.float64)
    expected = [[0, 0, 1, 1], [np.sin(7), np.sin(7 / 100), np.cos(7), np.cos(7 / 100)]]
    assert_same(encoding[0], expected, relative=FLOAT64_ROUNDING)


def test_block_notation_gives_the_layers_it_describes():
    first, second, third = parse_blocks("8:24b|32:80c*2", stem_channels=4)
    assert dataclasses.astuple(first) == (4, 24, 8, 1, 5, 2)
    assert dataclasses.astuple(second) == (8, 80, 32, 3, 3, 2)
    assert dataclasses.astuple(third) == (32, 80, 32, 3, 3, 1)


@pytest.mark.parametrize("blocks", ["", "8", "8:", "8:24", "8:24e", "8:24b*", "x:24b", "8:24b||8:24b"])
def test_block_notation_that_is_wrong_is_refused_with_an_example(blocks):
    with pytest.raises(ValueError, match=r"written like '32:80c\*3 96d'"):
        MoViNetConfig(blocks=blocks)


def test_config_says_what_is_allowed():
    with pytest.raises(ValueError, match=r"variant must be one of \['a0', .*'a5'\], got 'a6'"):
        MoViNetConfig(variant="a6")
    with pytest.raises(ValueError, match=r"activation must be one of .*'swish'.*, got 'relu'"):
        MoViNetConfig(activation="relu")
    with pytest.raises(ValueError, match="position_encoding needs stream=True"):
        MoViNetConfig(position_encoding=True)


@pytest.mark.parametrize(
    ("stream", "shape"), [(False, (1, 1, 3, 32, 32)), (True, (1, 1, 3, 7, 2)), (False, (2, 5, 3, 33, 47))]
)
def test_any_number_and_size_of_frames_gives_logits(stream, shape):
    model = tiny(stream=stream).eval()
    with torch.no_grad():
        logits = model(pixel_values=torch.rand(shape)).logits
    assert logits.shape == (shape[0], 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 4, 32, 32), (1, 0, 3, 32, 32)])
def test_frames_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(batch, frames, 3, height, width\)"):
        tiny(stream=True)(torch.zeros(shape))


def test_base_network_refuses_to_stream():
    model = tiny(stream=False)
    with pytest.raises(ValueError, match="stream=True"):
        model.forward_stream(torch.zeros(1, 1, 3, 32, 32))
    with pytest.raises(ValueError, match="stream=True"):
        model.initial_state(batch_size=1, height=32, width=32)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"variant": "a0"}, (2, 11, 3, 48, 40)),
        ({"blocks": TINY_BLOCKS, "position_encoding": True}, (2, 11, 3, 37, 50)),
    ],
    ids=["a0", "tiny with position encoding"],
)
def test_one_shot_equals_frame_by_frame_equals_uneven_chunks(options, shape):
    model, frames = awaken(build(stream=True, **options)).double(), random_frames(*shape)
    with torch.no_grad():
        one_shot = model(frames).logits
        for chunks in ([11], [1] * 11, [1, 5, 2, 3], [4, 6, 1]):
            assert_same(stream_in_chunks(model, frames, chunks), one_shot, relative=FLOAT64_ROUNDING)


def zero(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None else torch.zeros_like(tensor)


def without_buffers(state: StreamState) -> StreamState:
    layers = [dataclasses.replace(layer, buffer=zero(layer.buffer)) for layer in state.layers]
    return dataclasses.replace(state, layers=tuple(layers))


def without_sums(state: StreamState) -> StreamState:
    layers = [dataclasses.replace(layer, pooled_sum=zero(layer.pooled_sum)) for layer in state.layers]
    return dataclasses.replace(state, layers=tuple(layers))


def without_head_sum(state: StreamState) -> StreamState:
    return dataclasses.replace(state, head_sum=zero(state.head_sum))


def without_count(state: StreamState) -> StreamState:
    return dataclasses.replace(state, num_frames=zero(state.num_frames))


@pytest.mark.parametrize("forget", [without_buffers, without_sums, without_head_sum, without_count])
def test_every_part_of_the_state_is_needed(forget):
    model = awaken(tiny(stream=True, position_encoding=True)).double()
    frames = random_frames(2, 11, 3, 40, 40)
    with torch.no_grad():
        one_shot = model(frames).logits
        forgetful = stream_in_chunks(model, frames, [1, 5, 2, 3], forget=forget)
    assert_differs(forgetful, one_shot, relative=FLOAT64_ROUNDING, factor=1e8)


def test_videos_at_different_frames_share_a_batch():
    model = awaken(tiny(stream=True, position_encoding=True)).double()
    first, second = random_frames(1, 9, 3, 40, 40), random_frames(1, 6, 3, 40, 40)
    with torch.no_grad():
        _, ahead = model.forward_stream(first[:, :5])
        _, behind = model.forward_stream(second[:, :2])
        logits, state = model.forward_stream(torch.cat([first[:, 5:], second[:, 2:]]), StreamState.cat([ahead, behind]))
        alone = torch.cat([model(first).logits, model(second).logits])
    assert_same(logits, alone, relative=FLOAT64_ROUNDING)
    assert_differs(alone[0], alone[1], relative=FLOAT64_ROUNDING, factor=1e8)
    assert [part.num_frames.tolist() for part in state.split()] == [[9], [6]]


def test_reset_makes_room_for_another_video():
    model = awaken(tiny(stream=True, position_encoding=True)).double()
    before, after = random_frames(2, 4, 3, 40, 40), random_frames(2, 5, 3, 40, 40)
    with torch.no_grad():
        _, state = model.forward_stream(before)
        logits, _ = model.forward_stream(after, state.reset(torch.tensor([False, True])))
        anew, _ = model.forward_stream(after, state.reset())
        expected = torch.cat([model(torch.cat([before[:1], after[:1]], 1)).logits, model(after[1:]).logits])
        without_reset, _ = model.forward_stream(after, state)
        assert_same(logits, expected, relative=FLOAT64_ROUNDING)
        assert_same(anew, model(after).logits, relative=FLOAT64_ROUNDING)
        assert_differs(without_reset, anew, relative=FLOAT64_ROUNDING, factor=1e8)
    with pytest.raises(ValueError, match=r"must be \(2,\) bool"):
        state.reset(torch.tensor([1, 0]))


def test_state_goes_through_a_file(tmp_path: Path):
    model = awaken(tiny(stream=True)).double()
    frames = random_frames(2, 8, 3, 40, 40)
    with torch.no_grad():
        _, state = model.forward_stream(frames[:, :3])
        save_file(state.map(torch.Tensor.contiguous).to_tensors(), tmp_path / "state.safetensors")
        loaded = StreamState.from_tensors(load_file(tmp_path / "state.safetensors"))
        expected, _ = model.forward_stream(frames[:, 3:], state)
        logits, _ = model.forward_stream(frames[:, 3:], loaded)
    saved, read = state.to_tensors(), loaded.to_tensors()
    assert all(torch.equal(read.pop(name), tensor) for name, tensor in saved.items())
    assert read == {}
    assert_same(logits, expected, relative=FLOAT64_ROUNDING)


def test_tensors_that_are_no_state_are_named():
    tensors = tiny(stream=True).initial_state(batch_size=1, height=32, width=32).to_tensors()
    tensors["surplus"] = tensors.pop("head_sum")
    with pytest.raises(ValueError, match=r"missing \['head_sum'\], unknown \['surplus'\]"):
        StreamState.from_tensors(tensors)


def test_state_of_other_videos_is_refused():
    model = tiny(stream=True).eval()
    state = model.initial_state(batch_size=1, height=32, width=32)
    with pytest.raises(ValueError, match="batch size and frame size must stay the same"):
        model.forward_stream(torch.rand(2, 1, 3, 32, 32), state)
    with pytest.raises(ValueError, match=r"layers.0.buffer has shape .* these frames need"):
        model.forward_stream(torch.rand(1, 1, 3, 48, 32), state)


def test_state_takes_the_same_memory_however_long_the_video():
    model = tiny(stream=True).eval()

    def allocated(state: StreamState) -> list[int]:
        # Of the storage, not of the tensor: a view of a chunk's frames would keep all of them.
        return [tensor.untyped_storage().nbytes() for tensor in state.to_tensors().values()]

    start = model.initial_state(batch_size=1, height=32, width=32)
    with torch.no_grad():
        _, after_one = model.forward_stream(torch.rand(1, 1, 3, 32, 32))
        _, after_many = model.forward_stream(torch.rand(1, 40, 3, 32, 32), after_one)
    assert allocated(start) == allocated(after_one) == allocated(after_many)


def test_half_precision_sums_in_float32():
    model = awaken(tiny(stream=True)).to(torch.bfloat16)
    with torch.no_grad():
        logits, state = model.forward_stream(torch.rand(1, 3, 3, 40, 40, dtype=torch.bfloat16))
        logits, state = model.forward_stream(torch.rand(1, 3, 3, 40, 40, dtype=torch.bfloat16), state)
    assert logits.dtype == torch.bfloat16
    assert {state.head_sum.dtype, *(layer.pooled_sum.dtype for layer in state.layers)} == {torch.float32}


@pytest.mark.parametrize("stream", [False, True])
def test_gradient_reaches_every_parameter(stream):
    model = awaken(tiny(stream=stream, position_encoding=stream)).train()
    model(torch.rand(2, 6, 3, 40, 40), labels=torch.tensor([0, 3])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradient_flows_through_the_state_until_it_is_detached():
    model = awaken(tiny(stream=True))
    frames = torch.rand(1, 3, 3, 40, 40, requires_grad=True)
    _, state = model.forward_stream(frames)
    logits, _ = model.forward_stream(torch.rand(1, 2, 3, 40, 40), state)
    (gradient,) = torch.autograd.grad(logits.sum(), frames, retain_graph=True)
    assert (gradient.abs().amax((0, 2, 3, 4)) > 0).all()
    logits, _ = model.forward_stream(torch.rand(1, 2, 3, 40, 40), state.detach())
    (gradient,) = torch.autograd.grad(logits.sum(), frames, allow_unused=True)
    assert gradient is None


def moving_squares(generator: torch.Generator, num_videos: int) -> tuple[Tensor, Tensor]:
    """Squares that move left (0) or right (1), from anywhere, around the edge: one frame does not tell which."""
    labels = torch.randint(2, (num_videos,), generator=generator)
    frames = torch.zeros(num_videos, 6, 3, 24, 24)
    for video, label in enumerate(labels.tolist()):
        top, left = torch.randint(24, (2,), generator=generator).tolist()
        for index in range(6):
            rows, columns = (top + torch.arange(8)) % 24, (left + (3 if label else -3) * index + torch.arange(8)) % 24
            frames[video, index, :, rows[:, None], columns] = 1
    return frames, labels


@pytest.mark.parametrize("stream", [False, True])
def test_learns_which_way_things_move(stream):
    model = tiny(stream=stream, num_labels=2, dropout_rate=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(40):
        frames, labels = moving_squares(generator, 16)
        loss = model(frames, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert sum(losses[-5:]) / 5 < 0.2  # it is below 0.001, also where all weights begin 1e-5 off


def test_drop_path_skips_layers_in_training_only():
    model = awaken(tiny(stream=False, drop_path_rate=0.9, dropout_rate=0.0))
    frames = torch.rand(1, 4, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(model(frames).logits, model(frames).logits)
        for block in model.movinet.blocks:
            block.drop_path.train()  # this alone, so that batch norm stays as it is
        assert not torch.equal(model(frames).logits, model(frames).logits)


@pytest.mark.parametrize("stream", [False, True])
def test_saved_and_loaded_is_the_same_network(stream, tmp_path: Path):
    model = awaken(tiny(stream=stream, position_encoding=stream))
    model.save_pretrained(tmp_path)
    loaded, state = AutoModelForVideoClassification.from_pretrained(tmp_path), model.state_dict()
    assert not loaded.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    frames = random_frames(1, 4, 3, 40, 40)
    with torch.no_grad():
        assert_same(loaded.double()(frames).logits, model.double()(frames).logits, relative=FLOAT64_ROUNDING)


def test_config_keeps_a_value_that_is_another_variants_default(tmp_path: Path):
    MoViNetConfig(variant="a2", image_size=172, id2label={0: "left", 1: "right", 2: "up"}).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.variant, config.image_size, config.num_labels) == ("a2", 172, 3)
    assert config.blocks == VARIANTS["a2"].blocks


def test_new_network_starts_as_it_should():
    model = build(stream=True, variant="a3", num_labels=400)
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
        if name.endswith(("rezero", "position_scale", "running_mean", "norm.bias")):
            assert (tensor == 0).all(), name
        elif name.endswith(("running_var", "norm.weight")):
            assert (tensor == 1).all(), name
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (model.classifier.bias == 0).all()


def test_new_head_is_fresh_and_the_rest_is_as_saved(tmp_path: Path):
    model = awaken(tiny(stream=True, position_encoding=True, hidden_size=512))
    model.save_pretrained(tmp_path)
    loaded = MoViNetForVideoClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape == (7, 512)
    assert loaded.classifier.weight.isfinite().all()
    assert loaded.classifier.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (loaded.classifier.bias == 0).all()
    state = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(tensor, state[name]), name
