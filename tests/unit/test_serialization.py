"""Serialization of user code, by value or by reference, and its errors."""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.two_processes import output_of

from ray_estimator._jobs.serialization import InPlace, Packed, V2Switches, pack
from ray_estimator.errors import ModuleNotShippedError, ShippingError

ROOT = Path(__file__).resolve().parents[2]

v1 = tf.compat.v1


def in_another_process(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", code, *arguments]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def saved(packed: Packed, directory: Path) -> str:
    path = directory / "packed.pickle"
    path.write_bytes(pickle.dumps(packed))
    return str(path)


def test_in_place_returns_the_same_object() -> None:
    lock = threading.Lock()

    assert InPlace(lock).open() is lock


def test_a_closure_is_sent_to_another_process(tmp_path: Path) -> None:
    factor = 3
    packed = pack({"model_fn": lambda x: factor * x, "params": {"x": 14}})
    code = "import pickle, sys; p = pickle.load(open(sys.argv[1], 'rb')).open(); print(p['model_fn'](p['params']['x']))"

    assert in_another_process(code, saved(packed, tmp_path)) == "42"


def test_shared_objects_stay_shared() -> None:
    shared: list[int] = []

    opened = pack({"hooks": [shared], "params": {"shared": shared}}).open()

    assert opened["hooks"][0] is opened["params"]["shared"]


def test_the_key_is_the_digest_of_the_payload() -> None:
    one, other = pack({"params": 1}), pack({"params": 2})

    assert one.key == hashlib.sha256(one.payload).hexdigest() != other.key
    assert one.what == "params"


def test_a_missing_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_on_the_driver.py").write_text("def model_fn(features): return features\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    packed = pack({"model_fn": importlib.import_module("only_on_the_driver").model_fn})
    code = """
import pickle, sys
from ray_estimator.errors import ModuleNotShippedError
try:
    pickle.load(open(sys.argv[1], "rb")).open()
except ModuleNotShippedError as error:
    print(error.what, error.module)
"""

    assert in_another_process(code, saved(packed, tmp_path)) == "model_fn only_on_the_driver"


def test_an_import_error_raised_by_user_code_is_unchanged() -> None:
    packed = pack({"params": RaisesWhenOpened(ImportError("needs a licence"))})

    with pytest.raises(ImportError, match=r"^needs a licence$"):
        packed.open()


class RaisesWhenOpened:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _raise, (self.error,)


def _raise(error: Exception) -> None:
    raise error


def test_module_not_shipped_is_a_shipping_error_with_its_cause() -> None:
    packed = pack(
        {"params": RaisesWhenOpened(ModuleNotFoundError("No module named 'absent.part'", name="absent.part"))}
    )

    with pytest.raises(ModuleNotShippedError, match="register_pickle_by_value") as caught:
        packed.open()

    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


class TestUnpicklableParts:
    @pytest.mark.parametrize(
        ("part", "what"),
        [
            (threading.Lock(), "it"),
            ([1, threading.Lock()], r"it[1]"),
            ({"a": 1, "lock": threading.Lock()}, "it['lock']"),
        ],
    )
    def test_are_named_with_the_reason(self, part: Any, what: str) -> None:
        with pytest.raises(
            ShippingError, match=r"TypeError: cannot pickle '_thread.lock' object.*num_workers=0"
        ) as caught:
            pack({"model_fn": print, "it": part, "params": None})

        assert caught.value.what == what

    def test_are_named_if_they_are_the_first_part(self) -> None:
        lock = threading.Lock()

        with pytest.raises(ShippingError) as caught:
            pack({"model_fn": lambda features: lock, "params": None})

        assert caught.value.what == "model_fn"


class HoldsDeep(v1.train.SessionRunHook):  # type: ignore[misc]
    def __init__(self, held: Any) -> None:
        self.held = {"deep": [functools.partial(print, held)]}


class TestGraphObjects:
    @pytest.fixture
    def tensor(self) -> tf.Tensor:
        with tf.Graph().as_default():
            return tf.constant(1.0, name="loss")

    def test_in_a_hook_suggest_a_factory(self, tensor: tf.Tensor) -> None:
        hooks = [v1.train.StopAtStepHook(1), v1.train.LoggingTensorHook({"loss": tensor}, 1)]

        with pytest.raises(ShippingError, match=r"it holds the \w*Tensor 'loss:0'.*hooks=\[lambda: MyHook") as caught:
            pack({"model_fn": print, "hooks": hooks})

        assert caught.value.what == "hooks[1]"

    def test_are_found_in_nested_objects(self, tensor: tf.Tensor) -> None:
        with pytest.raises(ShippingError, match=r"'loss:0'.*zero-argument callable"):
            pack({"hooks": [HoldsDeep(tensor)]})

    @pytest.mark.parametrize(
        "make",
        [
            lambda tensor: lambda features: tensor,
            lambda tensor: lambda features, default=tensor: default,
            lambda tensor: tensor.op,
            lambda tensor: tensor.graph,
            lambda tensor: v1.Session(graph=tensor.graph),
            lambda tensor: HoldsDeep(tensor).end,
        ],
        ids=["closure", "default", "operation", "graph", "session", "method"],
    )
    def test_are_found_in_any_kind_of_holder(self, tensor: tf.Tensor, make: Any) -> None:
        with pytest.raises(ShippingError, match=r"which belongs to a graph or session of this process"):
            pack({"it": make(tensor)})

    def test_are_not_reported_for_a_factory(self) -> None:
        (factory,) = pack({"hooks": [lambda: v1.train.StopAtStepHook(1)]}).open()["hooks"]

        assert isinstance(factory(), v1.train.StopAtStepHook)

    def test_do_not_include_eager_tensors(self) -> None:
        assert float(pack({"params": tf.constant(2.0)}).open()["params"]) == 2.0


class TestSize:
    def test_from_two_megabytes_on_the_largest_part_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        table = b"x" * 2 * 1024 * 1024

        pack({"params": {"small": 1}, "model_fn": lambda features: table})

        assert "the largest part is model_fn with 2.1 MB" in caplog.text

    def test_below_two_megabytes_nothing_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            pack({"params": b"x" * 1024 * 1024})

        assert not caplog.records


class TestV2Switches:
    def test_are_none_without_tensorflow(self) -> None:
        code = (
            "import sys; from ray_estimator._jobs.serialization import V2Switches, pack; "
            "print(V2Switches.of_this_process(), pack({'params': 1}).v2_switches, 'tensorflow' in sys.modules)"
        )

        assert in_another_process(code) == "None None False"

    def test_are_all_on_by_default_even_inside_a_graph(self) -> None:
        with tf.Graph().as_default():
            switches = pack({"params": 1}).v2_switches

        assert switches == V2Switches(True, True, True, True)

    def test_are_all_off_after_disable_v2_behavior(self) -> None:
        code = (
            "import tensorflow as tf; tf.compat.v1.disable_v2_behavior(); "
            "from ray_estimator._jobs.serialization import V2Switches; "
            "print(V2Switches.of_this_process() == V2Switches(False, False, False, False))"
        )

        assert output_of(code) == "True"
