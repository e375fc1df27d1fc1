"""One SavedModel from one checkpoint."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._checkpoints import CheckpointStore
from ray_estimator._engine import internals
from ray_estimator._engine.distribution import Alone
from ray_estimator._engine.model import begin_graph, call_model_fn, open_user_code, scaffold_of
from ray_estimator._engine.places import fetched
from ray_estimator._engine.warm_starting import warm_started
from ray_estimator._jobs import ExportJob
from ray_estimator._storage import Storage
from ray_estimator.spec import ModeKeys

_TRIES = 10


def run(job: ExportJob) -> str:
    """Builds the PREDICT graph on what the receiver function gives, restores, and writes a SavedModel.

    Runs as one task, or in the caller's process.

    Returns:
        The path or URL of the new directory, named by a timestamp in seconds.
    """
    storage = Storage(job.config.storage_options)
    base = storage.normalize(job.export_dir_base)
    storage.make_dir(base)
    with _staging(storage, base) as folder:
        saved_model = os.path.join(folder, "saved_model")
        _write_saved_model(job, storage, saved_model)
        _copy_assets(storage, job.assets_extra or {}, saved_model)
        return _publish(storage, saved_model, base)


def _write_saved_model(job: ExportJob, storage: Storage, folder: str) -> None:
    code = open_user_code(job)
    if code.receiver_fn is None:
        raise AssertionError("An export job needs a receiver function.")
    store = CheckpointStore(job.model_dir, storage)
    with tf.Graph().as_default(), fetched(store, job.checkpoint) as prefix, contextlib.ExitStack() as stack:
        begin_graph(job)
        receiver = code.receiver_fn()
        labels = getattr(receiver, "labels", None)
        spec = call_model_fn(job, code, receiver.features, labels, ModeKeys.PREDICT, Alone()).spec
        signatures = internals.signature_defs(receiver, spec.export_outputs)
        if prefix is None:
            stack.enter_context(warm_started(job))
        scaffold = scaffold_of(spec)
        saver = scaffold.saver or v1.train.Saver(sharded=True, allow_empty=True)
        local_init_op = scaffold.local_init_op or v1.train.Scaffold.default_local_init_op()
        builder = v1.saved_model.Builder(folder)
        with v1.Session(config=job.config.resolved_session_config()) as session:
            _initialise(session, saver, prefix)
            session.run(local_init_op)
            builder.add_meta_graph_and_variables(
                session,
                [tf.saved_model.SERVING],
                signature_def_map=signatures,
                assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
                main_op=local_init_op,
                saver=saver,
                strip_default_attrs=job.strip_default_attrs,
            )
            builder.save(job.as_text)


def _initialise(session: v1.Session, saver: v1.train.Saver, prefix: str | None) -> None:
    if prefix is None:
        session.run(v1.global_variables_initializer())
        return
    try:
        saver.restore(session, prefix)
    except tf.errors.NotFoundError as error:
        raise ValueError(
            "Could not load all requested variables from checkpoint. Please make sure your model_fn does not expect "
            f"variables that were not saved in the checkpoint (mode: {ModeKeys.PREDICT!r}).\n\n"
            f"Encountered error with mode `{ModeKeys.PREDICT}` while restoring checkpoint from: `{prefix}`. Full "
            f"Traceback:\n\n{error}"
        ) from error


def _copy_assets(storage: Storage, assets_extra: Mapping[str, str], saved_model: str) -> None:
    for destination, source in assets_extra.items():
        target = os.path.join(saved_model, "assets.extra", destination)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        storage.get_file(storage.normalize(source), target)


@contextlib.contextmanager
def _staging(storage: Storage, base: str) -> Any:
    """A local folder; on the file system of `base` if that is local, so that publishing is one rename."""
    local = storage.local_path(base)
    with tempfile.TemporaryDirectory(prefix="temp-", dir=local) as folder:
        yield folder


def _publish(storage: Storage, saved_model: str, base: str) -> str:
    local = storage.local_path(base)
    for _ in range(_TRIES):
        url = storage.join(base, str(int(time.time())))
        if local is not None:
            if _renamed(saved_model, url):
                return url
        elif not storage.list_dir(url):
            _upload(storage, saved_model, url)
            return url
        time.sleep(1)
    raise RuntimeError(f"Failed to obtain a unique export directory name under {base} after {_TRIES} attempts.")


def _renamed(folder: str, new: str) -> bool:
    """Renames a local folder; False if another export has taken the name."""
    try:
        os.rename(folder, new)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


def _upload(storage: Storage, saved_model: str, url: str) -> None:
    """A loader looks for the graph first, so that file goes last."""
    graphs = [name for name in os.listdir(saved_model) if name.startswith("saved_model.pb")]
    kept_back = {name: os.path.join(os.path.dirname(saved_model), name) for name in graphs}
    for name, path in kept_back.items():
        os.rename(os.path.join(saved_model, name), path)
    storage.put_dir(saved_model, url)
    for name, path in kept_back.items():
        storage.put_file(path, storage.join(url, name))
