"""The loop learns, means the same on any number of workers, and goes on to the bit after any death."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import runs
from tests.support.training_parts import make_config, make_loop, make_model, restore, run_workers, start_workers
from vidray.errors import RunError
from vidray.storage.store import Store
from vidray.training.data.bad_videos import BadVideo
from vidray.training.loop.checkpoint_writer import CheckpointWriter
from vidray.training.loop.loop import Loop
from vidray.training.loop.position import TrainingPosition
from vidray.training.loop.state import State, StateStore

ALL_ON = {
    "epochs": 2,
    "global_batch_size": 7,
    "micro_batch_size": 1,
    "learning_rate": 3e-3,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
    "weight_decay": 0.05,
    "save_every_steps": 2,
}
"""Gradient accumulation of up to three clips on each of three workers, an uneven last batch, and all that is random."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_it_learns():
    loop = make_loop(make_config(epochs=8))
    loop.run()
    assert losses(loop.metrics_rows)[0] > 0.9
    assert losses(loop.metrics_rows)[-1] < 0.5


def test_two_workers_have_the_losses_of_one_with_an_uneven_last_batch_and_a_bad_video(tmp_path):
    """22 videos in batches of 8: the last has 6, so that one rank gets 4 and the other 2."""
    options = {"config": {"global_batch_size": 8}, "bad": [5], "in_float64": True}
    two = run_workers(2, tmp_path / "two", options)
    one = make_loop(make_config(global_batch_size=8), bad=[5], in_float64=True)
    one.run()
    assert losses(two[0]["metrics_rows"]) == losses(two[1]["metrics_rows"])
    assert losses(two[0]["metrics_rows"]) == pytest.approx(losses(one.metrics_rows), rel=1e-6)
    assert two[0]["bad_videos"] == two[1]["bad_videos"] == {"5": "corrupt"}
    assert [row["num_clips"] for row in one.metrics_rows if row["kind"] == "train"] == [
        row["num_clips"] for row in two[0]["metrics_rows"] if row["kind"] == "train"
    ]


def test_gradient_accumulation_does_not_change_the_losses():
    whole, parts = (make_loop(make_config(micro_batch_size=size), in_float64=True) for size in (None, 3))
    whole.run()
    parts.run()
    assert losses(parts.metrics_rows) == pytest.approx(losses(whole.metrics_rows), rel=1e-6)


def test_a_bad_video_weighs_nothing():
    """The same losses as of a run that never had it in its batches: the mean over the others."""
    loop = make_loop(make_config(global_batch_size=22, epochs=1), bad=range(21))
    good_row = 21
    views, label = loop.task.clips._pixels[good_row : good_row + 1], torch.tensor([loop.task.clips.labels[good_row]])
    with torch.no_grad():
        loop._seed_forward(0)
        expected = loop._losses(views, label).item()
    loop.run()
    assert losses(loop.metrics_rows)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["videomae", "conv"])
def test_three_workers_killed_in_the_middle_end_with_the_same_weights_to_the_bit(tmp_path, kind):
    """With two workers sums are commutative, so that the commonest bug cannot show. One worker is killed once, and all
    of them another time; each time everyone starts again from the last state, in the middle of an epoch."""
    options = {"kind": kind, "config": ALL_ON | ({"drop_path": 0.2} if kind == "videomae" else {}), "bad": [4]}
    run_workers(3, tmp_path / "whole", options)
    killed = tmp_path / "killed"
    for num_lines, victims in ((3, [1]), (6, [0, 1, 2])):
        kill_workers(killed, options, victims=victims, after_lines=num_lines)
    assert len(list(killed.glob("_train/state/*/COMMIT.json"))) > 0
    run_workers(3, killed, options)
    assert_same_weights(tmp_path / "whole", killed)
    assert_steps_saw_the_same(tmp_path / "whole", killed)


def kill_workers(folder: Path, options: dict[str, Any], *, victims: list[int], after_lines: int) -> None:
    processes = start_workers(3, folder, options)
    seen = folder / "seen-0.txt"

    def reached() -> bool:
        return seen.exists() and int((seen.read_text().splitlines() or ["0"])[-1].split()[0]) >= after_lines

    runs.wait_until(lambda: reached() or not processes[0].is_alive(), what="the step to kill at")
    for rank in victims:
        os.kill(processes[rank].pid, signal.SIGKILL)
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    assert all(codes[rank] == -signal.SIGKILL for rank in victims), codes
    assert 0 not in codes, "nobody may go on without the others"


