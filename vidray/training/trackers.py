"""Weights & Biases and MLflow, where they are installed and asked for."""

from __future__ import annotations

import importlib.util
from typing import Any

from vidray.errors import UsageError
from vidray.training.config import TrainConfig


def check_trackers(config: TrainConfig) -> None:
    """Raises UsageError if one is asked for that is not installed."""
    for name in config.log_to:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--log-to {name}: it is not installed; pip install {name}")


class Trackers:
    """Passes the lines of metrics on to all that were asked for. Made on the first rank alone."""

    def __init__(self, config: TrainConfig) -> None:
        check_trackers(config)
        self._runs = [_RUN_CLASSES[name](config) for name in config.log_to]

    def log(self, row: dict[str, Any]) -> None:
        """One line of metrics."""
        values = {
            f"{row['kind']}/{name}": float(value)
            for name, value in row.items()
            if name not in ("kind", "step") and isinstance(value, int | float)
        }
        for run in self._runs:
            run.log(values, row["step"])

    def close(self) -> None:
        """End the runs."""
        for run in self._runs:
            run.close()


class _Wandb:
    def __init__(self, config: TrainConfig) -> None:
        import wandb

        self._run = wandb.init(project="vidray", config=config.settings(), notes=config.output)

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, config: TrainConfig) -> None:
        import mlflow

        self._client = mlflow
        mlflow.start_run()
        mlflow.log_params({name: str(value)[:500] for name, value in config.settings().items()})

    def log(self, values: dict[str, float], step: int) -> None:
        self._client.log_metrics(values, step=step)

    def close(self) -> None:
        self._client.end_run()


_RUN_CLASSES: dict[str, Any] = {"wandb": _Wandb, "mlflow": _Mlflow}
