"""`WarmStartSettings`: initialize the variables of a new model from another model.

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
    """A changed vocabulary of a variable's rows or columns, like `tf.compat.v1.train.VocabInfo`.

    Args:
        new_vocab: File with one entry per line, in the order of the new variable; a local path or a URL.
        new_vocab_size: Number of its entries in the new variable.
        num_oov_buckets: Number of rows after those for out-of-vocabulary entries.
        old_vocab: The same file for the variable in the checkpoint.
        old_vocab_size: Number of its entries to use; -1 for all.
        backup_initializer: Initializer of rows that are not in the checkpoint, for example
            `tf.compat.v1.truncated_normal_initializer()`. It must accept a shape that is unknown until the file is
            read. None: zeros.
        axis: 0 if the vocabulary is that of the rows, as in an embedding; 1 for columns, as in a logits layer.

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
    """The initial values of an untrained model's variables, as in tf.estimator.

    They are used while model_dir has no checkpoint, in `train`, `evaluate`, `predict` and exports. Variables that the
    checkpoint does not have, or has with another shape, and vocabularies that no variable uses, are errors.

    Args:
        ckpt_to_initialize_from: Path of a checkpoint without suffix, a model_dir (its newest checkpoint is used), or
            the directory of a SavedModel, on any store that the run's `storage_options` give access to.
        vars_to_warm_start: A regular expression for trainable variables, a list of them for all variables, or a list
            of variables, which are matched by name because every job builds its own graph. Expressions match from the
            start of a name. None: only the variables of `var_name_to_vocab_info`.
        var_name_to_vocab_info: `VocabInfo` by variable name, for variables whose vocabulary changed.
        var_name_to_prev_var_name: Name in the checkpoint by variable name, where they differ.

    Raises:
        ValueError: `ckpt_to_initialize_from` is missing, or `vars_to_warm_start` has another type.
    """

    __slots__ = ()

    def __new__(
        cls,
        ckpt_to_initialize_from: str | bytes | os.PathLike[str],
        vars_to_warm_start: str | Sequence[Any] | None = ".*",
        var_name_to_vocab_info: Mapping[str, Any] | None = None,
        var_name_to_prev_var_name: Mapping[str, str] | None = None,
    ) -> WarmStartSettings:
        """Check the arguments and set the defaults; see the class."""
        if not ckpt_to_initialize_from:
            raise ValueError("`ckpt_to_initialize_from` MUST be set in WarmStartSettings, to the path of a checkpoint.")
        return super().__new__(
            cls,
            os.fsdecode(ckpt_to_initialize_from),
            _as_patterns(vars_to_warm_start),
            dict(var_name_to_vocab_info or {}),
            dict(var_name_to_prev_var_name or {}),
        )


def as_settings(warm_start_from: Any) -> WarmStartSettings | None:
    """Return settings from None, a path, or settings.

    Raises:
        ValueError: `warm_start_from` is something else, or empty.
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
    # In Keras 3 the name of a variable in the graph is its `path`.
    name = getattr(variable, "path", variable.name).removesuffix(":0")
    return rf"{re.escape(name)}(/part_\d+)?(:|$)"
