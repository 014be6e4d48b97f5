"""A command that receives a signal ends with the right exit code and one line on standard error."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.conftest import ROOT
from tf_packnet.callbacks import StopWhenInterrupted
from tf_packnet.command_line.exit_codes import exit_code
from tf_packnet.command_line.run_command import parse_config
from tf_packnet.runs.output import check as check_output
from tf_packnet.system import interruption

LAZY = {**os.environ, "TF_PACKNET_LAZY": "1"}


@pytest.fixture(autouse=True)
def usual_handlers():
    """Background jobs of a shell ignore SIGINT, and jobs under `nohup` SIGHUP. Processes that they start do so too."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


STOPPED = "\nstopped; the same command continues after the last finished epoch\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_in_one_line(number, code, capfd):
    assert exit_code(lambda: signal.raise_signal(number), "main.py", resumable=True) == code
    assert capfd.readouterr().err == STOPPED


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("other", [TypeError, OSError, SystemExit])
def test_a_signal_ends_it_even_if_other_code_raises_another_error_instead(number, code, other, capfd):
    def work():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise other from None

    assert exit_code(work, "main.py", resumable=True) == code
    assert capfd.readouterr().err == STOPPED


class LosesSignal:
    """Python ignores the exception that a signal raises in `__del__`."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_signal_ends_it_at_the_next_check(capfd):
    steps = []

    def work():
        LosesSignal()
        steps.append(True)  # the signal was lost
        StopWhenInterrupted().on_train_batch_end(0)
        steps.append(True)

    assert exit_code(work, "main.py", resumable=True) == 143
    assert len(steps) == 1
    assert capfd.readouterr().err.endswith(STOPPED)
    assert exit_code(interruption.check, "main.py", resumable=True) == 0  # the next one begins without it


def test_a_run_ends_even_if_the_signal_is_lost(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['main.py', '--jit=off', '--train_epochs=100000', '--output_dir={tmp_path}/out']\n"
        "from tests.test_ending import LosesSignal\n"
        "from tf_packnet.callbacks import EpochLog\n"
        "EpochLog.on_epoch_begin = lambda self, epoch, logs=None: epoch == 3 and LosesSignal()\n"
        f"runpy.run_path({str(ROOT / 'launch/main.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 143, done.stderr
    assert done.stderr.endswith(STOPPED)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_it_at_once(number):
    code = (
        "import signal, sys, time\n"
        "from tf_packnet.command_line.exit_codes import exit_code\n"
        "def work():\n"
        "    try:\n"
        f"        signal.raise_signal({int(number)})\n"
        "    finally:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        print('not reached')\n"
        "sys.exit(exit_code(work, 'main.py', resumable=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=LAZY)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", STOPPED)


def test_a_lost_signal_is_not_printed_and_the_next_one_ends_it():
    code = (
        "import signal, sys\n"
        "from tf_packnet.command_line.exit_codes import exit_code\n"
        "class Loses:\n"
        "    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "def work():\n"
        "    Loses()\n"
        "    print('goes on', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "sys.exit(exit_code(work, 'main.py', resumable=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=LAZY)
    assert (done.returncode, done.stdout, done.stderr) == (130, "goes on\n", STOPPED)


def test_a_signal_that_is_ignored_stays_ignored(capfd):
    """As with `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert exit_code(lambda: signal.raise_signal(signal.SIGHUP), "main.py", resumable=True) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def catches(pid, number):
    """Whether a process has a handler for a signal. Python itself, while it starts, has none for SIGTERM."""
    mask = re.search(r"^SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


def signalled(arguments, longest, random):
    """Start a command, send two or three signals with random gaps, and return how it ended."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    while process.poll() is None and not catches(process.pid, signal.SIGTERM):
        time.sleep(0.01)
    time.sleep(random.uniform(0.0, longest))
    first, *others = random.choices([signal.SIGTERM, signal.SIGINT, signal.SIGHUP], k=random.choice([2, 3]))
    process.send_signal(first)
    for number in others:
        time.sleep(random.choice([0.0, 0.001, 0.01, 0.1, 0.5]) * random.random())
        process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    return {first, *others}, process.returncode, stdout, stderr


@pytest.mark.parametrize("tries", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_several_signals_at_random_times(tries, tmp_path):
    random, output = Random(tries), tmp_path / "out"
    flags = ["--flagfile=digits", "--num_tasks=2", "--train_epochs=400", "--jit=off", f"--output_dir={output}"]
    for attempt in range(tries):
        longest = 0.5 if attempt % 2 else 12.0  # during the imports, and later
        numbers, code, stdout, stderr = signalled(["launch/main.py", *flags], longest, random)
        assert "Traceback" not in stderr, stderr
        # Negative if Python itself had ended its handlers already.
        assert code in {128 + number for number in numbers} | {-number for number in numbers}, stderr
        assert stdout == ""
    if output.exists():
        assert check_output(parse_config(["main.py", *flags])) is None  # the folder of an unfinished run


def test_a_full_disk_ends_it_in_one_line_whatever_error_tells_it(capfd):
    def work():
        raise RuntimeError(
            "events.out.tfevents; No space left on device\n\tFailed to flush 1 events\n"
        )  # as TensorFlow

    assert exit_code(work, "main.py", resumable=True) == 1
    advice = "fix this and run the same command again to continue"
    assert capfd.readouterr().err == f"main.py: events.out.tfevents; No space left on device; {advice}\n"


def test_errors_without_a_signal_are_raised():
    def work():
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        exit_code(work, "main.py", resumable=True)


def test_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert exit_code(lambda: None, "main.py", resumable=True) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
