"""Each row of the tables in docs/migration.md has tests, named here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROOFS = {
    "What runs unchanged": {
        "model_fn": (
            "test_a_world_trains_evaluates_predicts_and_serves",
            "test_a1_4_any_callable_will_do",
            "test_all_parts_after_disable_v2_behavior",
            "test_a_user_module_that_disables_v2_behavior_trains_on_two_workers",
        ),
        "graph": (
            "test_each_part_trains_evaluates_predicts_and_exports",
            "test_the_parts_train_on_two_workers_as_on_one",
        ),
        "input_fn": (
            "test_a2_4_features_and_labels_may_come_as",
            "test_a2_4_tensors_feed_two_workers_and_their_end_is_an_error",
            "test_a2_6_an_initializer_among_the_tables_is_run",
            "test_a_model_trains_evaluates_and_predicts_on_it",
            "test_an_old_program_runs_with_install_alone",
        ),
        "training": (
            "test_a4_5_every_hook_works_on_two_workers",
            "test_a4_5_the_order_of_hooks",
            "test_a4_7_summaries_come_at_their_interval",
            "test_a4_11_every_rank_takes_part_in_a_save_and_the_chief_publishes_it",
            "test_a4_12_init_fn_runs_only_without_a_checkpoint_and_local_init_op_always",
            "test_a9_a10_two_workers_start_warm_and_know_their_place",
            "test_a13_1_an_early_stop_ends_both_workers_and_the_loop",
        ),
        "train and evaluate": (
            "test_a11_2_every_checkpoint_but_the_first_is_evaluated",
            "test_a11_2_evaluations_and_exports_happen_while_two_workers_train_once",
            "test_a13_3_added_metrics_join_those_of_the_model_and_win",
        ),
        "model_dir": (
            "test_training_continues_to_the_same_weights_as_tf_estimator",
            "test_it_is_evaluated",
            "test_it_predicts",
            "test_it_is_exported",
            "test_a_run_of_tf_estimators_goes_on_with_two_workers",
            "test_a4_9_the_files_are_those_of_tensorflow",
        ),
        "exports": (
            "test_a7_3_each_export_output_is_a_signature_of_its_method",
            "test_a7_4_alternative_receivers_give_further_signatures",
            "test_a7_6_a_vocabulary_is_copied_and_its_table_initialised_at_load",
            "test_a7_10_a_loaded_signature_gives_what_predict_gives",
            "test_a7_10_saved_model_cli_runs_an_export",
            "test_an_export_runs_as_a_task_and_loads",
        ),
    },
    "What needs a change": {
        "`train(input_fn, hooks)` by position": ("test_a0_hooks_in_the_place_of_steps_are_refused",),
        "`train_distribute=...`, TF_CONFIG and a program on each machine": (
            "test_placement_arguments_of_tf_estimator_are_rejected_in_favor_of_scaling_config",
            "test_a4_13_tf_config_of_the_driver_is_ignored",
        ),
        "`evaluate` or `predict` without a checkpoint": (
            "test_a0_an_untrained_model_is_not_evaluated_unless_asked_for",
            "test_a0_an_untrained_model_does_not_predict_unless_asked_to",
        ),
        "`export_saved_model(...).decode()`": ("test_a0_an_export_is_a_str",),
        "`tf.compat.v1.layers`, tf_keras": (
            "test_tf_layers_continue_with_legacy_keras",
            "test_legacy_keras_in_a_process_with_keras_3_is_refused",
            "test_a_world_trains_evaluates_predicts_and_serves",
        ),
        "a vocabulary or TFRecords by URL": ("test_two_workers_and_their_tasks_fetch_a_file_once",),
        "a hook that holds tensors": (
            "test_in_a_hook_suggest_a_factory",
            "test_a4_5_logging_tensor_hook_takes_tensors_by_name",
        ),
        "reading a hook's state after `train`": ("test_a_run_of_tf_estimators_goes_on_with_two_workers",),
        "a module that only the driver can import": ("test_a_missing_module_is_named",),
        "a model_dir on one machine's disk": (
            "test_a_temporary_model_dir_on_several_nodes_is_rejected",
            "test_a_directory_that_is_another_one_on_a_second_node_is_refused",
        ),
        "tensors or a queue that come to an end": ("test_a2_4_tensors_feed_two_workers_and_their_end_is_an_error",),
    },
    "Not supported": {
        "`train_distribute`, `eval_distribute`, `experimental_distribute`, `device_fn`": (
            "test_placement_arguments_of_tf_estimator_are_rejected_in_favor_of_scaling_config",
        ),
        "parameter servers, jobs of type ps or evaluator": ("test_a4_13_tf_config_of_the_driver_is_ignored",),
        "`tf.estimator.tpu`": ("test_every_public_name_of_tf_estimator_except_those_of_tpus_is_supported",),
        "`BoostedTreesClassifier` and similar": ("test_an_unsupported_name_raises_an_error_that_says_what_to_use",),
        "`model_to_estimator`": ("test_an_unsupported_name_raises_an_error_that_says_what_to_use",),
        "`gradient_accumulation_steps`, `ema_overwrite_frequency`, `LossScaleOptimizer` of Keras 3": (
            "test_keras_in_graph_rejects_updates_that_would_never_run",
        ),
        "`InMemoryEvaluatorHook` on several workers": ("test_a13_2_several_workers_are_refused",),
        "`GlobalStepWaiterHook` for a step that has not been reached": (
            "test_a4_5_global_step_waiter_hook_that_would_wait_for_ever_is_refused",
        ),
        "`protocol`, `session_creation_timeout_secs`, `experimental_max_worker_delay_secs`": (
            "test_arguments_without_effect_are_accepted",
        ),
    },
}


def rows_below(heading: str) -> list[str]:
    """Return the first column of the tables below a heading of docs/migration.md."""
    page = (ROOT / "docs" / "migration.md").read_text()
    (part,) = re.findall(rf"^## {heading}\n(.*?)^##", page, flags=re.M | re.S)
    cells = re.findall(r"^\| (.*?) \|", part, flags=re.M)
    return [cell for cell in cells if cell not in ("what", "before", "---")]


@pytest.mark.parametrize("heading", PROOFS)
def test_each_row_has_tests(heading: str) -> None:
    assert rows_below(heading) == list(PROOFS[heading])


def test_those_tests_exist() -> None:
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(), flags=re.M)
    }

    assert {name for rows in PROOFS.values() for names in rows.values() for name in names} <= there
