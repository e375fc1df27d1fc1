"""`InMemoryEvaluatorHook`. Importing this module imports TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_estimator._engine.in_memory_evaluation import EvaluateInMemory
from ray_estimator._validation.arguments import check_steps, checked_hooks
from ray_estimator._validation.user_functions import check_input_fn
from ray_estimator.estimator import Estimator, job_builder_of
from ray_estimator.inputs import InputFn
from ray_estimator.spec import ModeKeys


class InMemoryEvaluatorHook(EvaluateInMemory):
    """A hook that evaluates in the training process, between steps, without checkpoints.

    As in tf.estimator, it builds an EVAL graph alongside the training graph and copies the variables from the training
    session: before the first step, after every `every_n_iter` steps, and at the end. Events are written to the
    Estimator's ``eval_dir(name)``. Training waits for each evaluation.

    It runs in the training process: the caller's, or that of the worker with ``num_workers=1``. With several workers
    use `train_and_evaluate`.

    Args:
        estimator: Estimator whose `train` gets the hook.
        input_fn: As in `Estimator.evaluate`.
        steps: As in `Estimator.evaluate`.
        hooks: As in `Estimator.evaluate`. They are used in every evaluation.
        name: As in `Estimator.evaluate`.
        every_n_iter: Steps between evaluations.

    Raises:
        ValueError: `every_n_iter` or `steps` is not positive, or the Estimator trains on several workers. At the start
            of training: the Scaffold of model_fn has a saver or an init_fn, or there are saveables that are not global
            variables.
        TypeError: `estimator` is not an Estimator, or `input_fn` or a hook has the wrong type.
    """

    def __init__(
        self,
        estimator: Estimator,
        input_fn: InputFn,
        steps: int | None = None,
        hooks: Sequence[Any] | None = None,
        name: str | None = None,
        every_n_iter: int = 100,
    ) -> None:
        if every_n_iter is None or every_n_iter <= 0:
            raise ValueError(f"invalid every_n_iter={every_n_iter}. It must be a positive number of steps.")
        workers = estimator.config.num_workers
        if workers > 1:
            raise ValueError(
                "InMemoryEvaluator supports only single machine (aka Local) setting, got an Estimator that trains "
                f"on num_workers={workers}. Use train_and_evaluate, which evaluates checkpoints during training."
            )
        check_input_fn(input_fn, ModeKeys.EVAL)
        check_steps("steps", steps)
        builder = job_builder_of(estimator)
        job, rows = builder.evaluation(
            builder.runtime(), input_fn, steps, checked_hooks(hooks), checkpoint=None, name=name
        )
        super().__init__(job, None if rows is None else rows.tables, every_n_iter)
