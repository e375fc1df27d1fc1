"""The names of `tf.estimator.experimental`.

`InMemoryEvaluatorHook` imports TensorFlow, so it is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_estimator.experimental.early_stopping import (
    make_early_stopping_hook,
    make_stop_at_checkpoint_step_hook,
    read_eval_metrics,
    stop_if_higher_hook,
    stop_if_lower_hook,
    stop_if_no_decrease_hook,
    stop_if_no_increase_hook,
)
from ray_estimator.experimental.logits import call_logit_fn
from ray_estimator.export import build_raw_supervised_input_receiver_fn

if TYPE_CHECKING:
    from ray_estimator.experimental.in_memory_evaluator import InMemoryEvaluatorHook

__all__ = [
    "InMemoryEvaluatorHook",
    "build_raw_supervised_input_receiver_fn",
    "call_logit_fn",
    "make_early_stopping_hook",
    "make_stop_at_checkpoint_step_hook",
    "read_eval_metrics",
    "stop_if_higher_hook",
    "stop_if_lower_hook",
    "stop_if_no_decrease_hook",
    "stop_if_no_increase_hook",
]


def __getattr__(name: str) -> Any:
    if name != "InMemoryEvaluatorHook":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ray_estimator.experimental.in_memory_evaluator import InMemoryEvaluatorHook

    return InMemoryEvaluatorHook
