"""What restores and saves a graph's variables, and that restoring never changes a variable's shape."""

from __future__ import annotations

from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._engine.tf_private import graphs


def saver_of(scaffold: v1.train.Scaffold, **retention: Any) -> Any:
    """The saver of a session: the Scaffold's, else the one in the graph's collection, else a new one put there.

    A new one is not built yet, because hooks may add variables when they begin.
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
    """Builds the saver, before any session has run the graph; it then refuses values of another shape.

    Unhelped, restoring gives a resource variable the shape of what the checkpoint holds.
    """
    if isinstance(saver, v1.train.Saver):
        saver.build()
    saver_def = getattr(saver, "saver_def", None)
    if saver_def is None:
        # A saver of the user's own kind: nobody can say what it runs.
        return
    restore_op = v1.get_default_graph().as_graph_element(saver_def.restore_op_name)
    for op in ancestors([restore_op]):
        if op.type == "AssignVariableOp":
            graphs.keep_shape(op)


class BuildRestore(v1.train.SessionRunHook):
    """Builds the saver of a session that only restores, when every hook before it has begun."""

    def __init__(self, scaffold: v1.train.Scaffold) -> None:
        self._scaffold = scaffold

    def begin(self) -> None:
        build_saver(saver_of(self._scaffold))
