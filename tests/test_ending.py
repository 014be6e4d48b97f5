"""How a launcher ends when it is told to stop."""

import signal

import pytest

from launch.ending import exit_code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_in_one_line(number, code, capfd):
    assert exit_code(lambda: signal.raise_signal(number), goes_on="it goes on") == code
    assert capfd.readouterr().err == "\nstopped; it goes on\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("other", [TypeError, OSError, SystemExit])
def test_a_signal_ends_it_even_if_something_on_the_way_makes_another_error_of_it(number, code, other, capfd):
    def work():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise other from None

    assert exit_code(work, goes_on="it goes on") == code
    assert capfd.readouterr().err == "\nstopped; it goes on\n"


def test_errors_without_a_signal_stay_what_they_are():
    def work():
        raise TypeError("a mistake of ours")

    with pytest.raises(TypeError, match="of ours"):
        exit_code(work, goes_on="it goes on")


def test_signals_do_afterwards_what_they_did():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert exit_code(lambda: None, goes_on="it goes on") == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
