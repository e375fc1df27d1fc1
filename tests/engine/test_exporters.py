"""Exporters: when they export, which exports they keep, and how BestExporter survives a restart."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.models import X, endless_input_fn, linear_model_fn, one_pass_input_fn
from support.recording import EACH_SAVE_ARRIVES

from ray_estimator import BestExporter, Exporter, FinalExporter, LatestExporter, export
from ray_estimator._storage.storage import Storage

Make = Callable[..., Any]

RECEIVER = export.build_raw_serving_input_receiver_fn({"x": tf.TensorSpec([None, 4], tf.float32)})
STORAGE = Storage()


class Run:
    """A training that has saved steps 2, 4, 6 and 8, each better than the one before, and calls of exporters on it."""

    def __init__(self, in_process: Make, model_dir: str) -> None:
        self.estimator = in_process(
            linear_model_fn, params={}, model_dir=model_dir, save_checkpoints_steps=2, keep_checkpoint_max=None
        )
        self.estimator.train(endless_input_fn, max_steps=8, saving_listeners=EACH_SAVE_ARRIVES)

    def checkpoint(self, step: int) -> str:
        return STORAGE.join(self.estimator.model_dir, f"model.ckpt-{step}")

    def export_path(self, exporter: Exporter) -> str:
        return STORAGE.join(self.estimator.model_dir, "export", exporter.name)

    def evaluated_at(self, step: int) -> dict[str, Any]:
        result: dict[str, Any] = self.estimator.evaluate(one_pass_input_fn, checkpoint_path=self.checkpoint(step))
        return result

    def exported_at(self, step: int, exporter: Exporter, *, final: bool = False) -> Any:
        """Return what the exporter exports after the evaluation of a step."""
        return exporter.export(
            estimator=self.estimator,
            export_path=self.export_path(exporter),
            checkpoint_path=self.checkpoint(step),
            eval_result=self.evaluated_at(step),
            is_the_final_export=final,
        )

    def exports(self, exporter: Exporter) -> list[str]:
        return STORAGE.list_dir(self.export_path(exporter))


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, in_process: Make, tmp_path: Path) -> Iterator[Run]:
    model_dir = str(tmp_path / "model") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    yield Run(in_process, model_dir)
    STORAGE.remove_dir(model_dir)


@pytest.fixture
def local(in_process: Make, tmp_path: Path) -> Run:
    return Run(in_process, str(tmp_path / "model"))


def place(run: Run, exporter: Exporter, *names: str) -> None:
    """Create directories in the exporter's export directory."""
    for name in names:
        STORAGE.write_bytes(STORAGE.join(run.export_path(exporter), name, "saved_model.pb"), b"old")


# LatestExporter


def test_a12_the_latest_exporter_exports_every_time_and_keeps_the_newest(run: Run) -> None:
    exporter = LatestExporter("latest", RECEIVER, exports_to_keep=2)
    place(run, exporter, "1000000001", "1000000002", "999999999", "10000000001", "temp-1000000003", "1000000x04")

    first = run.exported_at(2, exporter)
    assert run.exports(exporter).count("1000000001") == 0
    second = run.exported_at(4, exporter)

    names = [path.rpartition("/")[2] for path in (first, second)]
    assert run.exports(exporter) == sorted([*names, "999999999", "10000000001", "temp-1000000003", "1000000x04"])


def test_a12_the_latest_exporter_exports_the_checkpoint_that_was_evaluated(local: Run, tmp_path: Path) -> None:
    path = local.exported_at(4, LatestExporter("latest", RECEIVER, {"notes.txt": _notes(tmp_path)}, as_text=True))

    served = tf.saved_model.load(path).signatures["serving_default"](x=tf.constant(X[:3]))
    predicted = local.estimator.predict(one_pass_input_fn, checkpoint_path=local.checkpoint(4))
    np.testing.assert_allclose(served["y"], [next(predicted)["y"] for _ in range(3)], rtol=1e-6)
    assert (Path(path) / "saved_model.pbtxt").exists()
    assert (Path(path) / "assets.extra" / "notes.txt").read_text() == "notes"


def _notes(folder: Path) -> str:
    (folder / "notes.txt").write_text("notes")
    return str(folder / "notes.txt")


def test_a12_the_latest_exporter_may_keep_all(local: Run) -> None:
    exporter = LatestExporter("latest", RECEIVER, exports_to_keep=None)
    place(local, exporter, *(f"100000000{digit}" for digit in range(8)))
    local.exported_at(2, exporter)
    assert len(local.exports(exporter)) == 9


