"""Export one checkpoint as a SavedModel, with a MetaGraph for each requested mode and one set of variables."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.checkpointing.saver import build_saver
from ray_estimator._engine.checkpointing.warm_start import checkpoint_or_warm_start
from ray_estimator._engine.distribution.strategy import SingleWorker
from ray_estimator._engine.model import begin_graph, call_model_fn, metric_tuples, open_user_code, scaffold_of
from ray_estimator._jobs.jobs import ExportJob, UserCode
from ray_estimator._storage.saved_model import copy_assets, publish, staging_dir
from ray_estimator._storage.storage import Storage
from ray_estimator._tf_private import saved_model as saved_model_module
from ray_estimator._tf_private import sessions
from ray_estimator.spec import MODES, ModeKeys

logger = logging.getLogger(__name__)

_TAGS = {ModeKeys.TRAIN: tf.saved_model.TRAINING, ModeKeys.EVAL: "eval", ModeKeys.PREDICT: tf.saved_model.SERVING}


@dataclass(frozen=True)
class ModeGraph:
    """The graph of one mode, as a SavedModel needs it.

    Attributes:
        mode: The mode.
        signatures: SignatureDefs by name.
        scaffold: The Scaffold of the spec.
        saver: Restores the variables, here and where the SavedModel is loaded.
        main_op: Runs when the SavedModel is loaded.
    """

    mode: str
    signatures: Mapping[str, Any]
    scaffold: v1.train.Scaffold
    saver: v1.train.Saver
    main_op: tf.Operation


def run(job: ExportJob) -> str:
    """Write a SavedModel and publish it. Runs as one task, or in the caller's process.

    for each mode, build a new graph: inputs of the receiver, model_fn, signatures
    first mode: restore the checkpoint, save the variables
    other modes: restore the saved variables, to check that none is missing
    copy assets; publish the directory

    Returns:
        The path or URL of the new directory, whose name is a timestamp in seconds.
    """
    code = open_user_code(job)
    storage = Storage(job.config.storage_options)
    with staging_dir(storage, job.export_dir_base) as folder:
        saved_model = os.path.join(folder, "saved_model")
        _write(job, code, saved_model)
        copy_assets(storage, job.assets_extra, saved_model)
        return publish(storage, saved_model, job.export_dir_base)


def _write(job: ExportJob, code: UserCode, folder: str) -> None:
    builder = v1.saved_model.Builder(folder)
    first, *others = (mode for mode in MODES if mode in code.receiver_fns)
    with tf.Graph().as_default():
        graph = _build(job, code, first)
        with (
            checkpoint_or_warm_start(job) as prefix,
            v1.Session(config=job.config.resolved_session_config()) as session,
        ):
            if prefix is None:
                _initialize(session, graph.scaffold)
            else:
                _restore(session, graph, prefix, "in the checkpoint")
            builder.add_meta_graph_and_variables(session, [_TAGS[first]], **_meta_graph(graph, job))
    exported = os.path.join(folder, tf.saved_model.VARIABLES_DIRECTORY, tf.saved_model.VARIABLES_FILENAME)
    for mode in others:
        with tf.Graph().as_default():
            graph = _build(job, code, mode)
            with v1.Session(config=job.config.resolved_session_config()) as session:
                _restore(session, graph, exported, f"by mode `{first}`, whose variables the SavedModel has")
            builder.add_meta_graph([_TAGS[mode]], **_meta_graph(graph, job))
    builder.save(job.as_text)


# The graph of a mode


def _build(job: ExportJob, code: UserCode, mode: str) -> ModeGraph:
    begin_graph(job)
    receiver = _input_receiver(code, mode)
    model = call_model_fn(job, code, receiver.features, getattr(receiver, "labels", None), mode, SingleWorker())
    metrics = model.metrics
    if mode == ModeKeys.TRAIN:
        metrics = metric_tuples(model.spec.eval_metric_ops or {}, model.keras_writes)
        saved_model_module.keep_train_op(model.train_op)
    outputs = saved_model_module.export_outputs(
        mode,
        served=getattr(model.spec, "export_outputs", None),
        predictions=model.spec.predictions,
        loss=model.loss,
        metrics=metrics,
    )
    with sessions.without_deprecation_notices():
        signatures = saved_model_module.signature_defs(receiver, outputs)
        if mode == ModeKeys.PREDICT:
            signatures = {name: signature for name, signature in signatures.items() if _is_servable(name, signature)}
    scaffold = scaffold_of(model.spec)
    return ModeGraph(mode, signatures, scaffold, _saver(scaffold), _main_op(scaffold, mode))


def _input_receiver(code: UserCode, mode: str) -> Any:
    receiver = code.receiver_fns[mode]()
    if not hasattr(receiver, "features") or not hasattr(receiver, "receiver_tensors"):
        raise TypeError(
            f"The input_receiver_fn for mode {mode!r} must return a ServingInputReceiver, a "
            f"TensorServingInputReceiver or, with labels, a SupervisedInputReceiver, got {receiver!r}."
        )
    return receiver


def _is_servable(name: str, signature: Any) -> bool:
    if v1.saved_model.is_valid_signature(signature):
        return True
    logger.warning(
        "Signatures EXCLUDED from export because they cannot be served: %r is not valid for Predict, Classify or "
        "Regress in TensorFlow Serving (method %r, inputs %s, outputs %s).",
        name,
        signature.method_name,
        sorted(signature.inputs),
        sorted(signature.outputs),
    )
    return False


def _saver(scaffold: v1.train.Scaffold) -> v1.train.Saver:
    saver = scaffold.saver
    if saver is None:
        saver = v1.train.Saver(sharded=True)
    elif isinstance(saver, tf.train.Checkpoint):
        saver = saved_model_module.saver_of_objects(saver)
    build_saver(saver)
    return saver


def _main_op(scaffold: v1.train.Scaffold, mode: str) -> tf.Operation:
    default = v1.train.Scaffold.default_local_init_op()
    if scaffold.local_init_op is None:
        return default
    # Metrics need the default one as well.
    return scaffold.local_init_op if mode == ModeKeys.PREDICT else tf.group(scaffold.local_init_op, default)


def _meta_graph(graph: ModeGraph, job: ExportJob) -> dict[str, Any]:
    return {
        "signature_def_map": graph.signatures,
        "assets_collection": v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        "main_op": graph.main_op,
        "saver": graph.saver,
        "strip_default_attrs": job.strip_default_attrs,
    }


# The variables


def _initialize(session: v1.Session, scaffold: v1.train.Scaffold) -> None:
    session.run(scaffold.init_op or v1.global_variables_initializer(), scaffold.init_feed_dict)
    if scaffold.init_fn is not None:
        scaffold.init_fn(session)


def _restore(session: v1.Session, graph: ModeGraph, prefix: str, where_saved: str) -> None:
    try:
        graph.saver.restore(session, prefix)
    except tf.errors.NotFoundError as error:
        # TensorFlow's message is pages long; this line names the variable.
        missing = re.search(r"Key .* not found in checkpoint", error.message)
        raise ValueError(
            "Could not load all requested variables from checkpoint. Please make sure your model_fn does not expect "
            f"variables that were not saved {where_saved}.\n\nEncountered error with mode `{graph.mode}` while "
            f"restoring checkpoint from: `{prefix}`: {missing[0] if missing else error.message}"
        ) from error
