"""Private names of TensorFlow's API: its private packages, and the public names of its symbols."""

from __future__ import annotations

from typing import Any

from tensorflow.python.util import tf_export

PRIVATE_PACKAGES = ("tensorflow.python", "tensorflow.core", "tensorflow.compiler")
"""Packages whose modules are imported by path, because they are not attributes of their parents."""


def public_name_of(symbol: Any) -> str | None:
    """Return the public name below ``tf.`` of a function or class of TensorFlow; None if it is private."""
    name: str | None = tf_export.get_canonical_name_for_symbol(symbol, add_prefix_to_v1_names=True)
    return name
