from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.support.checkpoints import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    UCF_LABELS,
    make_videomae,
    processor_values,
    write_processor,
)
from vidray.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointMeta,
    load_model,
    local_folder,
    read_checkpoint,
    result_key,
    write_vidray_json,
)
from vidray.errors import UsageError
from vidray.models.families import FAMILIES
from vidray.models.processors import read_view
from vidray.types import ViewConfig

VIVIT = {**processor_values(224), "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5}


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("checkpoint") / "videomae")


@pytest.fixture
def folder(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "videomae"))


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_published_folder_gives_views_and_labels_without_vidray_json(folder: Path) -> None:
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.view == ViewConfig(
        num_frames=8, size=32, stride=4, num_clips=5, num_crops=1, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    assert checkpoint.labels == UCF_LABELS
    assert checkpoint.meta.problem_type == "single_label_classification"
    assert checkpoint.family.model_type == "videomae"


def test_reading_imports_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from vidray.checkpoints.checkpoint import read_checkpoint; read_checkpoint(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'ray', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("style", ["old", "new", "nested"])
def test_every_style_of_processor_file_is_read(folder: Path, style: Any) -> None:
    (folder / "preprocessor_config.json").unlink()
    write_processor(folder, processor_values(32, image_mean=[0.1, 0.2, 0.3]), style=style)
    assert read_checkpoint(str(folder)).view.mean == (0.1, 0.2, 0.3)


def test_new_processor_file_wins_over_old(folder: Path) -> None:
    write_processor(folder, processor_values(32, image_mean=[0.1, 0.2, 0.3]), style="new")
    assert read_checkpoint(str(folder)).view.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("family", "processor", "expected"),
    [
        ("videomae", {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, (0.5, 0.25)),
        ("videomae", {"do_normalize": False}, (0.0, 1.0)),
        ("videomae", {"do_normalize": False, "do_rescale": False}, (0.0, 1 / 255)),
        ("videomae", {"do_rescale": False, "image_mean": 127.5, "image_std": 51.0}, (0.5, 0.2)),
        ("videomae", {"rescale_factor": 1 / 127.5, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (0.25, 0.25)),
        ("timesformer", {}, (0.45, 0.225)),
        ("vivit", {**VIVIT, "image_processor_type": "VivitImageProcessor", "offset": True}, (0.75, 0.25)),
        ("vivit", {**VIVIT, "image_processor_type": "VivitImageProcessor", "offset": False}, (0.25, 0.25)),
        ("vivit", {**VIVIT, "video_processor_type": "VivitVideoProcessor"}, (0.75, 0.25)),
        ("vivit", {}, (0.75, 0.25)),
        ("videoprism_vision_model", {"do_normalize": False, "size": {"height": 288, "width": 288}}, (0.0, 1.0)),
    ],
)
def test_rescaling_and_offset_fold_into_mean_and_std(family: str, processor: dict, expected: tuple) -> None:
    view = read_view(processor, config={}, family=FAMILIES[family])
    assert view.mean == pytest.approx((expected[0],) * 3)
    assert view.std == pytest.approx((expected[1],) * 3)


@pytest.mark.parametrize(
    ("processor", "size", "short_side"),
    [
        ({"size": 224}, 224, None),
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}, 224, None),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, 224, 256),
        ({"size": {"height": 256, "width": 256}, "crop_size": [224, 224]}, 224, 256),
        ({"size": {"height": 224, "width": 224}, "crop_size": 112, "do_center_crop": False}, 224, None),
        ({}, 224, None),
    ],
)
def test_geometry_of_a_processor(processor: dict, size: int, short_side: int | None) -> None:
    view = read_view(processor, config={}, family=FAMILIES["timesformer"])
    assert (view.size, view.short_side) == (size, short_side)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"size": {"shortest_edge": 224}, "do_center_crop": False}, "do_center_crop false: frames that are not square"),
        ({"size": {"shortest_edge": 224}, "do_resize": False}, "do_resize false"),
        ({"size": {"shortest_edge": 112}, "crop_size": 224}, "crops 224 pixels out of 112"),
        ({"rescale_offset": 1.0}, "rescale_offset"),
    ],
)
def test_what_a_view_cannot_do_is_refused(processor: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_view(processor, config={}, family=FAMILIES["timesformer"])


@pytest.mark.parametrize(
    "processor",
    [
        {"size": {"height": 224, "width": 320}},
        {"size": "big"},
        {"crop_size": 0},
        {"image_mean": [0.5]},
        {"image_std": [0.0] * 3},
        {"rescale_factor": "1/255"},
    ],
)
def test_useless_processor_values_are_refused(processor: dict) -> None:
    with pytest.raises(UsageError, match=r"processor: .* got"):
        read_view(processor, config={}, family=FAMILIES["timesformer"])


def test_size_that_a_fixed_model_cannot_take_is_refused(folder: Path) -> None:
    write_processor(folder, processor_values(48))
    with pytest.raises(UsageError, match=r"48 pixels.*image_size 32"):
        read_checkpoint(str(folder))


def test_missing_processor_is_named(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"video_preprocessor_config\.json"):
        read_checkpoint(str(folder))


def test_pickled_weights_are_refused_with_a_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"model\.safetensors.*save_pretrained"):
        read_checkpoint(str(folder))


