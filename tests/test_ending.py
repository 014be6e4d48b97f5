"""How a launcher ends after a signal."""

import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tf_packnet.callbacks import StopWhenInterrupted
from tf_packnet.command_line.exit_codes import exit_code
from tf_packnet.system import interruption

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
