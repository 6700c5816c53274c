"""Compares our MoViNets with the TensorFlow Model Garden's, and prints a table (docs/movinet_parity.md holds one).

    python -m venv /tmp/tensorflow
    /tmp/tensorflow/bin/pip install --no-deps -r scripts/movinet_parity_requirements.txt
    python scripts/movinet_parity.py --tensorflow-python /tmp/tensorflow/bin/python

For each network, a process in the other environment builds the original with random weights, random batch-norm
statistics and non-zero ReZero, saves its checkpoint, and computes logits on random frames. This process converts the
checkpoint with ``vidray.models.movinet.convert`` and computes them too. Exits with 1 if they differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4
VARIANTS = ("a0", "a1", "a2", "a3", "a4", "a5")
SMALL_INPUT = (2, 7, 64, 49, 3)
"""(B, T, H, W, C). Height and width differ, and get odd and even on the way down, for the sake of the padding."""
SMALLEST_INPUT = (1, 6, 45, 58, 3)
"""For A3 to A5."""
POSITION_ENCODED = ("a3", "a4", "a5")
NUM_CLASSES = 600


def main() -> None:
    """Parses and calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensorflow-python", help="python of the environment that has the Model Garden")
    parser.add_argument("--networks", nargs="*", help="like a0-base a3-stream; all if left out")
    parser.add_argument("--keep", type=Path, help="folder for what the original gives, to be used again if it is there")
    parser.add_argument("--write-reference", nargs=2, metavar=("NETWORK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_reference:
        write_reference(*options.write_reference)
    elif options.tensorflow_python:
        names = options.networks or [f"{variant}-{kind}" for kind in ("base", "stream") for variant in VARIANTS]
        with tempfile.TemporaryDirectory() as temporary:
            sys.exit(compare_all(options.tensorflow_python, names, options.keep or Path(temporary)))
    else:
        parser.error("--tensorflow-python is required")


def compare_all(tensorflow_python: str, names: list[str], references: Path) -> int:
    """Prints the table; 1 if a row is beyond the tolerance."""
    print(
        "| network | parameters | input (B, T, H, W) | how | logits, std | largest difference | float32 | no ReZero |"
    )
    print("|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for name in names:
        folder = references / name
        if not (folder / "reference.npz").exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = [tensorflow_python, __file__, "--write-reference", name, str(folder)]
            subprocess.run(command, check=True, stderr=subprocess.PIPE, env=os.environ | {"TF_USE_LEGACY_KERAS": "1"})
        worst = max(worst, compare(name, folder))
    print(f"\nLargest difference of all: {worst:.1e}; allowed: {TOLERANCE:.0e}.")
    return int(not worst <= TOLERANCE)


def compare(name: str, folder: Path) -> float:
    """Prints the rows of one network, and returns the largest difference."""
    import torch

    from vidray.models.movinet.convert import convert_movinet

    variant, _, kind = name.partition("-")
    model = convert_movinet(folder / "ckpt-1", variant=variant, stream=kind == "stream")
    state = model.state_dict()
    num_parameters = sum(tensor.numel() for key, tensor in state.items() if not key.endswith("num_batches_tracked"))
    reference = np.load(folder / "reference.npz")
    frames = torch.from_numpy(reference["frames"]).permute(0, 1, 4, 2, 3)
    results = compute(model, frames, stream=kind == "stream")
    exact = compute(model.double(), frames.double(), stream=kind == "stream")
    for block in model.movinet.blocks:
        block.rezero.detach().zero_()
    without = compute(model, frames.double(), stream=kind == "stream")
    shape = " × ".join(str(size) for size in reference["frames"].shape[:4])
    worst = 0.0
    for how, logits in results.items():
        expected = reference[how]
        difference = float(np.abs(logits - expected).max())
        rounding, residual = (float(np.abs(other - exact[how]).max()) for other in (logits, without[how]))
        row = f"| {name} | {num_parameters:,} | {shape} | {how} | {expected.std():.2f} | {difference:.1e} |"
        print(f"{row} {rounding:.1e} | {residual:.1f} |", flush=True)
        worst = max(worst, difference)
    return worst


def compute(model: Any, frames: Any, *, stream: bool) -> dict[str, np.ndarray]:
    """Our logits, by the ways to get them."""
    import torch

    with torch.inference_mode():
        results = {"one shot": model(frames).logits}
        if stream:
            results["frame by frame"] = frame_by_frame(model, frames)
    return {how: logits.numpy() for how, logits in results.items()}


def frame_by_frame(model: Any, frames: Any) -> Any:
    """Logits after each frame, (T, B, classes)."""
    import torch

    state, logits = None, []
    for frame in frames.split(1, dim=1):
        after_frame, state = model.forward_stream(frame, state)
        logits.append(after_frame)
    return torch.stack(logits)


def write_reference(name: str, folder: str) -> None:
    """In the TensorFlow environment: the original's checkpoint and its logits on random frames."""
    import tensorflow as tf

    variant, _, kind = name.partition("-")
    stream = kind == "stream"
    rng = np.random.default_rng(int.from_bytes(name.encode(), "little"))
    frames = rng.random(SMALL_INPUT if variant in ("a0", "a1", "a2") else SMALLEST_INPUT, dtype=np.float32)
    model, backbone = build_original(variant, stream=stream)
    randomise(model, rng)
    # Without XLA, TensorFlow's grouped 3D convolution on a CPU is not to be trusted; stream networks have none.
    call = tf.function(lambda inputs: model(inputs, training=False), jit_compile=not stream)
    results = {}
    start = backbone.init_states(frames.shape) if stream else {}
    logits = logits_of(call({**start, "image": tf.constant(frames)}))
    scale_classifier(model, 1 / float(np.std(logits)))
    results["one shot"] = logits_of(call({**start, "image": tf.constant(frames)}))
    if stream:
        results["frame by frame"] = original_frame_by_frame(call, start, frames)
    tf.train.Checkpoint(model=model).save(f"{folder}/ckpt")
    np.savez(f"{folder}/reference.npz", frames=frames, **results)


def build_original(variant: str, *, stream: bool) -> tuple[Any, Any]:
    """The Model Garden's classifier and its backbone."""
    from official.projects.movinet.modeling import movinet, movinet_model

    causal_options = {
        "causal": True,
        "conv_type": "2plus1d",
        "se_type": "2plus3d",
        "activation": "hard_swish",
        "gating_activation": "hard_sigmoid",
        "use_positional_encoding": variant in POSITION_ENCODED,
        "use_external_states": True,
    }
    backbone = movinet.Movinet(model_id=variant, **(causal_options if stream else {}))
    model = movinet_model.MovinetClassifier(backbone, num_classes=NUM_CLASSES, output_states=stream)
    return model, backbone


def randomise(model: Any, rng: np.random.Generator) -> None:
    """Gives every variable random values of a sane size; nothing is left at 0 or 1."""
    for variable in model.weights:
        shape, kind = tuple(variable.shape), variable.name.rpartition("/")[2].partition(":")[0]
        if kind in ("kernel", "depthwise_kernel"):
            depthwise = kind == "depthwise_kernel"
            fan_in = np.prod(shape[:2]) if depthwise else np.prod(shape[:-1])
            value = rng.normal(0, np.sqrt(2 / fan_in), shape)
        elif kind == "scale":  # ReZero, and the weight of the position encoding
            # Larger ones make the deep networks chaotic: with 0.3 to 0.9, float32 and float64 of one and the same A5
            # differed by up to 0.7 standard deviations, so a comparison says nothing. With these it is 3e-6.
            value = rng.uniform(0.2, 0.4, shape) * rng.choice([-1, 1])
        elif kind in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.2, shape)
        variable.assign(value.astype(np.float32) if shape else np.float32(value))


def scale_classifier(model: Any, factor: float) -> None:
    """Makes the logits' standard deviation about 1, so that an absolute tolerance means something."""
    for variable in model.weights:
        if variable.name.startswith("classifier_head/classifier/"):
            variable.assign(variable * factor)


def logits_of(output: Any) -> np.ndarray:
    """(B, classes). A stream network returns its state too; for a batch of one, the original drops the batch."""
    logits = output[0] if isinstance(output, tuple) else output
    return logits.numpy().reshape(-1, NUM_CLASSES)


def original_frame_by_frame(call: Any, states: Any, frames: np.ndarray) -> np.ndarray:
    """The original's logits after each frame, (T, B, classes)."""
    import tensorflow as tf

    logits = []
    for index in range(frames.shape[1]):
        output = call({**states, "image": tf.constant(frames[:, index : index + 1])})
        logits.append(logits_of(output))
        states = output[1]
    return np.stack(logits)


if __name__ == "__main__":
    main()
