"""Run one training worker."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import replace

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._checkpoints.fence import claim
from ray_estimator._checkpoints.store import Checkpoint, CheckpointStore
from ray_estimator._checkpoints.writers import Token
from ray_estimator._data.position import InputPosition, IteratorPosition, Position, beginning, iterators_of
from ray_estimator._engine.checkpointing.local_copies import fetched
from ray_estimator._engine.checkpointing.publisher import Publisher
from ray_estimator._engine.checkpointing.warm_start import warm_started
from ray_estimator._engine.distribution import collectives
from ray_estimator._engine.distribution.strategy import Distribution, open_distribution
from ray_estimator._engine.events.sync import local_events
from ray_estimator._engine.graph.input_barrier import write_after_input
from ray_estimator._engine.hooks.control import Control
from ray_estimator._engine.hooks.training import training_hooks
from ray_estimator._engine.input.feed import Feed, open_feed
from ray_estimator._engine.input.iterator_state import keep_iterator, saved_iterator
from ray_estimator._engine.model import Model, begin_graph, call_model_fn, open_user_code
from ray_estimator._jobs.jobs import TrainJob, UserCode
from ray_estimator._jobs.results import TrainResult
from ray_estimator._jobs.worker import Worker
from ray_estimator._storage.storage import Storage
from ray_estimator._tf_private import sessions
from ray_estimator.errors import InputEndedError
from ray_estimator.spec import ModeKeys

logger = logging.getLogger(__name__)


def run(job: TrainJob, worker: Worker) -> TrainResult:
    """Train until the target, the end of the input, or a hook's request. Runs on every worker.

    create the strategy, then unpickle the user's code
    the chief claims model_dir, which fences the writers of earlier attempts
    agree on the newest published checkpoint, and on the next row of the input
    build: global step, input_fn, model_fn, hooks, hooks.begin()
    compare graphs with the other ranks
    open the session: initialize or restore, save, hooks.after_create_session()
    until a hook asks to stop, or a rank has no batch for the next step:
        hooks.before_run(); session.run(train_op); save if due; hooks.after_run()
    save the last step; hooks.end()
    """
    worker.status.enter("joining the group")
    distribution = open_distribution(worker)
    job = replace(job, config=job.config.for_worker(worker.rank, worker.addresses))
    code = open_user_code(job)
    storage = Storage(job.config.storage_options)
    token = Token(job.generation, worker.attempt)
    store = CheckpointStore(job.model_dir, storage, attempt=str(token))
    fence = claim(job.model_dir, storage, token) if worker.rank == 0 else None
    with contextlib.ExitStack() as stack:
        start, position = _agree_on_start(job, worker, store, stack)
        worker.status.published_step = None if start is None else start.step
        if start is not None and job.last_step is not None and start.step >= job.last_step:
            return TrainResult(start.step, loss=None, steps_made=0, published_step=start.step)
        prefix = stack.enter_context(fetched(store, start))
        stack.enter_context(tf.Graph().as_default())
        events_dir = stack.enter_context(local_events(storage, job.model_dir, writes=worker.rank == 0))
        worker.status.enter("building the graph")
        feed = build_input(job, code, worker, distribution, position, prefix)
        stack.enter_context(distribution.scope())
        model, control = build_model(job, code, feed, distribution)
        if start is None:
            stack.enter_context(warm_started(job, distribution, is_chief=worker.rank == 0))
        publisher = None
        if fence is not None:
            publisher = stack.enter_context(Publisher(store, job.config.step_timeout_secs, fence, worker.status))
        if worker.rank == 0 and (job.config.save_summary_steps or job.config.log_step_count_steps):
            sessions.open_event_writer(events_dir)
        hooks = training_hooks(job, code, worker, publisher, model, feed, control, distribution, events_dir)
        session = v1.train.SingularMonitoredSession(
            hooks=[*hooks.in_order, CompareGraphs(worker, control)],
            scaffold=hooks.scaffold,
            master=distribution.master,
            config=distribution.session_config(job.config.resolved_session_config()),
            checkpoint_filename_with_path=prefix,
        )
        return _run_until_stopped(session, hooks.last_step, model, control, feed, worker)


def build_input(
    job: TrainJob,
    code: UserCode,
    worker: Worker,
    distribution: Distribution,
    position: Position | None,
    prefix: str | None,
) -> Feed:
    """Build the global step and the input in the default graph. The output of input_fn is local to this worker.

    Args:
        job: The job.
        code: Its unpickled user code.
        worker: This rank.
        distribution: The distribution of the model over the ranks.
        position: Position in the input to resume from; None to start input_fn from its beginning.
        prefix: Local prefix of the restored checkpoint, with the saved iterators; None if there is none.
    """
    with distribution.scope():
        distribution.prepare_global_step(begin_graph(job))
    rows, num_replicas = worker.rows, distribution.num_replicas
    tables = rows.tables_from(position) if rows is not None and isinstance(position, InputPosition) else None
    feed = open_feed(job, code, ModeKeys.TRAIN, tables, rank=worker.rank, num_replicas=num_replicas)
    if job.source is None:
        state = saved_iterator(prefix, position, worker.rank) if isinstance(position, IteratorPosition) else None
        if feed.pipeline is not None:
            keep_iterator(feed, worker, IteratorPosition(job.generation, num_replicas), state)
        if state is None and prefix is not None and worker.rank == 0:
            logger.info("The input of input_fn restarts from its beginning.")
    if rows is not None and isinstance(position, InputPosition) and job.rows is not None:
        rows_per_step = job.rows.batch_size * num_replicas
        feed.position_after = lambda steps: position.after(steps * rows_per_step, rows.rows_per_epoch)
    return feed


def build_model(job: TrainJob, code: UserCode, feed: Feed, distribution: Distribution) -> tuple[Model, Control]:
    """Build the rest of the training graph, in the distribution's scope."""
    model = call_model_fn(job, code, feed.features, feed.labels, ModeKeys.TRAIN, distribution)
    if feed.advance is not None:
        model.train_op = tf.group(model.train_op, feed.advance)
    write_after_input(model.train_op)
    control = Control(model, feed, distribution)
    v1.add_to_collection(v1.GraphKeys.LOSSES, control.loss)
    if not any(summary.op.name == "loss" for summary in v1.get_collection(v1.GraphKeys.SUMMARIES)):
        v1.summary.scalar("loss", control.loss)
    return model, control


