"""Ray metrics of a training run: gauges and a counter, tagged with the run."""

from __future__ import annotations

import posixpath

from ray.util.metrics import Counter, Gauge

from ray_estimator._jobs.worker import GroupView, StatusSnapshot

# Ray prefixes each name with `ray_`.
_GAUGES = {
    "estimator_step": "The last completed global step.",
    "estimator_loss": "The last loss that was read: the mean over the replicas.",
    "estimator_examples_per_second": "Training examples per second, over all workers.",
    "estimator_step_seconds": "Duration of a step, with hooks and input.",
    "estimator_input_wait_ratio": "Fraction of the time that the chief waits for input, from 0 to 1.",
    "estimator_checkpoint_step": "The step of the newest published checkpoint.",
    "estimator_save_seconds": "How long the last checkpoint took to publish, concurrently with training.",
}
_RESTARTS = "estimator_restarts"


class RunMetrics:
    """The metrics of one run. On the driver; Ray exports them while the driver lives.

    Args:
        model_dir: Its last path component is the tag `run`.
    """

    def __init__(self, model_dir: str) -> None:
        tags = {"run": posixpath.basename(model_dir.rstrip("/"))}
        self._gauges = {name: Gauge(name, description, ("run",)) for name, description in _GAUGES.items()}
        self._restarts = Counter(_RESTARTS, "How often the worker group was restarted.", ("run",))
        for metric in (*self._gauges.values(), self._restarts):
            metric.set_default_tags(tags)
        self._group = 1

    def update(self, view: GroupView) -> None:
        """Set the metrics to the run's current state."""
        if view.number > self._group:
            self._restarts.inc(view.number - self._group)
            self._group = view.number
        chief = view.statuses.get(0)
        if chief is None or chief.step < 0:
            return
        for name, value in _values(chief).items():
            if value is not None:
                self._gauges[name].set(value)


def _values(chief: StatusSnapshot) -> dict[str, float | None]:
    values = (
        chief.step,
        chief.loss,
        chief.examples_per_sec,
        chief.step_secs,
        chief.input_wait,
        chief.published_step,
        chief.publishing_secs,
    )
    return dict(zip(_GAUGES, values, strict=True))
