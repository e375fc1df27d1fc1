"""Private names of Keras 3 for the settings of a thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import keras
import pytest

from ray_estimator._tf_private import keras_settings


def in_another_thread(call: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def test_apply_keras_settings_copies_the_settings_of_a_thread() -> None:
    def set_on_driver() -> Any:
        keras.config.set_dtype_policy("mixed_bfloat16")
        return keras_settings.keras_settings()

    def applied_in_replica() -> str:
        keras_settings.apply_keras_settings(settings)
        return str(keras.layers.Dense(1).dtype_policy.name)

    settings = in_another_thread(set_on_driver)
    assert in_another_thread(applied_in_replica) == "mixed_bfloat16"
    assert in_another_thread(lambda: keras.config.dtype_policy().name) == "float32"


def test_without_keras_there_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "keras.src.backend.common.global_state")
    assert keras_settings.keras_settings() == {}
    keras_settings.apply_keras_settings({"dtype_policy": None})
