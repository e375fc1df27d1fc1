"""An Estimator that starts warm predicts in tasks, and one that is sent to a task works there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.probes import notes
from support.words import trained_words, two_words_input_fn, words_model_fn

from ray_estimator import Estimator, VocabInfo, WarmStartSettings, dataset_input_fn

pytestmark = pytest.mark.ray


@pytest.fixture
def old(in_process: Callable[..., Any], tmp_path: Path) -> Any:
    """A table of four words, trained."""
    return trained_words(in_process, tmp_path / "old")


def test_tasks_predict_with_a_warm_start_and_know_their_place(
    cluster: Any, on_ray: Callable[..., Any], old: Any, tmp_path: Path
) -> None:
    (tmp_path / "old.txt").write_text("ape\nbee\ncat\ndog\n")
    (tmp_path / "new.txt").write_text("dog\nelk\nape\n")
    info = VocabInfo(str(tmp_path / "new.txt"), 3, 1, str(tmp_path / "old.txt"))
    table, scale = old.get_variable_value("table"), old.get_variable_value("scale")
    params = {"words": 4, "scale": 1.0, "learning_rate": 0.0, "folder": str(tmp_path)}
    estimator = Estimator(
        words_model_fn,
        None,
        on_ray(words_model_fn, 2, params=params).config,
        params,
        warm_start_from=WarmStartSettings(old.model_dir, var_name_to_vocab_info={"table": info}),
    )
    rows = dataset_input_fn(cluster.data.from_arrow(pa.table({"word": [0, 2, 0, 2]})).repartition(2), batch_size=2)

    predicted = list(estimator.predict(rows))

    np.testing.assert_allclose(predicted, table[[3, 0, 3, 0]].sum(axis=1) * scale, rtol=1e-6)
    assert estimator.latest_checkpoint() is None
    (in_a_task, *_) = notes(tmp_path, "infer-model")[0]
    alone = {"is_chief": True, "task_id": 0, "num_worker_replicas": 1, "master": "", "cluster": {}}
    assert alone.items() <= in_a_task.items()


def test_an_estimator_works_where_it_is_sent(cluster: Any, on_ray: Callable[..., Any], old: Any) -> None:
    estimator = on_ray(words_model_fn, 1, params=old.params, model_dir=old.model_dir)
    estimator.get_variable_names()  # used, on Ray

    def evaluated(traveller: Any) -> Any:
        return traveller.evaluate(two_words_input_fn, name="there")

    there = cluster.get(cluster.remote(evaluated).remote(estimator))

    assert there == pytest.approx({**estimator.evaluate(two_words_input_fn), "global_step": 3})
