"""The training loop: plain torch, one process of any number. What it needs is given to it; no Ray, no files, no videos.

    epoch: global batch k = slice [kG, (k+1)G) of the epoch's order; each rank has its part of it
    step:  forward and backward per micro-batch ─> one sum of gradients ─> clip ─> AdamW ─> moving average
    then:  validate ─> best? ─> state

Every loss is divided by the weight of the whole global batch, so the number of workers does not change the mathematics,
whatever the last batch's size and whatever video is bad. Nothing random is stored: each forward's dropout and mixup
follow from (seed, step, micro-step, rank), so a resumed run repeats to the bit what it would have done.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from vidray.errors import RunError
from vidray.models.predict import forward_pixels, normalise
from vidray.training.config import TrainConfig
from vidray.training.loop.mixing import cross_entropy, inverse_frequency, mix, soft_targets
from vidray.training.loop.optim import (
    MovingAverage,
    learning_rate_factor,
    make_optimizer,
    set_learning_rate,
    trainable,
)
from vidray.training.loop.ranks import Ranks
from vidray.training.loop.state import State, Tensors, to_cpu
from vidray.training.loop.step_timer import Clock
from vidray.training.loop.task import METRICS_FILE, Batch, Keeper, Progress, Task

NOTICE_EVERY_STEPS = 10
"""Steps between questions whether a node is about to be taken; each is a barrier of all workers. Fewer where they take
more than ``NOTICE_EVERY_SECONDS``: a node may be gone half a minute after the notice."""
NOTICE_EVERY_SECONDS = 5.0


class Loop:
    """Trains until done.

    Args:
        validate: called by every rank after an epoch with the model in eval mode; returns the same figures to all.
        keeper: where states go.
        notice: True when this process will be ended soon; asked on all ranks alike.
        report: called on the first rank with each line of the metrics.
    """

    def __init__(
        self,
        task: Task,
        ranks: Ranks,
        *,
        validate: Callable[[nn.Module], dict[str, Any]],
        keeper: Keeper,
        notice: Callable[[], bool] = lambda: False,
        report: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        self.task, self.ranks, self.config, self.hyper = task, ranks, task.config, task.config.hyper
        self.progress = Progress()
        self.rows: list[dict[str, Any]] = []
        self._validate, self._keeper, self._notice, self._report = validate, keeper, notice, report
        self._batch_size = self.config.global_batch_size
        self._steps_per_epoch = math.ceil(task.clips.num_samples / self._batch_size)
        self._num_steps = self._steps_per_epoch * self.hyper.epochs
        self._parameters = trainable(task.model)
        kept = task.model.state_dict().keys()
        self._buffers = [tensor for name, tensor in task.model.named_buffers() if name in kept]
        self._optimizer = make_optimizer(task.model, task.family, self.hyper)
        self._class_weights = self._make_class_weights()
        self._forward: Callable[..., Any] = torch.compile(task.model) if self.config.compile else task.model
        self._bf16 = use_bf16(self.config, ranks.device)
        self._clock = Clock(ranks.device)
        self._window = _Window(ranks.device)
        self._has_noticed, self._notice_every = False, NOTICE_EVERY_STEPS
        ranks.copy_from_first([tensor.data for tensor in (*task.model.parameters(), *task.model.buffers())])
        decay = self.config.ema_decay
        self._average = MovingAverage(task.model.state_dict(), decay) if decay > 0 else None

    def run(self) -> Progress:
        """Train from where the progress stands to the end."""
        while not self.progress.is_over:
            self._train_epoch()
            self._finish_epoch()
        return self.progress

    # One epoch

    def _train_epoch(self) -> None:
        self.task.model.train()
        self._clock.read()
        progress, num_samples = self.progress, self.task.clips.num_samples
        batches = self.task.clips.batches(progress.epoch, progress.samples)
        try:
            while progress.samples < num_samples:
                with self._clock.phase("data_wait"):
                    batch = next(batches)
                self._step(batch)
                progress.samples = min(progress.samples + self._batch_size, num_samples)
                if progress.samples < num_samples:  # the epoch's end saves and logs by itself
                    self._log_and_save()
        finally:
            batches.close()  # what is being decoded ahead is nobody's any more

    def _log_and_save(self) -> None:
        step = self.progress.step
        must_save = step % self.config.save_every_steps == 0 or self._was_noticed(step)
        if must_save or step % self.config.log_every_steps == 0:
            self._log_window()
        if must_save:
            self._save()

    def _was_noticed(self, step: int) -> bool:
        """True once, at the first notice: the state is saved at once, and training goes on until the end comes."""
        if self._has_noticed or step % self._notice_every:
            return False
        self._has_noticed = self._notice()
        return self._has_noticed

    def _finish_epoch(self) -> None:
        progress = self.progress
        self._log_window()
        self._share_verdicts()
        is_last = progress.epoch + 1 >= self.hyper.epochs
        if not is_last:
            self.task.clips.prefetch(progress.epoch + 1)
        if is_last or (progress.epoch + 1) % self.config.validate_every == 0:
            self._judge(self._validated())
        progress.epoch, progress.samples = progress.epoch + 1, 0
        patience = self.config.patience
        progress.is_over = is_last or (0 < patience <= progress.num_without_gain)
        self._save()

    def _validated(self) -> dict[str, Any]:
        """Figures of the weights that would be published: the average, if there is one."""
        with self._published_weights():
            self.task.model.eval()
            figures = self._validate(self.task.model)
        self._add_row({"kind": "validation", **figures})
        return figures

    def _judge(self, figures: dict[str, Any]) -> None:
        progress, name = self.progress, self.config.best_metric
        # Of equal accuracies, as small validation parts give, the surer one is better.
        key = (-figures["nll"] if name == "nll" else figures[name], -figures["nll"])
        if progress.best_key is not None and key <= tuple(progress.best_key):
            progress.num_without_gain += 1
            return
        progress.best_key, progress.best_step, progress.best_epoch = list(key), progress.step, progress.epoch
        progress.num_without_gain = 0
        self._keeper.save_best(progress.step, self.published_tensors() if self.ranks.is_first else {})

    # One step

    def _step(self, batch: Batch) -> None:
        step = self.progress.step
        total = self._total_weight(batch)
        with self._clock.phase("forward_backward"):
            loss, num_valid = self._backward(batch, total)
        with self._clock.phase("communication"):
            self.ranks.sum_gradients(self._parameters)
            self.ranks.average(self._buffers)
        with self._clock.phase("optimizer"):
            rate = self.hyper.learning_rate * learning_rate_factor(step, num_steps=self._num_steps, hyper=self.hyper)
            norm = self._update(rate)
        self.progress.step = step + 1
        self._window.add(loss, norm, rate=rate, num_valid=num_valid)

    def _total_weight(self, batch: Batch) -> torch.Tensor:
        """The weight of the global batch, at least something above 0: all its videos may be bad."""
        total = batch.weights.sum().to(self.ranks.device)
        with self._clock.phase("communication"):
            self.ranks.sum_tensor(total)
        return total.clamp_min(1e-6)

    def _backward(self, batch: Batch, total: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Gradients of this rank's part. Slots without weight are left out, also of batch-norm statistics."""
        valid = batch.weights.nonzero().flatten()
        loss = torch.zeros((), device=self.ranks.device)
        size = self.config.micro_batch_size or max(1, len(valid))
        for micro, chosen in enumerate(valid.split(size) if len(valid) else ()):
            rng = self._reseed(micro)
            labels, weights = (values[chosen].to(self.ranks.device) for values in (batch.labels, batch.weights))
            part = (self._losses(self._to_device(batch.pixels, chosen), labels, rng) * weights).sum() / total
            part.backward()
            loss += part.detach()
        return loss, len(valid)

    def _losses(self, views: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """(n,) losses of (n, T, H, W, C) uint8 views."""
        targets = soft_targets(labels, num_labels=self.task.num_labels, smoothing=self.hyper.label_smoothing)
        pixels, targets = mix(normalise(views, view=self.task.view), targets, hyper=self.hyper, rng=rng)
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self._bf16):
            logits = forward_pixels(self._forward, pixels, family=self.task.family)
        return cross_entropy(logits, targets, class_weights_C=self._class_weights)

    def _to_device(self, pixels: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        part = pixels[chosen] if len(chosen) < len(pixels) else pixels
        if self.ranks.device.type == "cuda":
            return part.pin_memory().to(self.ranks.device, non_blocking=True)
        return part

    def _reseed(self, micro: int) -> np.random.Generator:
        """Everything random in this forward from (seed, step, micro-step, rank)."""
        entropy = np.random.SeedSequence([self.config.seed, self.progress.step, micro, self.ranks.rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        return np.random.default_rng(entropy.spawn(1)[0])

    def _update(self, rate: float) -> torch.Tensor:
        """One step of AdamW; returns the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.hyper.clip_norm or math.inf)
        set_learning_rate(self._optimizer, rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self.task.model.state_dict(), step=self.progress.step + 1)
        return norm

    def _make_class_weights(self) -> torch.Tensor | None:
        if not self.config.class_weights:
            return None
        weights = inverse_frequency(self.task.labels, num_labels=self.task.num_labels)
        return torch.from_numpy(weights).to(self.ranks.device)

    # Metrics

    def _log_window(self) -> None:
        if self._window.num_steps == 0:
            return
        seconds = self._clock.read()
        loss, num_clips = self.ranks.sum(self._window.loss), self.ranks.sum(self._window.num_valid)
        if not math.isfinite(loss):
            raise RunError(
                f"the loss is {loss} at step {self.progress.step}: training diverged. Lower --learning-rate, raise "
                "--warmup-share, set --clip-norm, or take --precision fp32; then --restart-from an earlier state"
            )
        # From a sum over the ranks, so that all of them ask at the same steps.
        step_seconds = self.ranks.sum(seconds["total"]) / self.ranks.world_size / self._window.num_steps
        self._notice_every = max(1, min(NOTICE_EVERY_STEPS, int(NOTICE_EVERY_SECONDS / max(step_seconds, 1e-9))))
        row = {
            "kind": "train",
            "loss": loss / self._window.num_steps,
            "learning_rate": self._window.rate,
            "gradient_norm": self._window.gradient_norm,
            "num_steps": self._window.num_steps,
            "num_clips": int(num_clips),
            "clips_per_second": num_clips / seconds["total"],
            **{f"{name}_seconds": value for name, value in seconds.items()},
        }
        self._add_row(row)
        self._window = _Window(self.ranks.device)

    def _add_row(self, row: dict[str, Any]) -> None:
        self.rows.append({"step": self.progress.step, "epoch": self.progress.epoch, **row})
        if self.ranks.is_first:
            self._report(self.rows[-1])

    # State

    def _share_verdicts(self) -> None:
        """Everyone learns which videos are bad, so that whoever gets one next acts the same."""
        self._gather_verdicts()
        self.task.clips.verdicts.update({int(row): status for row, status in self.progress.verdicts.items()})

    def _gather_verdicts(self) -> None:
        clips = self.task.clips
        for verdicts, messages in self.ranks.gather((dict(clips.verdicts), dict(clips.messages))):
            self.progress.verdicts |= {str(row): status for row, status in verdicts.items()}
            self.progress.messages |= {str(row): message for row, message in messages.items()}

    def _save(self) -> None:
        # Within an epoch verdicts are only written down: videos come once in it, and prefetching has run ahead.
        self._gather_verdicts()
        if self.ranks.is_first:
            self._keeper.save(self._state())

    def _state(self) -> State:
        tensors = {"model": to_cpu(self.task.model.state_dict()), "optimizer": to_cpu(self._optimizer_tensors())}
        if self._average is not None:
            tensors["ema"] = to_cpu(self._average.tensors)
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        values = dataclasses.asdict(self.progress)  # a copy, to the bottom: it is written while training goes on
        return State(step=self.progress.step, values=values, tensors=tensors, texts={METRICS_FILE: lines})

    def restore(self, state: State) -> None:
        """Go on from a saved state. Every rank must be given the same one."""
        self.task.model.load_state_dict(state.tensors["model"])
        self._restore_optimizer(state.tensors["optimizer"])
        if self._average is not None:
            for name, tensor in state.tensors["ema"].items():
                self._average.tensors[name].copy_(tensor)
        self.progress = Progress(**state.values)
        self.rows = [json.loads(line) for line in state.texts[METRICS_FILE].splitlines()]
        self.task.clips.verdicts.update({int(row): status for row, status in self.progress.verdicts.items()})

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
        return to_cpu(self._average.tensors if self._average is not None else self.task.model.state_dict())

    def _published_weights(self) -> _Swapped:
        return _Swapped(self.task.model, None if self._average is None else self._average.tensors)


class _Swapped:
    """Puts other weights into a network for a while."""

    def __init__(self, model: nn.Module, tensors: Tensors | None) -> None:
        self._model, self._tensors = model, tensors

    def __enter__(self) -> None:
        if self._tensors is not None:
            self._own = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
            self._model.load_state_dict(self._tensors)

    def __exit__(self, *_: object) -> None:
        if self._tensors is not None:
            self._model.load_state_dict(self._own)


class _Window:
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


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether forwards run under bf16 autocast."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bf16"
