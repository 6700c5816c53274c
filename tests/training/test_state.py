"""A state counts whole or not at all, and a damaged one costs only the steps since the one before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vidray.errors import RunError, UsageError
from vidray.storage.store import Store
from vidray.training.loop.state import DamagedStateError, State, StateStore, step_name


def make_state(step: int) -> State:
    tensors = {"model": {"w": torch.full((3,), float(step)), "n": torch.tensor(step)}, "optimizer": {}}
    return State(
        step=step, values={"epoch": 1, "verdicts": {"3": "corrupt"}}, tensors=tensors, texts={"m.jsonl": "ä\n"}
    )


@pytest.fixture(params=["local", "memory", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path))
    return Store(request.getfixturevalue({"memory": "memory_folder", "s3": "s3_bucket"}[request.param]) + "/out")


def test_a_state_comes_back_as_it_was_saved(store):
    states = StateStore(store)
    states.save(make_state(7))
    loaded = states.load(7)
    assert loaded.values == make_state(7).values
    assert loaded.texts == {"m.jsonl": "ä\n"}
    assert torch.equal(loaded.tensors["model"]["w"], torch.full((3,), 7.0))
    assert loaded.tensors["model"]["n"].dtype == torch.int64
    assert loaded.tensors["optimizer"] == {}
    assert states.committed() == [7]


def test_only_the_last_states_are_kept_and_leftovers_of_killed_attempts_go_with_them(store):
    states = StateStore(store)
    store.create("_train/state/step-00000001/abc-model.safetensors", b"left by an attempt that was killed")
    for step in (2, 4, 6):
        states.save(make_state(step))
    states.keep_last(2)
    assert states.committed() == [4, 6]
    assert {path.split("/")[2] for path in store.list("_train/state")} == {step_name(4), step_name(6)}


def test_a_state_without_its_commit_is_as_if_never_begun_and_is_written_again(store):
    states = StateStore(store)
    states.save(make_state(2))
    store.create("_train/state/step-00000004/abc-model.safetensors", b"half")
    logged: list[str] = []
    loaded = states.load_last(log=logged.append)
    assert loaded is not None
    assert loaded.step == 2
    assert logged == []
    states.save(make_state(4))
    assert states.load(4).step == 4


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "commit"])
def test_a_damaged_last_state_is_named_and_the_one_before_taken(tmp_path, damage):
    states = StateStore(Store(str(tmp_path)))
    for step in (2, 4):
        states.save(make_state(step))
    folder = tmp_path / "_train/state/step-00000004"
    victim = folder / "COMMIT.json" if damage == "commit" else next(folder.glob("*-model.safetensors"))
    harm(victim, damage)
    logged: list[str] = []
    loaded = states.load_last(log=logged.append)
    assert loaded is not None
    assert loaded.step == 2
    assert len(logged) == 1
    assert "step-00000004 is damaged, falling back" in logged[0]
    states.save(make_state(4))
    assert states.load(4).step == 4, "the damaged state must not block the step when it comes again"


def harm(path: Path, damage: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-5])
    elif damage == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "commit":
        path.write_text(json.dumps({"files": 3}))


def test_when_all_states_are_damaged_the_run_stops_instead_of_starting_anew_in_silence(tmp_path):
    states = StateStore(Store(str(tmp_path)))
    states.save(make_state(2))
    harm(next(tmp_path.glob("_train/state/*/*-model.safetensors")), "missing")
    with pytest.raises(RunError, match="all 1 saved states"):
        states.load_last(log=lambda text: None)


def test_restart_from_chooses_a_state_and_forgets_later_ones(store):
    states = StateStore(store)
    for step in (2, 4, 6):
        states.save(make_state(step))
    with pytest.raises(UsageError, match=r"step-00000003.*step-00000002, step-00000004, step-00000006"):
        states.load_last(log=print, restart_from="step-00000003")
    loaded = states.load_last(log=print, restart_from="step-00000004")
    assert loaded is not None
    assert loaded.step == 4
    assert states.committed() == [2, 4]


def test_a_step_that_is_committed_stays_as_it_is(store):
    states = StateStore(store)
    states.save(make_state(2))
    paths = store.list("_train/state")
    states.save(make_state(2))
    assert store.list("_train/state") == paths


def test_loading_what_is_not_there_is_damage_not_a_crash(store):
    with pytest.raises(DamagedStateError):
        StateStore(store).load(5)
