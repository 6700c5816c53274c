"""A checkpoint: a Hugging Face folder, plus ``vidray.json`` if vidray made it.

The folder holds config.json, model.safetensors (or shards with an index) and a processor JSON. Reading it needs
neither torch nor transformers, so the driver can plan a run at once; ``load_model`` imports them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidray.checkpoints.resolve import resolve_checkpoint
from vidray.errors import UsageError
from vidray.flags import require
from vidray.models.families import Family, find_family
from vidray.models.processors import PROCESSOR_FILES, check_view, pick_processor, read_view
from vidray.types import EmbeddingKind, ViewConfig

if TYPE_CHECKING:
    import torch

ProblemType = Literal["single_label_classification", "multi_label_classification"]

_PROBLEM_TYPES: tuple[ProblemType, ...] = ("single_label_classification", "multi_label_classification")
VIDRAY_FILE = "vidray.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
SCHEMA_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_RESULT_KEY_SALT = "vidray-result-1"
_VOLATILE_CONFIG_KEYS = frozenset({"transformers_version", "_name_or_path", "architectures"})
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointMeta:
    """What scoring must know of a checkpoint besides the network itself; ``vidray.json`` holds it."""

    view: ViewConfig
    """How a video becomes views: what the checkpoint was validated with."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    family: str
    """The row of ``vidray.models.families``: config.json's ``model_type``."""
    problem_type: ProblemType = "single_label_classification"
    """``multi_label_classification``: classes do not exclude each other; scores are sigmoids."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Figures of merit on the validation data; empty if not known."""
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How it came about (recipe, split, versions); empty if not known. Scoring does not read it."""
    fingerprint: str = ""
    """Hash of weights, config and labels, 64 hex digits."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``vidray.json``."""
        return {**dataclasses.asdict(self), "view": self.view.to_dict()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CheckpointMeta:
        """The meta that ``to_json`` gave. Raises ValueError or TypeError if keys are missing or unknown."""
        view = ViewConfig.from_dict(values["view"])
        if view.is_chunked:
            raise ValueError(f"span '{view.span}' is how a video is scored, not what a checkpoint is made for")
        return cls(**{**values, "view": view, "labels": tuple(values["labels"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine. Pickles well: another machine brings the files anew, see ``load_model``."""

    location: str
    """As asked for; a Hub id carries the commit that was found, ``org/name@commit``."""
    folder: str
    """Where its files lie on the machine that read it."""
    config: dict[str, Any]
    """Content of config.json."""
    meta: CheckpointMeta
    weights: tuple[tuple[str, tuple[int, int]], ...]
    """Each weights file's name and (bytes, mtime_ns) when it was read."""
    texts: tuple[str, ...] = ()
    """What a model that reads its labels compares a clip with, label by label: see `with_labels`."""

    @property
    def family(self) -> Family:
        """The row of the families' table."""
        return find_family(self.meta.family)

    @property
    def view(self) -> ViewConfig:
        return self.meta.view

    @property
    def labels(self) -> tuple[str, ...]:
        """() where features are wanted in place of scores: see `without_labels`."""
        return self.meta.labels

    @property
    def fingerprint(self) -> str:
        """That of the files; with ``texts`` also of these and their tokenizer."""
        if not self.texts:
            return self.meta.fingerprint
        files = {name: _sha256(path) for name in _TOKENIZER_FILES if (path := Path(self.folder) / name).exists()}
        said = json.dumps([self.meta.fingerprint, self.labels, self.texts, files], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()


def read_checkpoint(location: str, *, require_head: bool = True) -> Checkpoint:
    """Find a checkpoint, bring it to this machine, and read all but its weights (which are only hashed).

    Args:
        location: a folder on any fsspec file system, or a Hub id ``org/name`` or ``org/name@revision``.
            An existing local folder wins over a Hub id of the same spelling.
        require_head: refuse a checkpoint without a classifier that fits its labels. False to fine-tune from it.

    Raises:
        UsageError: not found, not a video classifier, or its files are missing, damaged or at odds.
    """
    found = resolve_checkpoint(str(location))
    folder = Path(found.folder)
    config = _read_json(folder / "config.json", found.location)
    family = find_family(config.get("model_type"))
    if "quantization_config" in config:
        raise UsageError(f"{found.location} is quantised (config.json: quantization_config), which vidray cannot load")
    weights = _weights_files(folder, found.location)
    shapes = {key: shape for name in weights for key, shape in _tensor_shapes(folder / name, found.location).items()}
    if require_head:
        _check_head(shapes, family=family, config=config, location=found.location)
    meta = _read_meta(folder, weights, config=config, family=family, location=found.location)
    seen = tuple((name, _stat(folder / name)) for name in weights)
    return Checkpoint(location=found.location, folder=str(folder), config=config, meta=meta, weights=seen)


def with_labels(checkpoint: Checkpoint, labels: Sequence[str], *, prompt: str) -> Checkpoint:
    """A checkpoint that reads its labels, with these.

    Args:
        prompt: what is read for a label; ``{}`` stands for it.

    Raises:
        UsageError: the model has classes of its own, or a label or the prompt will not do.
    """
    family = checkpoint.family.model_type
    require(checkpoint.family.reads_labels, "--labels", labels[0], f"none with a model that has its own ({family})")
    require(len(labels) >= 2, "--labels", "; ".join(labels), "two labels or more, with ; between, or a file of them")
    require(all(labels), "--labels", "; ".join(labels), "no empty one")
    double = sorted(label for label, count in Counter(labels).items() if count > 1)
    require(not double, "--labels", "; ".join(double), "each once")
    require("{}" in prompt, "--prompt", prompt, "a text with {} in it, which stands for the label")
    meta = dataclasses.replace(checkpoint.meta, labels=tuple(labels))
    texts = tuple(prompt.replace("{}", label) for label in labels)
    return dataclasses.replace(checkpoint, meta=meta, texts=texts)


def without_labels(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint that gives features alone, for which a bare backbone will do.

    Raises:
        UsageError: what it compares with texts is no feature of the clip alone.
    """
    family = checkpoint.family
    allowed = f"a model that does not need texts ({family.model_type} compares videos with them)"
    require(not family.reads_labels, "--no-labels", True, allowed)
    return dataclasses.replace(checkpoint, meta=dataclasses.replace(checkpoint.meta, labels=()))


def result_key(
    fingerprint: str,
    view: ViewConfig,
    *,
    precision: str = "fp32",
    embedding: EmbeddingKind | None = None,
    has_labels: bool = True,
) -> str:
    """32 hex digits that change whenever results could: with the checkpoint, with how videos become views, with the
    arithmetic where it is not fp32, with the embeddings where there are some, and with the labels where there are none
    (so that keys from before these three counted stay)."""
    more = [*([] if precision == "fp32" else [precision]), *([] if embedding is None else [f"embedding {embedding}"])]
    more += [] if has_labels else ["no labels"]
    text = "\n".join((_RESULT_KEY_SALT, fingerprint, view.to_json(), *more))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load_model(
    checkpoint: Checkpoint, *, dtype: torch.dtype | None = None, only_scores: bool = False
) -> torch.nn.Module:
    """The network with its weights, in eval mode, on the CPU. Of a checkpoint without labels the logits are features.

    Args:
        dtype: of the weights; None: float32.
        only_scores: it need not be trainable: batch norms become part of the convolutions before them, so the logits
            differ by rounding (``models.fused``).

    Raises:
        UsageError: weights are missing, left over or of another shape, or the files changed since they were read.
    """
    family, folder = checkpoint.family, local_folder(checkpoint)
    if checkpoint.labels:
        from vidray.models.loading import load_weights as load
    else:
        from vidray.models.backbone import load_features as load
    require_labels(checkpoint)
    model: Any = load(family, config=checkpoint.config, folder=folder, dtype=dtype)
    if checkpoint.texts:
        model.read(checkpoint.texts, folder=folder)
    if only_scores:
        from vidray.models.fused import fuse

        fuse(model)
    return model


def require_labels(checkpoint: Checkpoint) -> None:
    """Raise UsageError for a model that reads its labels and has none."""
    if checkpoint.family.reads_labels and not checkpoint.texts:
        raise UsageError(
            f"{checkpoint.location} has no classes of its own: vidray score --labels 'running; jumping' names some. "
            "It is not trained or evaluated here"
        )


def local_folder(checkpoint: Checkpoint) -> str:
    """The checkpoint's folder on this machine, brought here if need be, with the weights that were read.

    Raises:
        UsageError: the checkpoint is another one by now, or this machine sees another one under the same name.
    """
    folder = Path(checkpoint.folder)
    if all((folder / name).exists() and _stat(folder / name) == stat for name, stat in checkpoint.weights):
        return str(folder)
    again = read_checkpoint(checkpoint.location, require_head=False)
    now, planned = again.meta.fingerprint, checkpoint.meta.fingerprint
    if now != planned:
        raise UsageError(
            f"{checkpoint.location} is not what it was when the run was planned: fingerprint {now[:12]}… "
            f"instead of {planned[:12]}…; start a new run to score with the new one"
        )
    return again.folder


def write_vidray_json(folder: str | Path, meta: CheckpointMeta) -> CheckpointMeta:
    """Complete a Hugging Face folder on this machine with ``vidray.json``; returns ``meta`` with its fingerprint.

    Write it last: it holds hashes of the files beside it, so its presence says that they are whole.
    """
    path = Path(folder)
    config = _read_json(path / "config.json", str(folder))
    weights = _weights_files(path, str(folder))
    meta = dataclasses.replace(meta, fingerprint=_fingerprint(path, weights, config=config, labels=meta.labels))
    _check_meta(meta, config=config, family=find_family(config.get("model_type")), location=str(folder))
    content = {"schema_version": SCHEMA_VERSION, **meta.to_json(), "files": _small_hashes(path)}
    _replace(path / VIDRAY_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n")
    return meta


def _read_meta(
    folder: Path, weights: tuple[str, ...], *, config: dict[str, Any], family: Family, location: str
) -> CheckpointMeta:
    """From ``vidray.json`` if there is one, else from the processor JSON and config.json."""
    if (folder / VIDRAY_FILE).exists():
        meta = _read_vidray_json(folder, location)
    else:
        meta = CheckpointMeta(
            view=_published_view(folder, config=config, family=family, location=location),
            labels=_config_labels(config, location),
            family=family.model_type,
            problem_type=_problem_type(config, location),
        )
    fingerprint = _fingerprint(folder, weights, config=config, labels=meta.labels)
    if meta.fingerprint and meta.fingerprint != fingerprint:
        raise UsageError(
            f"{location}: weights or config.json are not those that {VIDRAY_FILE} was written for (fingerprint "
            f"{fingerprint[:12]}… instead of {meta.fingerprint[:12]}…); copy the whole checkpoint again"
        )
    meta = dataclasses.replace(meta, fingerprint=fingerprint)
    _check_meta(meta, config=config, family=family, location=location)
    return meta


def _read_vidray_json(folder: Path, location: str) -> CheckpointMeta:
    values = _read_json(folder / VIDRAY_FILE, location)
    if (version := values.pop("schema_version", None)) != SCHEMA_VERSION:
        raise UsageError(f"{location}/{VIDRAY_FILE} has schema_version {version!r}; this vidray reads {SCHEMA_VERSION}")
    present = _small_hashes(folder)
    files = values.pop("files", {})
    if changed := sorted(name for name, digest in files.items() if present.get(name) != digest):
        raise UsageError(
            f"{location}: {', '.join(changed)} changed or vanished after {VIDRAY_FILE} was written; "
            f"copy the whole checkpoint again, or delete {VIDRAY_FILE} to use the folder as a published one"
        )
    try:
        return CheckpointMeta.from_json(values)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{location}/{VIDRAY_FILE} cannot be read: {error}") from error


def _check_meta(meta: CheckpointMeta, *, config: dict[str, Any], family: Family, location: str) -> None:
    """Raise UsageError if ``meta`` and config.json tell different stories."""
    claims = {
        "labels": (meta.labels, _config_labels(config, location)),
        "family": (meta.family, family.model_type),
        "problem_type": (meta.problem_type, _problem_type(config, location)),
    }
    for name, (got, expected) in claims.items():
        if got != expected:
            raise UsageError(f"{location}: {VIDRAY_FILE} says {name} {got!r}, but config.json says {expected!r}")
    check_view(meta.view, config=config, family=family)


def _published_view(folder: Path, *, config: dict[str, Any], family: Family, location: str) -> ViewConfig:
    files = {name: _read_json(folder / name, location) for name in PROCESSOR_FILES if (folder / name).exists()}
    processor = pick_processor(files)
    if processor is None:
        raise UsageError(
            f"{location} has no processor JSON, so nobody knows how its frames were normalised: add the "
            f"{PROCESSOR_FILES[1]} (or {PROCESSOR_FILES[2]}) it was published with, or a {VIDRAY_FILE}"
        )
    return read_view(processor, config=config, family=family)


def _config_labels(config: dict[str, Any], location: str) -> tuple[str, ...]:
    """Labels in the order of the logits. Without ``id2label`` Transformers makes up two, or ``num_labels`` of them."""
    names = config.get("id2label")
    if not names:
        return tuple(f"LABEL_{i}" for i in range(config.get("num_labels", 2)))
    by_id = {int(i): str(label) for i, label in names.items() if str(i).isdecimal()}
    if sorted(by_id) != list(range(len(names))):
        raise UsageError(f"{location}/config.json: the ids of id2label must be 0 to {len(names) - 1} without gaps")
    return tuple(by_id[i] for i in range(len(by_id)))


def _problem_type(config: dict[str, Any], location: str) -> ProblemType:
    value = config.get("problem_type") or _PROBLEM_TYPES[0]
    for allowed in _PROBLEM_TYPES:
        if value == allowed:
            return allowed
    raise UsageError(
        f"{location}/config.json: problem_type {value!r} is no classification; allowed are {', '.join(_PROBLEM_TYPES)}"
    )


def _weights_files(folder: Path, location: str) -> tuple[str, ...]:
    """Names of the safetensors files, sorted."""
    if (folder / WEIGHTS_FILE).exists():
        return (WEIGHTS_FILE,)
    if (folder / WEIGHTS_INDEX).exists():
        names = tuple(sorted(set(_read_json(folder / WEIGHTS_INDEX, location).get("weight_map", {}).values())))
        if names and all(os.path.basename(name) == name and (folder / name).exists() for name in names):
            return names
        raise UsageError(f"{location}: not all files that {WEIGHTS_INDEX} names are there: {', '.join(names)}")
    raise UsageError(
        f"{location} has no {WEIGHTS_FILE}. vidray reads no pickled weights (.bin, .pt), which can run code when "
        "opened; convert a checkpoint that you trust: "
        "AutoModelForVideoClassification.from_pretrained(folder).save_pretrained(new_folder)"
    )


def _check_head(shapes: dict[str, list[int]], *, family: Family, config: dict[str, Any], location: str) -> None:
    """Refuse early what would load with a freshly initialised classifier and score at random."""
    if family.reads_labels:
        return
    num_labels = len(_config_labels(config, location))
    shape = shapes.get(family.head_key)
    if shape is None:
        raise UsageError(
            f"{location} has no classifier ({family.head_key} is not among its weights): it is a pre-trained backbone. "
            "Fine-tune it first, or name a fine-tuned checkpoint; for features alone take vidray score --embeddings "
            "--no-labels"
        )
    if shape[0] != num_labels:
        raise UsageError(f"{location}: {family.head_key} has {shape[0]} rows for the {num_labels} labels of id2label")


def _tensor_shapes(path: Path, location: str) -> dict[str, list[int]]:
    """Shapes by tensor name, from the header of a safetensors file: its length in 8 bytes, then JSON.

    Raises:
        UsageError: it cannot be read, is no such file, or is shorter than its header says.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
            num_bytes = os.fstat(file.fileno()).st_size
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        expected = 8 + length + max((value["data_offsets"][1] for value in tensors.values()), default=0)
        if num_bytes < expected:
            raise ValueError(f"it has {num_bytes} of {expected} bytes")
        return {name: value["shape"] for name, value in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(f"{location}/{path.name} is no safetensors file, or a damaged one: {error}") from error
    except OSError as error:
        raise UsageError(f"{location}/{path.name} cannot be read: {error}") from error


def _fingerprint(folder: Path, weights: tuple[str, ...], *, config: dict[str, Any], labels: tuple[str, ...]) -> str:
    """sha256 of the weights' bytes, of config.json without what does not change a score, and of the labels."""
    stable = {key: value for key, value in config.items() if key not in _VOLATILE_CONFIG_KEYS}
    digest = hashlib.sha256()
    for name in weights:
        digest.update(bytes.fromhex(_sha256(folder / name)))
    digest.update(json.dumps([stable, labels], sort_keys=True).encode())
    return digest.hexdigest()


def _small_hashes(folder: Path) -> dict[str, str]:
    """sha256 of the JSON files that decide on scores; the weights are in the fingerprint."""
    names = ("config.json", WEIGHTS_INDEX, *PROCESSOR_FILES)
    return {name: _sha256(folder / name) for name in names if (folder / name).exists()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stat(path: Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _read_json(path: Path, location: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{location} is no checkpoint: it has no {path.name}") from error
    except ValueError as error:
        raise UsageError(f"{location}/{path.name} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{location}/{path.name} must hold a JSON object, got {type(values).__name__}")
    return values


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