@pytest.mark.parametrize("model_type", ["bert", None, ["videomae"]])
def test_other_models_are_refused_with_the_list_of_families(folder: Path, model_type: Any) -> None:
    edit(folder / "config.json", model_type=model_type)
    with pytest.raises(UsageError, match=", ".join(sorted(FAMILIES))):
        read_checkpoint(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"problem_type": "regression"},
        {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"0": "a", "1": "b"}},
        {"num_frames": 0},
        {"quantization_config": {"bits": 4}},
    ],
)
def test_useless_config_is_refused(folder: Path, changes: dict) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(UsageError, match=next(iter(changes))):
        read_checkpoint(str(folder))


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00"])
def test_damaged_json_is_a_usage_error(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json"):
        read_checkpoint(str(folder))


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (9).to_bytes(8, "little") + b'{"a": 1} '])
def test_damaged_weights_are_a_usage_error(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        read_checkpoint(str(folder))


@pytest.mark.parametrize("require_head", [True, False])
def test_truncated_weights_are_a_usage_error(folder: Path, require_head: bool) -> None:
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size - 1)
    with pytest.raises(UsageError, match=rf"model\.safetensors.*it has {size - 1} of {size} bytes"):
        read_checkpoint(str(folder), require_head=require_head)


def test_unreadable_weights_are_a_usage_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be read"):
        read_checkpoint(str(folder))


