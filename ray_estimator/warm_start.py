"""`WarmStartSettings`: start the variables of a new model from those of another.

Importing this module imports no TensorFlow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class _VocabFields(NamedTuple):
    new_vocab: str
    new_vocab_size: int
    num_oov_buckets: int
    old_vocab: str
    old_vocab_size: int
    backup_initializer: Any
    axis: int


class VocabInfo(_VocabFields):
    """How the rows (or columns) of a variable moved, since its vocabulary changed; as `tf.compat.v1.train.VocabInfo`.

    Args:
        new_vocab: File with one entry a line, in the order of the new variable; a local path or a URL.
        new_vocab_size: How many of its entries the new variable has.
        num_oov_buckets: How many rows behind those are for entries out of the vocabulary.
        old_vocab: The same file for the variable in the checkpoint.
        old_vocab_size: How many of its entries count; -1 for all.
        backup_initializer: What fills rows without an old one, for example
            `tf.compat.v1.truncated_normal_initializer()`; one that takes a shape that is not known before the file is
            read. None: zeros.
        axis: 0 if the vocabulary names rows, as of an embedding; 1 for columns, as of a layer of logits.

    Raises:
        ValueError: `axis` is neither 0 nor 1.
    """

    __slots__ = ()

    def __new__(
        cls,
        new_vocab: str,
        new_vocab_size: int,
        num_oov_buckets: int,
        old_vocab: str,
        old_vocab_size: int = -1,
        backup_initializer: Any = None,
        axis: int = 0,
    ) -> VocabInfo:
        """Check the axis; see the class."""
        if axis not in (0, 1):
            raise ValueError(f"The only supported values for the axis argument are 0 and 1, got {axis!r}.")
        return super().__new__(
            cls, new_vocab, new_vocab_size, num_oov_buckets, old_vocab, old_vocab_size, backup_initializer, axis
        )


class _Fields(NamedTuple):
    ckpt_to_initialize_from: str
    vars_to_warm_start: str | list[str] | None
    var_name_to_vocab_info: Mapping[str, Any]
    var_name_to_prev_var_name: Mapping[str, str]


class WarmStartSettings(_Fields):
    """Where the variables of an untrained model start from, as in tf.estimator.

    It acts where a model has no checkpoint of its own: in `train`, and in `evaluate`, `predict` and exports too.
    Variables of other names or shapes than the checkpoint's, and vocabularies that no variable uses, are errors.

    Args:
        ckpt_to_initialize_from: A checkpoint's path without suffix, a model_dir, whose newest checkpoint it is then,
            or the directory of a SavedModel; on any store that the run's `storage_options` open.
        vars_to_warm_start: A regular expression over trainable variables; a list of such over all variables; a list
            of variables, of which the names count, since every job builds a graph of its own; or None for those of
            `var_name_to_vocab_info` alone. Expressions match from the beginning of a name.
        var_name_to_vocab_info: `VocabInfo` by variable name, for variables whose rows moved.
        var_name_to_prev_var_name: Name in the checkpoint by variable name, where they differ.

    Raises:
        ValueError: There is no `ckpt_to_initialize_from`, or `vars_to_warm_start` is of another kind.
    """

    __slots__ = ()

    def __new__(
        cls,
        ckpt_to_initialize_from: str | bytes | os.PathLike[str],
        vars_to_warm_start: str | Sequence[Any] | None = ".*",
        var_name_to_vocab_info: Mapping[str, Any] | None = None,
        var_name_to_prev_var_name: Mapping[str, str] | None = None,
    ) -> WarmStartSettings:
        """Check and fill in the defaults; see the class."""
        if not ckpt_to_initialize_from:
            raise ValueError("`ckpt_to_initialize_from` MUST be set in WarmStartSettings: the path of a checkpoint.")
        return super().__new__(
            cls,
            os.fsdecode(ckpt_to_initialize_from),
            _as_patterns(vars_to_warm_start),
            dict(var_name_to_vocab_info or {}),
            dict(var_name_to_prev_var_name or {}),
        )


def as_settings(warm_start_from: Any) -> WarmStartSettings | None:
    """Settings from what a caller gave: None, a path, or settings.

    Raises:
        ValueError: It is something else, or empty.
    """
    if warm_start_from is None or isinstance(warm_start_from, WarmStartSettings):
        return warm_start_from
    if isinstance(warm_start_from, str | bytes | os.PathLike):
        return WarmStartSettings(warm_start_from)
    raise ValueError(
        f"warm_start_from must be a string or a WarmStartSettings, instead got {type(warm_start_from)}: "
        f"{warm_start_from!r}."
    )


def _as_patterns(variables: Any) -> str | list[str] | None:
    if variables is None or isinstance(variables, str):
        return variables
    if not isinstance(variables, list | tuple):
        raise ValueError(f"`vars_to_warm_start` must be a `list` or `str` or None, got {variables!r}.")
    if all(isinstance(each, str) for each in variables):
        return list(variables)
    if any(isinstance(each, str) or not isinstance(getattr(each, "name", None), str) for each in variables):
        kinds = sorted({type(each).__name__ for each in variables})
        raise ValueError(
            f"If `vars_to_warm_start` is a list, it must be all `Variable` or all `str`, got elements of {kinds}."
        )
    return [_pattern_of(each) for each in variables]


def _pattern_of(variable: Any) -> str:
    # A variable of Keras 3 has its name in the graph as `path`.
    name = getattr(variable, "path", variable.name).removesuffix(":0")
    return rf"{re.escape(name)}(/part_\d+)?(:|$)"
