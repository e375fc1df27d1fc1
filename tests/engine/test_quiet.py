"""TensorFlow's start-up chatter, in processes where it is imported for the first time."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, sys
from ray_estimator._process.quiet import quiet_tensorflow
with quiet_tensorflow():
    os.write(2, b"I speak meanwhile\\n")
    import tensorflow as tf
print("and later", file=sys.stderr)
tf.config.list_physical_devices()
"""
CHATTER = ("oneDNN", "absl::InitializeLog", "cudart_stub", "cuInit", "cpu_feature_guard", "To enable the following")


def said(program: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env={**inherited, **environment}, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stderr


def test_tensorflow_is_imported_without_its_chatter_and_nobody_else_is_cut_off() -> None:
    assert said(PROGRAM).splitlines() == ["I speak meanwhile", "and later"]


def test_the_chatter_comes_where_it_is_asked_for() -> None:
    text = said(PROGRAM, TF_CPP_MIN_LOG_LEVEL="0")
    assert "I speak meanwhile" in text
    assert any(words in text for words in CHATTER)


def test_what_was_said_before_an_error_is_not_lost() -> None:
    failing = PROGRAM.replace("import tensorflow as tf", "raise SystemExit(0)")
    assert said(failing) == "I speak meanwhile\n"


def test_at_a_prompt_tensorflow_does_not_raise_its_own_voice() -> None:
    program = "import sys; sys.ps1 = '>>> '" + PROGRAM + "tf.get_logger().info('Graph was finalized.')"
    assert said(program).splitlines() == ["I speak meanwhile", "and later"]
    asked = program.replace("tf.get_logger()", "tf.get_logger().setLevel('INFO') or tf.get_logger()")
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout.endswith("finalized.\n")
