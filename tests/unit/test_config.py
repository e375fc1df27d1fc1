"""RunConfig: fields and checks of tf.estimator, Ray's types, and the view of a worker."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from ray.train import FailureConfig, ScalingConfig

from ray_estimator.config import RunConfig

TF_ESTIMATOR_DEFAULTS = {
    "model_dir": None,
    "tf_random_seed": None,
    "save_summary_steps": 100,
    "save_checkpoints_steps": None,
    "save_checkpoints_secs": 600,
    "session_config": None,
    "keep_checkpoint_max": 5,
    "keep_checkpoint_every_n_hours": 10000,
    "log_step_count_steps": 100,
    "train_distribute": None,
    "device_fn": None,
    "protocol": None,
    "eval_distribute": None,
    "experimental_distribute": None,
    "experimental_max_worker_delay_secs": None,
    "session_creation_timeout_secs": 7200,
    "checkpoint_save_graph_def": True,
}
OUR_DEFAULTS = {
    "scaling_config": None,
    "failure_config": None,
    "worker_runtime_env": None,
    "storage_options": None,
    "legacy_keras": False,
    "start_timeout_secs": 900,
    "step_timeout_secs": 600,
    "input_timeout_secs": 600,
    "stop_timeout_secs": 60,
    "task_resources": None,
    "max_tasks_in_flight": None,
    "predict_batch_size": None,
    "progress": True,
}


def test_arguments_are_in_tf_estimators_order_and_ours_are_keyword_only() -> None:
    parameters = [p for p in inspect.signature(RunConfig).parameters.values() if not p.name.startswith("_")]

    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == list(TF_ESTIMATOR_DEFAULTS)
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == list(OUR_DEFAULTS)


def test_defaults() -> None:
    config, expected = RunConfig(), TF_ESTIMATOR_DEFAULTS | OUR_DEFAULTS

    assert {name: getattr(config, name) for name in expected} == expected


def test_a_path_becomes_a_string(tmp_path: Path) -> None:
    assert RunConfig(tmp_path).model_dir == RunConfig(str(tmp_path)).model_dir == str(tmp_path)


def test_zero_and_none_turn_things_off() -> None:
    config = RunConfig(save_summary_steps=0, keep_checkpoint_max=None, log_step_count_steps=None)

    assert (config.save_summary_steps, config.keep_checkpoint_max, config.log_step_count_steps) == (0, None, None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_dir", "", "model_dir should be non-empty"),
        ("tf_random_seed", 1.0, "tf_random_seed must be integer"),
        ("save_summary_steps", -1, "save_summary_steps should be >= 0"),
        ("save_checkpoints_steps", -1, "save_checkpoints_steps should be >= 0"),
        ("save_checkpoints_secs", -1, "save_checkpoints_secs should be >= 0"),
        ("keep_checkpoint_max", -1, "keep_checkpoint_max should be >= 0"),
        ("keep_checkpoint_every_n_hours", 0, "keep_checkpoint_every_n_hours should be > 0"),
        ("log_step_count_steps", 0, "log_step_count_steps should be > 0"),
        ("session_creation_timeout_secs", 0, "session_creation_timeout_secs should be > 0"),
        ("experimental_max_worker_delay_secs", -1, "experimental_max_worker_delay_secs should be >= 0"),
        ("session_config", {}, "session_config must be instance of ConfigProto"),
        ("protocol", "http", "protocol should be"),
        ("start_timeout_secs", 0, "start_timeout_secs should be > 0 or None"),
        ("step_timeout_secs", -1, "step_timeout_secs should be > 0 or None"),
        ("stop_timeout_secs", 0, "stop_timeout_secs should be > 0 or None"),
        ("input_timeout_secs", float("nan"), "input_timeout_secs should be > 0 or None"),
        ("max_tasks_in_flight", 0, "max_tasks_in_flight should be > 0"),
        ("predict_batch_size", 0, "predict_batch_size should be > 0"),
        ("task_resources", {"CPU": -1}, r"task_resources\['CPU'\] should be >= 0"),
        ("failure_config", FailureConfig(max_failures=-2), "max_failures should be >= 0, or -1"),
    ],
)
def test_a_value_out_of_range_is_rejected(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*, got "):
        RunConfig(**{field: value})
    with pytest.raises(ValueError, match=message):
        RunConfig().replace(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_dir", 3),
        ("save_summary_steps", "100"),
        ("save_checkpoints_steps", True),
        ("checkpoint_save_graph_def", 1),
        ("legacy_keras", "yes"),
        ("scaling_config", {"num_workers": 2}),
        ("failure_config", 3),
        ("worker_runtime_env", "env.yaml"),
        ("storage_options", ["key"]),
        ("step_timeout_secs", "600"),
        ("max_tasks_in_flight", 1.5),
        ("predict_batch_size", 1.5),
        ("task_resources", 1),
        ("task_resources", {1: 1}),
        ("task_resources", {"CPU": None}),
    ],
)
def test_a_wrong_type_is_rejected(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"{field}.* must .*, got "):
        RunConfig(**{field: value})


@pytest.mark.parametrize("field", ["train_distribute", "eval_distribute", "experimental_distribute", "device_fn"])
def test_placement_arguments_of_tf_estimator_are_rejected_in_favor_of_scaling_config(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be None.*scaling_config=ray.train.ScalingConfig"):
        RunConfig(**{field: lambda op: "/cpu:0"})


class TestCheckpointInterval:
    def test_in_steps_replaces_the_default_in_seconds(self) -> None:
        config = RunConfig(save_checkpoints_steps=10)

        assert (config.save_checkpoints_steps, config.save_checkpoints_secs) == (10, None)

    @pytest.mark.parametrize(
        "fields", [{"save_checkpoints_steps": None}, {"save_checkpoints_steps": None, "save_checkpoints_secs": None}]
    )
    def test_may_be_off(self, fields: dict[str, None]) -> None:
        config = RunConfig(**fields)

        assert config.save_checkpoints_steps is config.save_checkpoints_secs is None

    def test_in_both_is_rejected(self) -> None:
        both = {"save_checkpoints_steps": 1, "save_checkpoints_secs": 1}

        with pytest.raises(ValueError, match="`save_checkpoints_steps` and `save_checkpoints_secs` cannot be both set"):
            RunConfig(**both)
        with pytest.raises(ValueError, match="cannot be both set"):
            RunConfig().replace(**both)

    def test_replacing_one_nulls_the_other(self) -> None:
        in_steps = RunConfig().replace(save_checkpoints_steps=10)
        in_secs = in_steps.replace(save_checkpoints_secs=20)

        assert (in_steps.save_checkpoints_steps, in_steps.save_checkpoints_secs) == (10, None)
        assert (in_secs.save_checkpoints_steps, in_secs.save_checkpoints_secs) == (None, 20)

    def test_replacing_one_by_none_leaves_the_other(self) -> None:
        assert RunConfig().replace(save_checkpoints_steps=None).save_checkpoints_secs == 600


class TestReplace:
    def test_leaves_the_original(self) -> None:
        config = RunConfig("a")

        assert (config.replace(model_dir="b").model_dir, config.model_dir) == ("b", "a")

    def test_keeps_the_class_and_the_rank(self) -> None:
        class Mine(RunConfig):
            pass

        changed = Mine().for_worker(1, ["a:1", "b:1"]).replace(tf_random_seed=1)

        assert type(changed) is Mine
        assert changed.task_id == 1

    @pytest.mark.parametrize("name", ["is_chief", "_place", "modle_dir"])
    def test_other_names_are_rejected(self, name: str) -> None:
        with pytest.raises(
            ValueError, match=rf"Replacing {name} is not supported. Allowed properties are \['model_dir'"
        ):
            RunConfig().replace(**{name: 1})


def test_arguments_without_effect_are_accepted() -> None:
    given = {"protocol": "grpc", "session_creation_timeout_secs": 60, "experimental_max_worker_delay_secs": 0}

    config = RunConfig(**given)

    assert {name: getattr(config, name) for name in given} == given


def test_attributes_are_read_only() -> None:
    with pytest.raises(AttributeError):
        RunConfig().model_dir = "elsewhere"  # type: ignore[misc]


def test_a_mapping_is_copied() -> None:
    options = {"key": "a"}
    config = RunConfig(storage_options=options)

    options["key"] = "b"

    assert config.storage_options == {"key": "a"}


def full_config() -> RunConfig:
    return RunConfig(
        "dir",
        session_config=tf.compat.v1.ConfigProto(log_device_placement=True),
        scaling_config=ScalingConfig(num_workers=2),
        failure_config=FailureConfig(max_failures=1),
        storage_options={"key": "hidden"},
        task_resources={"CPU": 1},
    ).for_worker(1, ["a:1", "b:2"])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_copy_is_equal(copied: Any) -> None:
    twin = copied(full_config())

    assert twin == full_config()
    assert twin.task_id == 1
    assert twin != full_config().replace(model_dir="other")
    assert twin != full_config().for_worker(0, ["a:1", "b:2"])


class TestRepr:
    def test_shows_arguments_that_differ_from_the_defaults(self) -> None:
        assert repr(RunConfig("dir", tf_random_seed=3)) == "RunConfig(model_dir='dir', tf_random_seed=3)"

    def test_hides_credentials(self) -> None:
        config = RunConfig(
            storage_options={"secret": "hidden"},
            worker_runtime_env={"py_modules": ["m"], "env_vars": {"TOKEN": "hidden"}},
        )

        assert "hidden" not in repr(config)
        assert all(shown in repr(config) for shown in ("'secret'", "'TOKEN'", "'py_modules': ['m']"))


class TestScaling:
    @pytest.mark.parametrize("num_workers", [0, 1, 4])
    def test_number_of_workers_comes_from_the_scaling_config(self, num_workers: int) -> None:
        assert RunConfig(scaling_config=ScalingConfig(num_workers=num_workers)).num_workers == num_workers

    def test_default_is_one_worker(self) -> None:
        assert RunConfig().num_workers == 1

    def test_elastic_is_rejected_with_the_fixed_form(self) -> None:
        with pytest.raises(ValueError, match=r"fixed number of workers.*ScalingConfig\(num_workers=4\)"):
            RunConfig(scaling_config=ScalingConfig(num_workers=(2, 4)))

    def test_several_gpus_per_worker_are_rejected_with_the_fix(self) -> None:
        config = ScalingConfig(num_workers=2, use_gpu=True, resources_per_worker={"GPU": 4})

        with pytest.raises(ValueError, match=r"at most one GPU, got 4 .* Raise num_workers .*\(num_workers=8"):
            RunConfig(scaling_config=config)

    def test_one_gpu_per_worker_is_accepted(self) -> None:
        assert RunConfig(scaling_config=ScalingConfig(num_workers=2, use_gpu=True)).num_workers == 2

    def test_tpus_are_rejected(self) -> None:
        with pytest.raises(ValueError, match="use_tpu must be False"):
            RunConfig(scaling_config=ScalingConfig(use_tpu=True, resources_per_worker={"TPU": 1}))


@pytest.mark.parametrize(
    ("failure_config", "max_failures"),
    [(None, 3), (FailureConfig(), 0), (FailureConfig(max_failures=-1), -1), (FailureConfig(max_failures=5), 5)],
)
def test_allowed_worker_failures(failure_config: FailureConfig | None, max_failures: int) -> None:
    assert RunConfig(failure_config=failure_config).max_failures == max_failures


class TestPlace:
    @pytest.fixture(autouse=True)
    def tf_config_of_somebody_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["x:1", "y:1"]}, "task": {"type": "ps", "index": 1}}')

    def test_without_a_group_there_is_one_worker(self) -> None:
        config = RunConfig()

        assert (config.is_chief, config.task_type, config.task_id, config.global_id_in_cluster) == (
            True,
            "worker",
            0,
            0,
        )
        assert (config.num_worker_replicas, config.num_ps_replicas) == (1, 0)
        assert (config.master, config.evaluation_master, config.service) == ("", "", None)
        assert config.cluster_spec == tf.train.ClusterSpec({})

    def test_in_a_group_the_properties_are_those_of_the_rank(self) -> None:
        addresses = ["a:1", "b:2", "c:3"]
        places = [RunConfig().for_worker(rank, addresses) for rank in range(3)]

        assert [place.is_chief for place in places] == [True, False, False]
        assert [place.task_id for place in places] == [place.global_id_in_cluster for place in places] == [0, 1, 2]
        assert {(place.task_type, place.num_worker_replicas) for place in places} == {("worker", 3)}
        assert all(place.cluster_spec.as_dict() == {"worker": addresses} for place in places)
        assert [place.master for place in places] == ["grpc://a:1", "grpc://b:2", "grpc://c:3"]
        assert {place.evaluation_master for place in places} == {""}

    def test_a_single_worker_has_no_cluster(self) -> None:
        alone = RunConfig().for_worker(0, [""])

        assert (alone.num_worker_replicas, alone.master) == (1, "")
        assert alone.cluster_spec == tf.train.ClusterSpec({})

    @pytest.mark.parametrize(("rank", "addresses"), [(1, []), (2, ["a:1", "b:1"]), (-1, ["a:1"])])
    def test_a_rank_without_an_address_is_rejected(self, rank: int, addresses: list[str]) -> None:
        with pytest.raises(ValueError, match=f"got {rank}"):
            RunConfig().for_worker(rank, addresses)


class TestSessionConfig:
    def test_default_is_tf_estimators(self) -> None:
        resolved = RunConfig().resolved_session_config()

        assert resolved.allow_soft_placement
        assert resolved.graph_options.rewrite_options.meta_optimizer_iterations == 1

    def test_of_the_user_is_copied(self) -> None:
        given = tf.compat.v1.ConfigProto(log_device_placement=True)
        config = RunConfig(session_config=given)

        resolved = config.resolved_session_config()

        assert resolved == given
        resolved.allow_soft_placement = True
        assert not config.session_config.allow_soft_placement


def test_in_process_mode_does_not_log_rays_local_mode_notice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ray.train"):
        logging.getLogger("ray.train.v2.api.config").info("Anything else.")
        RunConfig(scaling_config=ScalingConfig(num_workers=0))
    assert caplog.messages == ["Anything else."]


class ShardedConfig(RunConfig):
    def __init__(self, model_dir: str, num_shards: int) -> None:
        super().__init__(model_dir)
        object.__setattr__(self, "num_shards", num_shards)


def test_a_subclass_with_a_constructor_of_its_own_is_varied_and_keeps_its_attributes() -> None:
    config = ShardedConfig("/models/a", 3)
    for varied in (config.replace(keep_checkpoint_max=7), config.for_worker(1, ["a:1", "b:1"])):
        assert isinstance(varied, ShardedConfig)
        assert (varied.model_dir, varied.num_shards) == ("/models/a", 3)  # type: ignore[attr-defined]
    assert config.replace(keep_checkpoint_max=7).keep_checkpoint_max == 7
    assert config.for_worker(1, ["a:1", "b:1"]).task_id == 1
    with pytest.raises(ValueError, match="keep_checkpoint_max"):
        config.replace(keep_checkpoint_max=-1)