def _agree_on_start(
    job: TrainJob, worker: Worker, store: CheckpointStore, stack: contextlib.ExitStack
) -> tuple[Checkpoint | None, Position | None]:
    """Return the newest checkpoint and its position in the input, the same on every rank.

    Listings of a store may differ between processes, so the chief lists, verifies every byte, and tells the others.
    The position is None if input_fn starts from its beginning.
    """

    def verify(newest: Checkpoint | None) -> tuple[Checkpoint | None, Position | None]:
        stack.enter_context(fetched(store, newest))
        position, end = store.position_in(newest), store.end_of_run()
        if job.source is None:
            return newest, iterators_of(position, end, job.generation, max(len(worker.addresses), 1))
        return newest, beginning(job.source, position, end, job.generation)

    start = store.with_newest(verify) if worker.rank == 0 else (None, None)
    return worker.exchange("newest checkpoint", start)[0]


class CompareGraphs(v1.train.SessionRunHook):
    """Raises `RanksDisagreeError` if ranks built different graphs. It must be the last hook: others add operations."""

    def __init__(self, worker: Worker, control: Control) -> None:
        self._worker = worker
        self._control = control

    def begin(self) -> None:
        lines = collectives.fingerprint(self._control.collectives)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        if len(set(self._worker.exchange("digest of the graph", digest))) > 1:
            collectives.require_equal(self._worker.exchange("the graph", lines))
        self._worker.status.enter("opening the session")


def _run_until_stopped(
    session: v1.train.SingularMonitoredSession,
    last_step: int | None,
    model: Model,
    control: Control,
    feed: Feed,
    worker: Worker,
) -> TrainResult:
    in_group = len(worker.addresses) > 1
    step, loss, steps_made = worker.status.step, None, 0
    with feed.explaining_errors(), contextlib.closing(feed), session:
        if in_group and not _all_ranks_have_a_batch(session, feed, worker):
            return _result(worker, step, loss, steps_made)
        agreed = False
        while not session.should_stop():
            try:
                session.run(model.train_op)
            except (tf.errors.OutOfRangeError, StopIteration):
                control.input_ended = True
                if in_group:
                    raise InputEndedError(worker.rank) from None
                raise
            steps_made += 1
            step, decision = control.step, control.decision
            loss = decision.loss
            at_target = last_step is not None and step >= last_step
            agreed = decision.stop or at_target
            if at_target:
                # StopAtStepHook reads the step before the run, and overshoots if a run adds more than one.
                break
        if in_group and not agreed:
            raise InputEndedError(worker.rank)
        worker.status.enter("ending (hooks, last checkpoint)")
    return replace(_result(worker, step, loss, steps_made), cut_short=control.cut_short)


def _all_ranks_have_a_batch(session: v1.train.SingularMonitoredSession, feed: Feed, worker: Worker) -> bool:
    return all(worker.exchange("has a first batch", feed.first_ready(session.raw_session())))


def _result(worker: Worker, step: int, loss: float | None, steps_made: int) -> TrainResult:
    status = worker.status
    status.step = int(step)
    status.loss = None if loss is None else float(loss)
    status.enter("done")
    return TrainResult(
        status.step,
        status.loss,
        steps_made,
        examples_per_sec=status.examples_per_sec,
        published_step=status.published_step,
    )
