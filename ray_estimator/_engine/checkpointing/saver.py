"""Build the saver of a graph so that restoring never changes the shape of a variable."""

from __future__ import annotations

from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._tf_private import graphs


def saver_of(scaffold: v1.train.Scaffold, **retention: Any) -> Any:
    """Return the saver of a session: the Scaffold's, or the one in the graph's collection, or a new one.

    A new one is added to the collection, but not built yet: hooks may add variables in `begin`.
    """
    if scaffold.saver is not None:
        return scaffold.saver
    collected = v1.get_collection(v1.GraphKeys.SAVERS)
    if collected:
        return collected[0]
    saver = v1.train.Saver(sharded=True, allow_empty=True, defer_build=True, save_relative_paths=True, **retention)
    v1.add_to_collection(v1.GraphKeys.SAVERS, saver)
    return saver


def build_saver(saver: Any) -> None:
    """Build the saver, and make it reject values of another shape. Call before a session runs the graph.

    TensorFlow's own restore gives a resource variable the shape of the value in the checkpoint.
    """
    if isinstance(saver, v1.train.Saver):
        saver.build()
    saver_def = getattr(saver, "saver_def", None)
    if saver_def is None:
        # The user's own class of saver: its operations are unknown.
        return
    restore_op = v1.get_default_graph().as_graph_element(saver_def.restore_op_name)
    for op in ancestors([restore_op]):
        if op.type == "AssignVariableOp":
            graphs.keep_shape(op)


class BuildRestore(v1.train.SessionRunHook):
    """Builds the saver of a session that only restores, after the `begin` of every earlier hook."""

    def __init__(self, scaffold: v1.train.Scaffold) -> None:
        self._scaffold = scaffold

    def begin(self) -> None:
        build_saver(saver_of(self._scaffold))
