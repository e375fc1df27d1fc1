"""Experiment trackers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray_estimator._engine import entrypoints
from ray_estimator._numbers import check_number


def mlflow_hook(run_id: str | None = None, *, every_n_steps: int = 100) -> Callable[[], Any]:
    """Return a hook for `train` that logs `loss` and `steps_per_second` to an MLflow run, from the chief.

        with mlflow.start_run():
            mlflow.log_params(estimator.params)
            estimator.train(input_fn, max_steps=1000, hooks=[mlflow_hook()])
            results = estimator.evaluate(test_input_fn)
            mlflow.log_metrics({f"eval_{name}": value for name, value in results.items()}, step=results["global_step"])

    The chief connects to the tracking URI of this process, which must be reachable from it, such as a server's. It
    needs `mlflow` or `mlflow-skinny` (the extra `mlflow`). Training continues if the tracker does not respond.

    Args:
        run_id: The run. None: the active one.
        every_n_steps: Steps between log entries. The last step is always logged.

    Returns:
        A function that creates the hook on each worker.

    Raises:
        ValueError: There is no active run, or `every_n_steps` is not positive.
        ImportError: MLflow is not installed here.
    """
    import mlflow

    check_number("every_n_steps", every_n_steps, integer=True)
    if run_id is None:
        active = mlflow.active_run()
        if active is None:
            raise ValueError(
                "There is no active MLflow run. Call mlflow_hook inside `with mlflow.start_run():`, or pass run_id."
            )
        run_id = active.info.run_id
    return partial(entrypoints.mlflow_hook, mlflow.get_tracking_uri(), run_id, every_n_steps)