def test_labels_come_in_the_order_of_the_logits_not_of_the_file(tmp_path: Path) -> None:
    labels = [f"class {i}" for i in range(12)]
    folder = make_videomae(tmp_path, labels=labels)
    names = {str(i): labels[i] for i in (10, 2, 11, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    edit(folder / "config.json", id2label=names)
    assert read_checkpoint(str(folder)).labels == tuple(labels)


def shard(folder: Path) -> None:
    """Split model.safetensors in two, with an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / part, metadata={"format": "pt"})
    weight_map = {key: part for part, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def test_sharded_weights_load_like_whole_ones(folder: Path, master: Path) -> None:
    import torch

    shard(folder)
    got, expected = (load_model(read_checkpoint(str(path))).state_dict() for path in (folder, master))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match="model-00002-of-00002"):
        read_checkpoint(str(folder))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: flip_last_byte(folder / "model.safetensors"),
        lambda folder: edit(folder / "config.json", layer_norm_eps=1e-3),
        lambda folder: edit(folder / "config.json", id2label={str(i): f"other {i}" for i in range(len(UCF_LABELS))}),
    ],
    ids=["weights", "config", "labels"],
)
def test_fingerprint_changes_with(folder: Path, change: Any) -> None:
    before = read_checkpoint(str(folder)).fingerprint
    change(folder)
    assert read_checkpoint(str(folder)).fingerprint != before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: os.utime(folder / "model.safetensors", (1, 1)),
        lambda folder: edit(folder / "config.json", transformers_version="9.9"),
        lambda folder: write_processor(folder, processor_values(32, image_mean=[0.1, 0.2, 0.3])),
    ],
    ids=["mtime", "version", "processor"],
)
def test_fingerprint_does_not_change_with(folder: Path, change: Any) -> None:
    before = read_checkpoint(str(folder)).fingerprint
    change(folder)
    assert read_checkpoint(str(folder)).fingerprint == before


def test_result_key_changes_with_everything_that_could_change_a_score() -> None:
    view = ViewConfig(num_frames=8, size=32)
    changes: list[dict[str, Any]] = [
        {},
        {"num_clips": 1},
        {"num_crops": 3},
        {"span": "full"},
        {"stride": 2},
        {"aggregation": "score"},
        {"short_side": 40},
        {"mean": (0.5, 0.5, 0.5)},
        {"num_frames": 16},
    ]
    keys = [result_key("a", dataclasses.replace(view, **change)) for change in changes] + [result_key("b", view)]
    keys += [result_key("a", view, precision=precision) for precision in ("bf16", "fp16")]
    kinds = [(precision, kind) for precision in ("fp32", "bf16") for kind in ("mean", "unit")]
    keys += [result_key("a", view, precision=precision, embedding=kind) for precision, kind in kinds]
    keys += [result_key("a", view, precision=precision, embedding=kind, has_labels=False) for precision, kind in kinds]
    assert len(set(keys)) == len(changes) + 1 + 2 + 4 + 4
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_result_key_is_the_same_in_every_version_of_vidray() -> None:
    """A new key would score every bucket again: change this value only with the salt, and on purpose."""
    assert result_key("a", ViewConfig(num_frames=8, size=32)) == "ac5b498cc185904c79020dbaa7e33675"


def test_vidray_json_survives_a_round_trip_and_wins_over_the_processor(folder: Path) -> None:
    published = read_checkpoint(str(folder)).meta
    view = dataclasses.replace(published.view, num_clips=2, num_crops=3, stride=2, short_side=40)
    written = write_vidray_json(
        folder, dataclasses.replace(published, view=view, metrics={"top1": 0.5}, training={"recipe": "guide"})
    )
    assert read_checkpoint(str(folder)).meta == written
    assert written.view == view
    assert written.fingerprint == published.fingerprint
    assert CheckpointMeta.from_json(json.loads(json.dumps(written.to_json()))) == written


def test_checkpoint_with_vidray_json_needs_no_processor(folder: Path) -> None:
    meta = read_checkpoint(str(folder)).meta
    (folder / "preprocessor_config.json").unlink()
    write_vidray_json(folder, meta)
    assert read_checkpoint(str(folder)).view == meta.view


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: edit(folder / "config.json", num_attention_heads=2), r"config\.json changed"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), r"preprocessor_config\.json changed"),
        (lambda folder: flip_last_byte(folder / "model.safetensors"), "fingerprint"),
        (lambda folder: edit(folder / "vidray.json", schema_version=2), "schema_version 2"),
        (lambda folder: edit(folder / "vidray.json", labels=["a", "b"], fingerprint=""), "labels"),
        (lambda folder: edit(folder / "vidray.json", view={"num_frames": 8}), "cannot be read"),
        (lambda folder: edit(folder / "vidray.json", speed="high"), "cannot be read"),
    ],
    ids=["config", "processor", "weights", "schema", "labels", "view", "unknown"],
)
def test_vidray_json_at_odds_with_its_folder_is_refused(folder: Path, change: Any, message: str) -> None:
    write_vidray_json(folder, read_checkpoint(str(folder)).meta)
    change(folder)
    with pytest.raises(UsageError, match=message):
        read_checkpoint(str(folder))


def test_views_that_the_model_cannot_take_are_not_written(folder: Path) -> None:
    meta = read_checkpoint(str(folder)).meta
    with pytest.raises(UsageError, match="8 frames of 32×32 pixels"):
        write_vidray_json(folder, dataclasses.replace(meta, view=dataclasses.replace(meta.view, num_frames=16)))
    assert not (folder / "vidray.json").exists()


def rewrite_weights(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_backbone_without_classifier_is_refused_before_torch_is_needed(folder: Path) -> None:
    rewrite_weights(folder, lambda tensors: tensors.pop("classifier.weight"))
    with pytest.raises(UsageError, match=r"no classifier \(classifier\.weight"):
        read_checkpoint(str(folder))
    assert read_checkpoint(str(folder), require_head=False).labels == UCF_LABELS


def test_missing_left_over_and_misshapen_weights_are_named(folder: Path) -> None:
    import torch

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["classifier.bias"]
        tensors["extra.weight"] = torch.zeros(3)
        tensors["fc_norm.weight"] = torch.zeros(5)

    rewrite_weights(folder, change)
    with pytest.raises(UsageError, match=r"(?s)classifier\.bias.*extra\.weight.*fc_norm\.weight"):
        load_model(read_checkpoint(str(folder)))


def test_weights_with_the_names_of_old_checkpoints_load(folder: Path, master: Path) -> None:
    """Published VideoMAE weights call the biases of query and value q_bias and v_bias."""
    import torch

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("attention.query.bias", "attention.q_bias").replace("value.bias", "v_bias")
            tensors[old] = tensors.pop(name)

    rewrite_weights(folder, rename)
    got, expected = (load_model(read_checkpoint(str(path))).state_dict() for path in (folder, master))
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_model_is_loaded_in_eval_mode_and_float32(folder: Path) -> None:
    import torch

    model = load_model(read_checkpoint(str(folder)))
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_checkpoint_on_another_file_system_is_brought_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDRAY_CACHE", str(tmp_path / "cache"))
    (folder / "training_state.bin").write_bytes(b"large")
    fsspec.filesystem("memory").put(str(folder), "/bucket/model", recursive=True)
    checkpoint = read_checkpoint("memory://bucket/model")
    assert checkpoint.fingerprint == read_checkpoint(str(folder)).fingerprint
    assert sorted(path.name for path in Path(checkpoint.folder).iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert checkpoint.folder.startswith(str(tmp_path / "cache"))
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_another_machine_brings_the_files_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").put(str(folder), "/elsewhere/model", recursive=True)
    monkeypatch.setenv("VIDRAY_CACHE", str(tmp_path / "one"))
    checkpoint = read_checkpoint("memory://elsewhere/model")
    shutil.rmtree(tmp_path / "one")
    monkeypatch.setenv("VIDRAY_CACHE", str(tmp_path / "two"))
    assert local_folder(checkpoint).startswith(str(tmp_path / "two"))
    fsspec.filesystem("memory").rm("/elsewhere", recursive=True)


def test_weights_that_changed_after_planning_are_not_scored_with(folder: Path) -> None:
    checkpoint = read_checkpoint(str(folder))
    os.utime(folder / "model.safetensors", (1, 1))
    assert local_folder(checkpoint) == str(folder)
    flip_last_byte(folder / "model.safetensors")
    with pytest.raises(UsageError, match="not what it was"):
        load_model(checkpoint)


def test_a_local_folder_is_not_copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDRAY_CACHE", str(tmp_path / "cache"))
    for location in (str(folder), f"{folder}/", f"file://{folder}"):
        checkpoint = read_checkpoint(location)
        assert (checkpoint.folder, checkpoint.location) == (str(folder), str(folder))
    assert not (tmp_path / "cache").exists()


NOWHERE = ["", "no/such/folder", "./nowhere", "nowhere", "/nowhere", "a b/c", "file:///nowhere"]


@pytest.mark.parametrize("location", NOWHERE)
def test_what_is_neither_folder_nor_hub_id_is_refused(location: str) -> None:
    with pytest.raises(UsageError, match="org/name"):
        read_checkpoint(location)


def from_hub(hub_cache: Path, location: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Read a checkpoint in a process of its own, offline, with this Hub cache."""
    code = (
        "import sys; from vidray.checkpoints.checkpoint import read_checkpoint; from vidray.errors import UsageError\n"
        "try: c = read_checkpoint(sys.argv[1])\n"
        "except UsageError as error: sys.exit(f'usage: {error}')\n"
        "print(c.location, c.fingerprint, c.folder)"
    )
    env = {**os.environ, "HF_HUB_CACHE": str(hub_cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.run([sys.executable, "-c", code, location], capture_output=True, text=True, env=env, cwd=cwd)


@pytest.fixture
def hub_cache(folder: Path, tmp_path: Path) -> Path:
    """A Hub cache that holds ``org/name`` at one commit."""
    repo = tmp_path / "hub" / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c" * 40)
    shutil.copytree(folder, repo / "snapshots" / ("c" * 40))
    return tmp_path / "hub"


def test_cached_hub_id_loads_offline_and_pins_its_commit(hub_cache: Path, folder: Path, tmp_path: Path) -> None:
    done = from_hub(hub_cache, "org/name", tmp_path)
    location, fingerprint, _ = done.stdout.split()
    assert location == "org/name@" + "c" * 40
    assert fingerprint == read_checkpoint(str(folder)).fingerprint
    assert from_hub(hub_cache, location, tmp_path).stdout == done.stdout


def test_existing_folder_wins_over_a_hub_id(hub_cache: Path, tmp_path: Path) -> None:
    make_videomae(tmp_path / "org" / "name", seed=1)
    assert from_hub(hub_cache, "org/name", tmp_path).stdout.split()[2] == str(tmp_path / "org" / "name")


@pytest.mark.parametrize("location", ["org/other", "org/name@v2"])
def test_hub_id_that_is_not_cached_offline_says_so(hub_cache: Path, tmp_path: Path, location: str) -> None:
    done = from_hub(hub_cache, location, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"usage: '{location}' is neither")


def test_partly_cached_hub_id_is_not_taken_for_whole(hub_cache: Path, tmp_path: Path) -> None:
    next(hub_cache.rglob("model.safetensors")).unlink()
    done = from_hub(hub_cache, "org/name", tmp_path)
    assert done.stderr.startswith("usage: 'org/name' is neither"), done.stderr


def test_checkpoint_pickles(folder: Path) -> None:
    import pickle

    checkpoint = read_checkpoint(str(folder))
    again = pickle.loads(pickle.dumps(checkpoint))
    assert isinstance(again, Checkpoint)
    assert again == checkpoint