def assert_same_weights(one: Path, other: Path) -> None:
    for rank in range(3):
        a, b = (torch.load(folder / f"{rank}.pt") for folder in (one, other))
        averages = a.pop("ema"), b.pop("ema")
        assert a.keys() == b.keys()
        for name, tensor in a.items():
            assert torch.equal(tensor, b[name]), name
            assert torch.equal(averages[0][name], averages[1][name]), name


def assert_steps_saw_the_same(whole: Path, killed: Path) -> None:
    """Each step of the killed run, however often it was begun, saw the videos of the other's; all came once."""
    for rank in range(3):
        steps = dict(line.split(" ", 1) for line in (whole / f"seen-{rank}.txt").read_text().splitlines())
        again = [line.split(" ", 1) for line in (killed / f"seen-{rank}.txt").read_text().splitlines()]
        assert {step for step, _ in again} == set(steps)
        assert all(steps[step] == rest for step, rest in again)
    epochs: dict[str, Counter[str]] = {}
    for rank in range(3):
        for line in (whole / f"seen-{rank}.txt").read_text().splitlines():
            _, epoch, *rows = line.split()
            epochs.setdefault(epoch, Counter()).update(rows)
    assert epochs == {epoch: Counter(str(row) for row in range(22)) for epoch in ("0", "1")}


def run_with_store(folder: Path, *, stop_at: int | None = None, **values: Any) -> Loop:
    writer = CheckpointWriter(Store(str(folder)), num_kept=3, log=lambda text: None)
    loop = make_loop(make_config(folder, **ALL_ON | values), writer=writer)
    restore(loop, writer)
    if stop_at is not None:
        stop(loop, stop_at)
    try:
        loop.run()
    except KeyboardInterrupt:
        assert stop_at is not None
    writer.finish()
    return loop


def stop(loop: Loop, at: int) -> None:
    step = loop._step

    def stopping(batch: Any) -> None:
        if loop.position.step == at:
            raise KeyboardInterrupt
        step(batch)

    loop._step = stopping  # type: ignore[method-assign]


def test_the_lines_of_metrics_come_once_each_whatever_was_repeated(tmp_path):
    whole = run_with_store(tmp_path / "whole")
    run_with_store(tmp_path / "stopped", stop_at=3)
    resumed = run_with_store(tmp_path / "stopped")
    assert losses(resumed.metrics_rows) == losses(whole.metrics_rows)
    assert [row["step"] for row in resumed.metrics_rows] == [row["step"] for row in whole.metrics_rows]
    assert (tmp_path / "stopped/metrics.jsonl").read_text().count("\n") == len(whole.metrics_rows)


def test_a_resumed_run_keeps_best_and_patience(tmp_path):
    whole = run_with_store(tmp_path / "whole", epochs=4, patience=2)
    run_with_store(tmp_path / "stopped", epochs=4, patience=2, stop_at=9)
    resumed = run_with_store(tmp_path / "stopped", epochs=4, patience=2)
    assert resumed.position == whole.position


