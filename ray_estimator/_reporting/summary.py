"""The summary line at the end of train, evaluate, predict and export. On the driver."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_estimator._reporting.progress import print_line

if TYPE_CHECKING:
    from ray_estimator._checkpoints.store import Checkpoint
    from ray_estimator._jobs.results import TrainResult
    from ray_estimator.config import RunConfig

_NO_METRICS = {"loss", "global_step"}


class Summary:
    """The summary line of one call. Its construction starts the clock.

    Args:
        config: Configuration of the run. `RunConfig.progress` disables the line.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._began = time.monotonic()

    def trained(self, result: TrainResult, first_step: int) -> None:
        """Print the line of a training run that has ended."""
        parts = [f"{_many(result.step - first_step, 'step')} in {self._secs}"]
        if result.examples_per_sec is not None:
            parts.append(f"{result.examples_per_sec:,.0f} examples/s after startup")
        if result.loss is not None:
            parts.append(f"loss {result.loss:.4g}")
        if result.published_step is not None:
            parts.append(f"checkpoint {str(self._config.model_dir).rstrip('/')}/model.ckpt-{result.published_step}")
        self._print(f"trained to step {result.step}: {', '.join(parts)}")

    def evaluated(self, results: Mapping[str, Any], name: str | None) -> None:
        """Print the line of an evaluation, with its scalar metrics."""
        metrics = {metric: results[metric] for metric in sorted(results) if metric not in _NO_METRICS}
        scalars = {metric: value for metric, value in {**metrics, "loss": results["loss"]}.items() if _is_number(value)}
        shown = ", ".join(f"{metric} {float(value):.4g}" for metric, value in scalars.items())
        of_name = f" ({name})" if name else ""
        self._print(f"evaluated step {int(results['global_step'])}{of_name} in {self._secs}: {shown}")

    def predicted(self, number: int, what: str, checkpoint: Checkpoint | None) -> None:
        """Print the line of a prediction that was read to its end."""
        self._print(f"predicted {_many(number, what)} with {_name(checkpoint)} in {self._secs}")

    def exported(self, path: str, checkpoint: Checkpoint | None) -> None:
        """Print the line of an export."""
        self._print(f"exported {_name(checkpoint)} in {self._secs}: {path}")

    @property
    def _secs(self) -> str:
        return f"{time.monotonic() - self._began:.1f} s"

    def _print(self, line: str) -> None:
        print_line(self._config, line)


def _many(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("ch") else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"


def _name(checkpoint: Checkpoint | None) -> str:
    return "initial weights" if checkpoint is None else f"step {checkpoint.step}"


def _is_number(value: Any) -> bool:
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "biuf"
