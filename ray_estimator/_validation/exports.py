"""Check the arguments of an export."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Mapping
from typing import Any

from ray_estimator._storage.storage import Storage
from ray_estimator.spec import MODES

ReceiverFn = Callable[[], Any]


def checked_receiver_fns(input_receiver_fn_map: Any) -> dict[str, ReceiverFn]:
    """Return the receiver functions by mode, without modes whose function is None.

    Raises:
        ValueError: No mode remains, or a mode is unknown.
        TypeError: `input_receiver_fn_map` is not a dict of functions.
    """
    if not isinstance(input_receiver_fn_map, Mapping):
        raise TypeError(f"input_receiver_fn_map must be a dict of mode to function, got {input_receiver_fn_map!r}.")
    given = {mode: fn for mode, fn in input_receiver_fn_map.items() if fn is not None}
    if not given or not set(given) <= set(MODES):
        raise ValueError(
            f"No valid modes for exporting found. Got {list(input_receiver_fn_map)}. Pass an input_receiver_fn for "
            f"modes in {list(MODES)} (see ModeKeys)."
        )
    for mode, fn in given.items():
        if not callable(fn):
            raise TypeError(f"The input_receiver_fn for mode {mode!r} must be callable, got {fn!r}.")
    return given


def checked_assets(assets_extra: Any, storage: Storage) -> dict[str, str]:
    """Return absolute sources by normalized destination below ``assets.extra``.

    Raises:
        ValueError: A destination is not below ``assets.extra``.
        FileNotFoundError: A source is not a file.
        TypeError: `assets_extra` is not a dict.
    """
    if assets_extra is None:
        return {}
    if not isinstance(assets_extra, Mapping):
        raise TypeError(f"assets_extra must be a dict of destination to source path, got {assets_extra!r}.")
    return {_destination(name): _source(source, name, storage) for name, source in assets_extra.items()}


def _destination(name: Any) -> str:
    path = posixpath.normpath(os.fsdecode(name))
    if os.path.isabs(path) or path == "." or path.split("/")[0] == "..":
        raise ValueError(
            f"A destination in assets_extra must be a relative path of a file below assets.extra, got {name!r}."
        )
    return path


def _source(source: Any, name: Any, storage: Storage) -> str:
    url = storage.normalize(os.fsdecode(source))
    if not storage.is_file(url):
        raise FileNotFoundError(
            errno.ENOENT, f"The source of assets_extra[{name!r}] must be a file, but does not exist", url
        )
    return url