def test_a_state_of_an_earlier_version_is_resumed_and_new_ones_have_its_layout(tmp_path):
    """Names in the files of a state outlive the names in the code."""
    config = make_config(tmp_path, global_batch_size=8, ema_decay=0.9)
    weights = make_model("conv")[0].state_dict()
    stored = {
        **{"epoch": 1, "samples": 8, "step": 4, "best_step": 3, "best_key": [0.5, -2.0], "best_epoch": 0},
        **{"num_without_gain": 0, "is_over": False, "verdicts": {"5": "corrupt"}, "messages": {"5": "no header"}},
    }
    averages = {name: tensor + 1 for name, tensor in weights.items()}
    tensors = {"model": weights, "optimizer": {}, "ema": averages}
    StateStore(Store(str(tmp_path))).save(
        State(step=4, values=stored, tensors=tensors, texts={"metrics.jsonl": '{"step": 3, "kind": "train"}\n'})
    )
    writer = CheckpointWriter(Store(str(tmp_path)), num_kept=3)
    loop = make_loop(config, kind="conv", writer=writer)
    restore(loop, writer)
    assert loop.position == TrainingPosition(
        epoch=1,
        samples=8,
        step=4,
        best_step=3,
        best_key=[0.5, -2.0],
        best_epoch=0,
        bad_videos={5: BadVideo(status="corrupt", message="no header")},
    )
    assert loop.task.clips.bad_videos == loop.position.bad_videos
    assert all(torch.equal(tensor, averages[name]) for name, tensor in loop.published_tensors().items())

    loop.run()
    writer.finish()
    folder = tmp_path / "_train/state/step-00000006"
    files = json.loads((folder / "COMMIT.json").read_text())["files"]
    assert set(files) == {*(f"{name}.safetensors" for name in tensors), "metrics.jsonl", "state.json"}
    values = json.loads((folder / files["state.json"]["file"]).read_text())
    assert values.keys() == stored.keys()
    assert (values["verdicts"], values["messages"]) == ({"5": "corrupt"}, {"5": "no header"})
    assert load_file(folder / files["ema.safetensors"]["file"]).keys() == weights.keys()


def test_a_finished_loop_trains_nothing_more(tmp_path):
    first = run_with_store(tmp_path)
    again = run_with_store(tmp_path)
    assert again.position == first.position
    assert again.task.clips.seen == []


def test_training_stops_early_when_nothing_gets_better():
    """The validation of these loops is worse the larger the weights are, and they only grow."""
    loop = make_loop(make_config(epochs=9, patience=2, learning_rate=0.05, weight_decay=0.0))
    loop.run()
    assert loop.position.epoch < 9
    assert loop.position.num_without_gain == 2


def test_a_notice_saves_the_state_at_once(tmp_path):
    writer = CheckpointWriter(Store(str(tmp_path)), num_kept=9)
    loop = make_loop(
        make_config(epochs=1, global_batch_size=1, save_every_steps=1000), writer=writer, is_preempted=lambda: True
    )
    loop.run()
    writer.finish()
    assert [path.name for path in sorted((tmp_path / "_train/state").iterdir())] == ["step-00000010", "step-00000022"]


def test_slow_steps_ask_for_a_notice_each_time(tmp_path, monkeypatch):
    """Ten of them would outlast the half minute that a node may have."""
    monkeypatch.setattr("vidray.training.loop.loop.PREEMPTION_CHECK_SECONDS", 1e-9)  # to which any step is slow
    writer = CheckpointWriter(Store(str(tmp_path)), num_kept=9)
    loop = make_loop(
        make_config(epochs=1, global_batch_size=1, save_every_steps=1000), writer=writer, is_preempted=lambda: True
    )
    loop.run()
    writer.finish()
    assert [path.name for path in sorted((tmp_path / "_train/state").iterdir())] == ["step-00000002", "step-00000022"]


def test_a_loss_that_is_no_number_stops_the_run_with_advice():
    loop = make_loop(make_config())
    with torch.no_grad():
        loop.task.model.classifier.weight.fill_(float("nan"))
    with pytest.raises(RunError, match=r"diverged.*--learning-rate"):
        loop.run()


def test_lines_of_metrics_say_where_the_time_went():
    loop = make_loop(make_config(epochs=1))
    loop.run()
    row = loop.metrics_rows[0]
    parts = [row[f"{name}_seconds"] for name in ("data_wait", "forward_backward", "communication", "optimizer")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= row["total_seconds"] * 1.01


def test_bf16_checkpointing_class_weights_and_ema_run_and_learn():
    loop = make_loop(make_config(epochs=8, precision="bf16", class_weights=True, ema_decay=0.5))
    loop.task.model.gradient_checkpointing_enable({"use_reentrant": False})
    loop.run()
    assert losses(loop.metrics_rows)[-1] < 0.6


def test_gradient_checkpointing_changes_no_loss():
    plain, checkpointed = (make_loop(make_config(), in_float64=True) for _ in range(2))
    checkpointed.task.model.gradient_checkpointing_enable({"use_reentrant": False})
    for loop in (plain, checkpointed):
        loop.run()
    assert losses(checkpointed.metrics_rows) == pytest.approx(losses(plain.metrics_rows), rel=1e-6)
