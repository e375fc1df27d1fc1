"""What Ray's metrics tell of a training run: gauges and a counter of the driver's, tagged with the run."""

from __future__ import annotations

import posixpath

from ray.util.metrics import Counter, Gauge

from ray_estimator._jobs.worker import GroupView, StatusSnapshot

# Ray puts `ray_` before each name.
_GAUGES = {
    "estimator_step": "The last global step that ended.",
    "estimator_loss": "The last loss that was looked at: the mean over the replicas.",
    "estimator_examples_per_second": "Rows that all workers train on in a second.",
    "estimator_step_seconds": "How long a step takes, with hooks and input.",
    "estimator_input_wait_ratio": "The part of the time that the chief waits for input, from 0 to 1.",
    "estimator_checkpoint_step": "The step of the newest published checkpoint.",
    "estimator_save_seconds": "How long the last checkpoint took to be published, beside training.",
}
_RESTARTS = "estimator_restarts"


class RunMetrics:
    """Keeps the metrics of one run. On the driver, from which Ray exports them as long as it lives.

    Args:
        model_dir: Of it, the last part is the tag `run`.
    """

    def __init__(self, model_dir: str) -> None:
        tags = {"run": posixpath.basename(model_dir.rstrip("/"))}
        self._gauges = {name: Gauge(name, what, ("run",)) for name, what in _GAUGES.items()}
        self._restarts = Counter(_RESTARTS, "How often the group of workers was started again.", ("run",))
        for metric in (*self._gauges.values(), self._restarts):
            metric.set_default_tags(tags)
        self._group = 1

    def show(self, view: GroupView) -> None:
        """Takes over the newest state of the run."""
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