def test_a12_an_old_export_that_cannot_be_deleted_is_left_behind_with_a_warning(
    local: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(storage: Storage, url: str) -> None:
        raise PermissionError("not yours")

    exporter = LatestExporter("latest", RECEIVER, exports_to_keep=1)
    place(local, exporter, "1000000001")
    monkeypatch.setattr(Storage, "remove_dir", refuse)
    assert local.exported_at(2, exporter) is not None
    assert "Could not delete the old export" in caplog.text
    assert "1000000001: not yours" in caplog.text


@pytest.mark.parametrize("to_keep", [0, -1])
def test_a12_exports_to_keep_must_be_positive(to_keep: int) -> None:
    for make in (
        lambda: LatestExporter("latest", RECEIVER, exports_to_keep=to_keep),
        lambda: BestExporter(serving_input_receiver_fn=RECEIVER, exports_to_keep=to_keep),
    ):
        with pytest.raises(ValueError, match=f"`exports_to_keep`, if provided, must be a positive.*{to_keep}"):
            make()


# FinalExporter


def test_a12_the_final_exporter_exports_at_the_end_only(local: Run) -> None:
    exporter = FinalExporter("final", RECEIVER)
    assert local.exported_at(2, exporter) is None
    assert local.exports(exporter) == []
    path = local.exported_at(8, exporter, final=True)
    assert local.exports(exporter) == [Path(path).name]


# BestExporter


def best(**arguments: Any) -> BestExporter:
    return BestExporter(serving_input_receiver_fn=RECEIVER, **arguments)


def test_a12_the_best_exporter_exports_what_is_better(local: Run) -> None:
    exporter = best(exports_to_keep=2)
    assert exporter.name == "best_exporter"
    exports = [local.exported_at(step, exporter) for step in (4, 2, 4, 6, 6, 8)]
    assert [path is not None for path in exports] == [True, False, False, True, False, True]
    assert local.exports(exporter) == [Path(exports[3]).name, Path(exports[5]).name]


def test_a12_a_restarted_best_exporter_never_exports_a_worse_model(run: Run) -> None:
    assert run.exported_at(6, best()) is not None
    assert run.exported_at(4, best()) is None
    assert run.exported_at(8, best()) is not None
    restarted = best()
    assert [run.exported_at(step, restarted) for step in (2, 4, 6)] == [None] * 3


def test_a12_a_restarted_best_exporter_exports_what_it_had_no_time_for(local: Run) -> None:
    local.exported_at(4, best())
    local.evaluated_at(8)  # and then the process dies
    assert local.exported_at(8, best()) is not None


def test_a12_without_any_export_the_best_exporter_exports_whatever_comes(local: Run) -> None:
    local.evaluated_at(8)
    assert local.exported_at(4, best()) is not None


def test_a12_the_best_exporter_reads_the_events_that_its_pattern_names(local: Run) -> None:
    place(local, best(), "1000000001")
    local.estimator.evaluate(one_pass_input_fn, checkpoint_path=local.checkpoint(8), name="other")
    assert local.exported_at(4, best(event_file_pattern="eval_other/*.tfevents.*")) is None
    assert local.exported_at(4, best(event_file_pattern="eval/*.tfevents.*")) is not None


def test_a12_without_a_pattern_the_best_exporter_forgets(local: Run) -> None:
    assert local.exported_at(8, best()) is not None
    assert local.exported_at(4, best(event_file_pattern=None)) is not None


def test_a12_results_that_lack_a_metric_of_now_do_not_count(local: Run) -> None:
    place(local, best(), "1000000001")
    with tf.Graph().as_default():
        writer = tf.compat.v1.summary.FileWriter(local.estimator.eval_dir())
        value = tf.compat.v1.Summary.Value(tag="loss", simple_value=0.0)
        writer.add_summary(tf.compat.v1.Summary(value=[value]), 1)
        writer.close()
    assert local.exported_at(4, best()) is not None


def test_a12_the_best_exporter_compares_as_it_is_told(local: Run) -> None:
    seen = []

    def larger_error(best_eval_result: Any, current_eval_result: Any) -> bool:
        seen.append((best_eval_result["global_step"], current_eval_result["global_step"]))
        return bool(current_eval_result["mae"] > best_eval_result["mae"])

    exporter = best(compare_fn=larger_error)
    exports = [local.exported_at(step, exporter) for step in (6, 8, 4)]
    assert [path is not None for path in exports] == [True, False, True]
    assert seen == [(6, 8), (6, 4)]
    restarted = best(compare_fn=larger_error)
    assert local.exported_at(6, restarted) is None
    assert seen[-1] == (4, 6)


def test_a12_a_result_without_loss_is_an_error(local: Run) -> None:
    exporter = best()
    local.exported_at(4, exporter)
    for results in ({"mae": 1.0}, {}):
        with pytest.raises(ValueError, match="current_eval_result cannot be empty or no loss is found in it"):
            exporter.export(
                local.estimator, local.export_path(exporter), local.checkpoint(4), {"global_step": 4, **results}, False
            )


def test_a12_an_export_that_fails_is_not_the_best(local: Run) -> None:
    calls = []

    def receiver_fn() -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise LookupError("its own")
        return RECEIVER()

    exporter = BestExporter(serving_input_receiver_fn=receiver_fn)
    with pytest.raises(LookupError, match="its own"):
        local.exported_at(8, exporter)
    assert local.exported_at(4, exporter) is not None


def test_a12_the_best_exporter_begins_anew_in_another_model_dir(local: Run, in_process: Make, tmp_path: Path) -> None:
    exporter, other = best(), Run(in_process, str(tmp_path / "other"))
    assert local.exported_at(8, exporter) is not None
    assert other.exported_at(4, exporter) is not None


def only_best(best_eval_result: Any) -> bool:
    return True


def only_current(current_eval_result: Any) -> bool:
    return True


def with_more(best_eval_result: Any, current_eval_result: Any, more: Any) -> bool:
    return True


@pytest.mark.parametrize(
    ("compare_fn", "said"),
    [
        (None, "`compare_fn` must not be None"),
        (only_best, r"compare_fn .* must include current_eval_result argument"),
        (only_current, r"compare_fn .* must include best_eval_result argument"),
        (with_more, r"compare_fn .* has following not expected args: \['more'\]"),
    ],
)
def test_a12_the_arguments_of_compare_fn_are_checked(compare_fn: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        best(compare_fn=compare_fn)


def test_a12_the_best_exporter_needs_a_receiver(local: Run) -> None:
    with pytest.raises(ValueError, match="An input_receiver_fn must be defined"):
        local.exported_at(4, BestExporter())


def test_a12_it_says_what_it_does(local: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        exporter = best()
        local.exported_at(4, exporter)
        assert "Performing best model export" in caplog.text
        assert "Loading best metric from event files" not in caplog.text
        local.exported_at(2, best())
        assert "Loading best metric from event files" in caplog.text
