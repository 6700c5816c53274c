"""The state of a run on its output's file system: tensors as safetensors, the rest as JSON, COMMIT.json last.

    <output>/_train/state/step-00001200/<token>-model.safetensors, <token>-optimizer.safetensors, …, COMMIT.json

A state counts only if its COMMIT.json is there and every file has the hash that it names. The files' names carry a
token of the process that wrote them, since an object is never replaced: what an attempt that was killed left behind
does not get in the way of the next one, which writes the same step again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save

from vidray.errors import RunError, UsageError
from vidray.storage.store import Store

COMMIT = "COMMIT.json"
SCHEMA_VERSION = 1
_STEP = re.compile(r"step-(\d{8,})")

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """All that a run needs to go on at ``step``. Tensors lie on the CPU, and nobody else writes to them."""

    step: int
    """Optimizer steps done."""
    values: dict[str, Any]
    """Position, best metric, bad videos and so on: plain JSON values (see `TrainingPosition`)."""
    tensors: dict[str, Tensors] = field(default_factory=dict)
    """``model``, ``optimizer``, ``ema`` …: tensors by name."""
    texts: dict[str, str] = field(default_factory=dict)
    """Text files by name, such as metrics.jsonl so far."""


class DamagedStateError(Exception):
    """A committed state lacks a file, or a file is not what was written."""


class StateStore:
    """The states below one folder of an output."""

    def __init__(self, store: Store, prefix: str = "_train/state") -> None:
        self._store = store
        self._prefix = prefix

    def save(self, state: State) -> None:
        """Write a state; it counts from its last object on. Does nothing if that step is committed already."""
        folder = f"{self._prefix}/{step_name(state.step)}"
        if self._store.exists(f"{folder}/{COMMIT}"):
            return
        token = uuid.uuid4().hex[:8]
        files = {}
        for name, data in _encode(state).items():
            self._store.create(f"{folder}/{token}-{name}", data)
            files[name] = {"file": f"{token}-{name}", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        commit = {"schema_version": SCHEMA_VERSION, "step": state.step, "files": files}
        with contextlib.suppress(FileExistsError):  # another attempt reached the same step first: it wrote the same
            self._store.create(f"{folder}/{COMMIT}", json.dumps(commit, indent=2).encode())

    def committed(self) -> list[int]:
        """Steps that have a COMMIT.json, in order."""
        steps = [re.fullmatch(rf".*/{_STEP.pattern}/{re.escape(COMMIT)}", path) for path in self._paths()]
        return sorted(int(match[1]) for match in steps if match)

    def load(self, step: int) -> State:
        """Read a state and check it. Raises DamagedStateError."""
        folder = f"{self._prefix}/{step_name(step)}"
        try:
            commit = json.loads(self._store.read(f"{folder}/{COMMIT}"))
            data = {name: self._read(folder, entry) for name, entry in commit["files"].items()}
            return _decode(step, data)
        except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedStateError(f"{self._store.uri_for(folder)}: {error}") from error

    def load_last(self, *, log: Callable[[str], None], restart_from: str | None = None) -> State | None:
        """The last whole state, or None for a fresh start. Damaged ones are named through ``log`` and passed over.

        States later than the one that is loaded are deleted: the run writes these steps again.

        Raises:
            UsageError: ``restart_from`` is not there or damaged.
            RunError: there are states, but all are damaged.
        """
        if restart_from is not None:
            return self._load_named(restart_from)
        steps = self.committed()
        for step in reversed(steps):
            try:
                state = self.load(step)
            except DamagedStateError as error:
                log(f"state {step_name(step)} is damaged, falling back to the one before: {error}")
                continue
            self.forget_after(step)
            return state
        if steps:
            raise RunError(
                f"all {len(steps)} saved states in {self._store.uri_for(self._prefix)} are damaged; "
                "take another --output, or delete this one to train from the start"
            )
        return None

    def _load_named(self, name: str) -> State:
        steps = self.committed()
        names = [step_name(step) for step in steps]
        if name not in names:
            allowed = ", ".join(names) or "(none)"
            raise UsageError(f"--restart-from: got {name!r}, allowed are the saved states {allowed}")
        step = steps[names.index(name)]
        try:
            state = self.load(step)
        except DamagedStateError as error:
            raise UsageError(f"--restart-from {name}: {error}") from error
        self.forget_after(step)
        return state

    def keep_last(self, count: int) -> None:
        """Delete all but the last ``count`` states, and what attempts that were killed left below them."""
        steps = self.committed()
        if len(steps) > count:
            oldest = steps[-count]
            self._forget(lambda step: step < oldest)

    def forget_after(self, step: int) -> None:
        """Delete states later than ``step``."""
        self._forget(lambda other: other > step)

    def _forget(self, is_unwanted: Callable[[int], bool]) -> None:
        unwanted = [path for path in self._paths() if (match := _STEP.search(path)) and is_unwanted(int(match[1]))]
        # The commits first: a state without one does not count, one without a file would be called damaged.
        for path in sorted(unwanted, key=lambda path: not path.endswith(COMMIT)):
            self._store.delete(path)

    def _paths(self) -> list[str]:
        return self._store.list(self._prefix)

    def _read(self, folder: str, entry: dict[str, Any]) -> bytes:
        data = self._store.read(f"{folder}/{entry['file']}")
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ValueError(f"{entry['file']} has {len(data)} bytes that are not the {entry['bytes']} written")
        return data


def step_name(step: int) -> str:
    """The folder of a step."""
    return f"step-{step:08d}"


def to_cpu(tensors: Tensors) -> Tensors:
    """Copies that training does not change any more."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _encode(state: State) -> dict[str, bytes]:
    files = {f"{name}.safetensors": save(tensors) for name, tensors in state.tensors.items()}
    files |= {name: text.encode() for name, text in state.texts.items()}
    return files | {"state.json": json.dumps(state.values).encode()}


def _decode(step: int, data: dict[str, bytes]) -> State:
    tensors, texts = {}, {}
    for name, content in data.items():
        if name.endswith(".safetensors"):
            tensors[name.removesuffix(".safetensors")] = load(content)
        elif name != "state.json":
            texts[name] = content.decode()
    return State(step=step, values=json.loads(data["state.json"]), tensors=tensors, texts=texts)
