"""TensorFlow starts without its usual messages."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tf_packnet.system.quiet import standard_error_filtered

NOISE = "2026-01-01 00:00:00.000000: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on. You may see\n"


def run(code, **kwargs):
    # Without the environment variables that silence TensorFlow, like a user's shell.
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={}, **kwargs)


def test_importing_the_package_is_silent():
    done = run("import tf_packnet; print(tf_packnet.pack.__name__)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "pack\n", "")


@pytest.mark.parametrize("on_cpu", [False, True])
def test_on_cpu_hides_the_gpus(on_cpu):
    done = run(
        "import tensorflow as tf\n"
        "from tf_packnet.system.quiet import start_tensorflow\n"
        "tf.config.set_visible_devices = lambda devices, kind: print('visible:', devices, kind)\n"
        f"start_tensorflow(on_cpu={on_cpu})\n"
    )
    assert (done.returncode, done.stdout) == (0, "visible: [] GPU\n" * on_cpu), done.stderr


def test_tasks_with_other_numbers_of_classes_give_no_advice_about_tracing():
    done = run(
        "from tf_packnet.system.quiet import start_tensorflow\n"
        "start_tensorflow()\n"
        "import tensorflow as tf\n"
        "function = tf.function(lambda x, number: x + number)\n"
        "for number in range(9):\n"
        "    function(tf.constant(1), number)\n"
        "tf.get_logger().warning('another one')\n"
    )
    assert (done.returncode, done.stderr) == (0, "WARNING:tensorflow:another one\n")


def test_other_messages_are_printed():
    done = run(
        "import os, sys\n"
        "from tf_packnet.system.quiet import standard_error_filtered\n"
        "with standard_error_filtered():\n"
        f"    os.write(2, {NOISE!r}.encode())\n"
        "    print('a warning', file=sys.stderr)\n"
        "print('after', file=sys.stderr)\n"
    )
    assert (done.returncode, done.stderr) == (0, "a warning\nafter\n")


def test_standard_error_is_restored_after_an_exception():
    done = run(
        "from tf_packnet.system.quiet import standard_error_filtered\n"
        "with standard_error_filtered():\n"
        "    raise RuntimeError('an error')\n"
    )
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: an error\n")


def test_a_process_without_standard_error(monkeypatch):
    def closed(descriptor):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("os.dup", closed)
    with standard_error_filtered():
        pass
