"""The training loop: plain torch, one process of any number. What it needs is given to it; no Ray, no files, no videos.

    epoch: global batch k = slice [kG, (k+1)G) of the epoch's order; each rank has its part of it
    step:  forward and backward per micro-batch, the last with the sum of gradients ─> clip ─> AdamW ─> moving average
    then:  validate ─> best? ─> state

Every loss is divided by the weight of the whole global batch, so the number of workers does not change the mathematics,
whatever the last batch's size and whatever video is bad. Nothing random is stored: each forward's dropout and mixup
follow from (seed, step, micro-step, rank), so a resumed run repeats to the bit what it would have done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from vidray.errors import RunError
from vidray.models.predict import forward_pixels, normalise
from vidray.training.data.batch import Batch
from vidray.training.device import use_bf16
from vidray.training.loop.checkpoint_writer import METRICS_FILE, CheckpointWriter
from vidray.training.loop.mixing import cross_entropy, inverse_frequency, mix, soft_targets
from vidray.training.loop.optim import (
    learning_rate_factor,
    make_optimizer,
    moving_average,
    restore_moving_average,
    set_learning_rate,
    trainable,
)
from vidray.training.loop.position import TrainingPosition
from vidray.training.loop.ranks import Ranks
from vidray.training.loop.state import State, Tensors, to_cpu
from vidray.training.loop.step_timer import StepTimer
from vidray.training.loop.task import TrainingTask

PREEMPTION_CHECK_STEPS = 10
"""Steps between questions whether a node is about to be taken; each is a barrier of all workers. Fewer where they take
more than ``PREEMPTION_CHECK_SECONDS``: a node may be gone half a minute after the notice."""
PREEMPTION_CHECK_SECONDS = 5.0


class Loop:
    """Trains until done.

    Args:
        validate: called by every rank after an epoch with the model in eval mode; returns the same figures to all.
        writer: where states go.
        is_preempted: True when this process will be ended soon; asked on all ranks alike.
        report: called on the first rank with each line of the metrics.
    """

    def __init__(
        self,
        task: TrainingTask,
        ranks: Ranks,
        *,
        validate: Callable[[nn.Module], dict[str, Any]],
        writer: CheckpointWriter,
        is_preempted: Callable[[], bool] = lambda: False,
        report: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        self.task, self.ranks, self.config, self.hyper = task, ranks, task.config, task.config.hyper
        self.position = TrainingPosition()
        self.metrics_rows: list[dict[str, Any]] = []
        """The lines of metrics.jsonl so far."""
        self._validate, self._writer, self._is_preempted, self._report = validate, writer, is_preempted, report
        self._batch_size = self.config.global_batch_size
        self._steps_per_epoch = math.ceil(task.clips.num_samples / self._batch_size)
        self.num_steps = self._steps_per_epoch * self.hyper.epochs
        """Of the whole run."""
        self._parameters = trainable(task.model)
        kept = task.model.state_dict().keys()
        self._buffers = [tensor for name, tensor in task.model.named_buffers() if name in kept]
        self._optimizer = make_optimizer(task.model, task.family, self.hyper)
        self._class_weights = self._make_class_weights()
        self._forward: Callable[..., Any] = torch.compile(task.model) if self.config.compile else task.model
        self._bf16 = use_bf16(self.config.precision, ranks.device)
        self._timer = StepTimer(ranks.device)
        self._sums = StepSums(ranks.device)
        self._was_preempted, self._preemption_check_steps = False, PREEMPTION_CHECK_STEPS
        ranks.copy_from_first([tensor.data for tensor in (*task.model.parameters(), *task.model.buffers())])
        decay = self.config.ema_decay
        self._average = moving_average(task.model, decay) if decay > 0 else None
        self._gradients = ranks.gradient_sum(self._parameters)

    def run(self) -> TrainingPosition:
        """Train from its position to the end."""
        while not self.position.is_over:
            self._train_epoch()
            self._finish_epoch()
        return self.position

    # One epoch

    def _train_epoch(self) -> None:
        self.task.model.train()
        self._timer.read()
        position, num_samples = self.position, self.task.clips.num_samples
        batches = self.task.clips.batches(position.epoch, position.samples)
        try:
            while position.samples < num_samples:
                with self._timer.phase("data_wait"):
                    batch = next(batches)
                self._step(batch)
                position.samples = min(position.samples + self._batch_size, num_samples)
                if position.samples < num_samples:  # the epoch's end saves and logs by itself
                    self._log_and_save()
        finally:
            batches.close()  # what is being decoded ahead is nobody's any more

    def _log_and_save(self) -> None:
        step = self.position.step
        must_save = step % self.config.save_every_steps == 0 or self._sees_preemption(step)
        if must_save or step % self.config.log_every_steps == 0:
            self._log_sums()
        if must_save:
            self._save()

    def _sees_preemption(self, step: int) -> bool:
        """True once, at the first notice: the state is saved at once, and training goes on until the end comes."""
        if self._was_preempted or step % self._preemption_check_steps:
            return False
        self._was_preempted = self._is_preempted()
        return self._was_preempted

    def _finish_epoch(self) -> None:
        position = self.position
        self._log_sums()
        self._share_bad_videos()
        is_last = position.epoch + 1 >= self.hyper.epochs
        if not is_last:
            self.task.clips.prefetch(position.epoch + 1)
        if is_last or (position.epoch + 1) % self.config.validate_every == 0:
            self._note_if_best(self._validation_figures())
        position.epoch, position.samples = position.epoch + 1, 0
        patience = self.config.patience
        position.is_over = is_last or (0 < patience <= position.num_without_gain)
        self._save()

    def _validation_figures(self) -> dict[str, Any]:
        """Figures of the weights that would be published."""
        figures = self._validate(self._published_model.eval())
        self._add_row({"kind": "validation", **figures})
        return figures

    def _note_if_best(self, figures: dict[str, Any]) -> None:
        position, name = self.position, self.config.best_metric
        # Of equal accuracies, as small validation parts give, the surer one is better.
        key = (-figures["nll"] if name == "nll" else figures[name], -figures["nll"])
        if position.best_key is not None and key <= tuple(position.best_key):
            position.num_without_gain += 1
            return
        position.best_key, position.best_step, position.best_epoch = list(key), position.step, position.epoch
        position.num_without_gain = 0
        if self.ranks.is_first:
            self._writer.save_best(position.step, self.published_tensors())

    # One step

    def _step(self, batch: Batch) -> None:
        step = self.position.step
        total = self._total_weight(batch)
        with self._timer.phase("forward_backward"):
            loss, num_valid = self._backward(batch, total)
        with self._timer.phase("communication"):
            self._gradients.finish()
            self.ranks.average(self._buffers)
        with self._timer.phase("optimizer"):
            rate = self.hyper.learning_rate * learning_rate_factor(step, num_steps=self.num_steps, hyper=self.hyper)
            norm = self._update(rate)
        self.position.step = step + 1
        self._sums.add(loss, norm, rate=rate, num_valid=num_valid)

    def _total_weight(self, batch: Batch) -> torch.Tensor:
        """The weight of the global batch, at least something above 0: all its videos may be bad."""
        total = self._to_device(batch.weights.sum())
        with self._timer.phase("communication"):
            self.ranks.sum_tensor(total)
        return total.clamp_min(1e-6)

    def _backward(self, batch: Batch, total: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Gradients of this rank's part. Slots without weight are left out, also of batch-norm statistics."""
        valid = batch.weights.nonzero().flatten()
        loss = torch.zeros((), device=self.ranks.device)
        size = self.config.micro_batch_size or max(1, len(valid))
        parts = valid.split(size) if len(valid) else ()
        for micro, chosen in enumerate(parts):
            self._seed_forward(micro)
            labels, weights = (self._to_device(values[chosen]) for values in (batch.labels, batch.weights))
            pixels = batch.pixels[chosen] if len(chosen) < len(batch.pixels) else batch.pixels
            part = (self._losses(self._to_device(pixels), labels) * weights).sum() / total
            if micro == len(parts) - 1:
                self._gradients.begin()
            part.backward()
            loss += part.detach()
        return loss, len(valid)

    def _losses(self, views: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(n,) losses of (n, T, H, W, C) uint8 views."""
        targets = soft_targets(labels, num_labels=self.task.num_labels, smoothing=self.hyper.label_smoothing)
        pixels, targets = mix(normalise(views, view=self.task.view), targets, hyper=self.hyper)
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self._bf16):
            logits = forward_pixels(self._forward, pixels, family=self.task.family)
        return cross_entropy(logits, targets, class_weights_C=self._class_weights)

    def _to_device(self, values: torch.Tensor) -> torch.Tensor:
        if self.ranks.device.type == "cuda":  # from pinned memory: other copies wait until the GPU has caught up
            return values.pin_memory().to(self.ranks.device, non_blocking=True)
        return values

    def _seed_forward(self, micro: int) -> None:
        """Everything random in this forward (mixup, dropout, drop path) from (seed, step, micro-step, rank)."""
        entropy = np.random.SeedSequence([self.config.seed, self.position.step, micro, self.ranks.rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _update(self, rate: float) -> torch.Tensor:
        """One step of AdamW; returns the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.hyper.clip_norm or math.inf)
        set_learning_rate(self._optimizer, rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update_parameters(self.task.model)
        return norm

    def _make_class_weights(self) -> torch.Tensor | None:
        if not self.config.class_weights:
            return None
        weights = inverse_frequency(self.task.labels, num_labels=self.task.num_labels)
        return torch.from_numpy(weights).to(self.ranks.device)

    # Metrics

    def _log_sums(self) -> None:
        if self._sums.num_steps == 0:
            return
        seconds = self._timer.read()
        loss, num_clips = self.ranks.sum(self._sums.loss), self.ranks.sum(self._sums.num_valid)
        if not math.isfinite(loss):
            raise RunError(
                f"the loss is {loss} at step {self.position.step}: training diverged. Lower --learning-rate, raise "
                "--warmup-share, set --clip-norm, or take --precision fp32; then --restart-from an earlier state"
            )
        self._set_preemption_check_steps(seconds["total"] / self._sums.num_steps)
        row = {
            "kind": "train",
            "loss": loss / self._sums.num_steps,
            "learning_rate": self._sums.rate,
            "gradient_norm": self._sums.gradient_norm,
            "num_steps": self._sums.num_steps,
            "num_clips": int(num_clips),
            "clips_per_second": num_clips / seconds["total"],
            **{f"{name}_seconds": value for name, value in seconds.items()},
        }
        self._add_row(row)
        self._sums = StepSums(self.ranks.device)

    def _set_preemption_check_steps(self, step_seconds: float) -> None:
        # From the mean over the ranks, so that all of them ask at the same steps.
        mean_seconds = self.ranks.sum(step_seconds) / self.ranks.world_size
        steps_in_time = int(PREEMPTION_CHECK_SECONDS / max(mean_seconds, 1e-9))
        self._preemption_check_steps = max(1, min(PREEMPTION_CHECK_STEPS, steps_in_time))

    def _add_row(self, row: dict[str, Any]) -> None:
        self.metrics_rows.append({"step": self.position.step, "epoch": self.position.epoch, **row})
        if self.ranks.is_first:
            self._report(self.metrics_rows[-1])

    # State

    def _share_bad_videos(self) -> None:
        """Everyone learns which videos are bad, so that whoever gets one next acts the same."""
        self._gather_bad_videos()
        self.task.clips.bad_videos.update(self.position.bad_videos)

    def _gather_bad_videos(self) -> None:
        for bad_videos in self.ranks.gather(dict(self.task.clips.bad_videos)):
            self.position.bad_videos |= bad_videos

    def _save(self) -> None:
        # Within an epoch bad videos are only written down: videos come once in it, and prefetching has run ahead.
        self._gather_bad_videos()
        if self.ranks.is_first:
            self._writer.save(self._state())

    def _state(self) -> State:
        tensors = {"model": to_cpu(self.task.model.state_dict()), "optimizer": to_cpu(self._optimizer_tensors())}
        if self._average is not None:
            tensors["ema"] = to_cpu(self._average.module.state_dict())
        lines = "".join(json.dumps(row) + "\n" for row in self.metrics_rows)
        values = self.position.to_json()
        return State(step=self.position.step, values=values, tensors=tensors, texts={METRICS_FILE: lines})

    def restore(self, state: State) -> None:
        """Go on from a saved state. Every rank must be given the same one."""
        self.task.model.load_state_dict(state.tensors["model"])
        self._restore_optimizer(state.tensors["optimizer"])
        if self._average is not None:
            restore_moving_average(self._average, state.tensors["ema"], step=state.step)
        self.position = TrainingPosition.from_json(state.values)
        self.metrics_rows = [json.loads(line) for line in state.texts[METRICS_FILE].splitlines()]
        self.task.clips.bad_videos.update(self.position.bad_videos)

    def _optimizer_tensors(self) -> Tensors:
        entries = self._optimizer.state_dict()["state"]
        return {f"{index}.{name}": value for index, entry in entries.items() for name, value in entry.items()}

    def _restore_optimizer(self, tensors: Tensors) -> None:
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            entries.setdefault(int(index), {})[name] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": entries, "param_groups": groups})

    def published_tensors(self) -> Tensors:
        """The weights that are validated and published, copied to the CPU."""
        return to_cpu(self._published_model.state_dict())

    @property
    def _published_model(self) -> nn.Module:
        """The average, if there is one."""
        return self.task.model if self._average is None else self._average.module


class StepSums:
    """Sums over the steps since the last line of metrics. Reading them waits for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._norm = torch.zeros((), device=device)
        self.rate, self.num_valid, self.num_steps = 0.0, 0, 0

    def add(self, loss: torch.Tensor, norm: torch.Tensor, *, rate: float, num_valid: int) -> None:
        self._loss += loss
        self._norm = norm
        self.rate = rate
        self.num_valid += num_valid
        self.num_steps += 1

    @property
    def loss(self) -> float:
        return float(self._loss)

    @property
    def gradient_norm(self) -> float:
        """Of the last step, before clipping."""
        return float(self._norm)
