"""`WarmStartSettings`: start the variables of a new model from those of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class WarmStartSettings(NamedTuple):
    """Where the variables of an untrained model start from, as in tf.estimator.

    Attributes:
        ckpt_to_initialize_from: A checkpoint's path without suffix, or a model_dir, whose newest checkpoint it is then;
            on any store.
        vars_to_warm_start: A regular expression over trainable variables, a list of such over all variables, a list
            of variables, or None for those of `var_name_to_vocab_info` alone.
        var_name_to_vocab_info: `tf.compat.v1.train.VocabInfo` by variable name, for variables whose rows moved.
        var_name_to_prev_var_name: Name in the checkpoint by variable name, where they differ.
    """

    ckpt_to_initialize_from: str
    vars_to_warm_start: Any = ".*"
    var_name_to_vocab_info: Mapping[str, Any] | None = None
    var_name_to_prev_var_name: Mapping[str, str] | None = None


def as_settings(warm_start_from: Any) -> WarmStartSettings | None:
    """Settings from what a caller gave: None, a path, or settings.

    Raises:
        ValueError: It is something else, or names no checkpoint.
    """
    if warm_start_from is None or isinstance(warm_start_from, WarmStartSettings):
        settings = warm_start_from
    elif isinstance(warm_start_from, str | bytes):
        path = warm_start_from.decode() if isinstance(warm_start_from, bytes) else warm_start_from
        settings = WarmStartSettings(path)
    else:
        raise ValueError(
            f"warm_start_from must be a string or a WarmStartSettings, instead got {type(warm_start_from)}."
        )
    if settings is not None and not settings.ckpt_to_initialize_from:
        raise ValueError("`ckpt_to_initialize_from` MUST be set in WarmStartSettings")
    return settings
