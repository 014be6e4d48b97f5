"""Nothing is said at the start that says nothing."""

import subprocess
import sys

from tests.conftest import ROOT
from tf_packnet.quiet import standard_error_filtered

NOISE = "2026-01-01 00:00:00.000000: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on. You may see\n"


def run(code, **kwargs):
    # Without the variables that hush TensorFlow: as at a user's prompt.
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={}, **kwargs)


def test_importing_the_package_is_silent():
    done = run("import tf_packnet; print(tf_packnet.pack.__name__)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "pack\n", "")


def test_what_is_no_noise_is_let_through():
    done = run(
        "import os, sys\n"
        "from tf_packnet.quiet import standard_error_filtered\n"
        "with standard_error_filtered():\n"
        f"    os.write(2, {NOISE!r}.encode())\n"
        "    print('a warning', file=sys.stderr)\n"
        "print('after', file=sys.stderr)\n"
    )
    assert (done.returncode, done.stderr) == (0, "a warning\nafter\n")


def test_an_error_inside_is_told_and_the_error_output_comes_back():
    done = run(
        "from tf_packnet.quiet import standard_error_filtered\n"
        "with standard_error_filtered():\n"
        "    raise RuntimeError('so it is')\n"
    )
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: so it is\n")


def test_a_process_without_an_error_output(monkeypatch):
    def closed(descriptor):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("os.dup", closed)
    with standard_error_filtered():
        pass
