"""Declarations of config fields: default, range, meaning, and which stage keys contain the field.

`Config` declares each of its fields with `option`. The command-line flags, their help, the flag reference and the stage
keys are generated from these declarations.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tf_packnet.system.images import MAX_SIDE

# Limit on the length of a path in bytes, as in Linux.
MAX_PATH = 4095
# Upper limit for numbers that only the data set limits, once it is loaded.
_NO_LIMIT = 2**63 - 1
# Limit on the number of workers of one run.
MAX_HOSTS = 256
# A sentinel: equal to no value of a field.
ORIGINAL = object()


class StageKey(enum.Enum):
    """Which stage keys contain a field. The values are for the flag reference."""

    NETWORK = "all stages (network)"
    TRAINING = "all stages (training)"
    TRAIN_STAGE = "train stages"
    LATER_TRAIN_STAGES = "train stages from task 2 on"
    PRUNE_RETRAIN_STAGE = "prune+retrain stages"
    BASELINES = "all stages of memory and multinet"
    COVERED_BY_DATA = "through the fingerprint of the examples"
    COVERED_BY_EXECUTION = "through the settings chosen on this machine"
    NO_EFFECT = "no"


class Check(NamedTuple):
    """The values that a field may have.

    Attributes:
        holds: Whether a value is one of them. May raise TypeError.
        expected: A description of the values, for error messages.
        choices: The values, if they are a few words.
    """

    holds: Callable[[Any], bool]
    expected: str
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Option:
    """The declaration of a field, besides its name, type and default.

    Attributes:
        theme: The heading of its flag in help pages.
        check: The values that it may have.
        help: Its meaning.
        stage_key: Which stage keys contain it.
        sweepable: Whether the runs of an experiment may differ in it.
        neutral: For a field that was added to `Config` later: the value at which a run behaves as before the field
            existed. Stage keys omit the field at this value, and files without the field are read as if they had it.
            `ORIGINAL` for the original fields.
    """

    theme: str
    check: Check
    help: str
    stage_key: StageKey
    sweepable: bool = True
    neutral: Any = ORIGINAL


def option(
    theme: str,
    default: Any,
    check: Check,
    stage_key: StageKey,
    help: str,
    sweepable: bool = True,
    neutral: Any = ORIGINAL,
) -> Any:
    """Declare a field of `Config`; see `Option` for the arguments. `help` is what --help shows."""
    if check.choices:
        help = f"{enumeration(check.choices, 'or')}{help if help.startswith('.') else ': ' + help}"
    declared = Option(theme, check, help, stage_key, sweepable, neutral)
    return dataclasses.field(default=default, metadata={"option": declared})


def one_of(choices: tuple[str, ...]) -> Check:
    """Accept one of a few words."""
    return Check(lambda value: value in choices, "one of " + ", ".join(choices), choices)


def integer(low: int, high: int = _NO_LIMIT, expected: str = "", also: str = "") -> Check:
    """Accept an integer from `low` to `high`, both included, and the word `also`."""
    at_most = f" and at most {high:,}" if high < _NO_LIMIT else ""
    expected = (expected or f"at least {low}{at_most}") + (f", or {also}" if also else "")

    def holds(value: Any) -> bool:
        return type(value) is int and low <= value <= high or bool(also) and value == also

    return Check(holds, expected)


def integers(low: int, high: int, longest: int) -> Check:
    """Accept a sequence of 1 to `longest` layer sizes from `low` to `high`, both included."""
    each = integer(low, high)
    return Check(
        lambda values: 1 <= len(values) <= longest and all(each.holds(value) for value in values),
        f"one or more layer sizes of at least {low} and at most {high:,}, up to {longest} of them",
    )


def names(most: int) -> Check:
    """Accept a sequence of up to `most` different names without commas."""
    return Check(
        lambda values: (
            len(set(values)) == len(values) <= most
            and all(is_text(name) and name and "," not in name for name in values)
        ),
        f"different names, separated by commas, up to {most:,} of them",
    )


def task_sizes() -> Check:
    """Accept a number of classes, a number for each of several tasks, or `all`."""

    def holds(value: Any) -> bool:
        sizes = value if isinstance(value, tuple) else (value,)
        return value == "all" or bool(sizes and all(integer(2).holds(size) for size in sizes))

    return Check(holds, "at least 2 classes, numbers of classes separated by commas, or all")


def image_size() -> Check:
    """Accept the text `N` or `HEIGHTxWIDTH`."""

    def holds(value: Any) -> bool:
        sides = value.split("x") if is_text(value) else []
        return len(sides) in (1, 2) and all(
            side.isascii() and side.isdigit() and len(side) <= 5 and 1 <= int(side) <= MAX_SIDE for side in sides
        )

    return Check(holds, f"N or HEIGHTxWIDTH, in pixels from 1 to {MAX_SIDE:,}")


def addresses() -> Check:
    """Accept an empty sequence, and one of two or more different addresses `host:port`."""
    return Check(
        lambda values: (
            len(values) != 1
            and len(set(values)) == len(values) <= MAX_HOSTS
            and all(is_address(value) for value in values)
        ),
        f"the HOST:PORT of every worker, separated by commas: 2 to {MAX_HOSTS} different ones",
    )


def is_address(value: Any) -> bool:
    """Whether `value` is `host:port`; an IPv6 address is in brackets: `[::1]:2222`."""
    if not is_text(value):
        return False
    host, _, port = value.rpartition(":")
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", "?")
    is_name = bool(name) and all(character.isalnum() or character in "-._:%" for character in name)
    return is_name and port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535


def fraction() -> Check:
    """Accept a number from 0 up to, but not including, 1."""
    return Check(lambda value: 0.0 <= value < 1.0, "a fraction from 0 up to, but not including, 1")


def boolean() -> Check:
    """Accept true and false."""
    return Check(lambda value: type(value) is bool, "true or false")


def optional(check: Check) -> Check:
    """Accept None, and what `check` accepts."""
    return Check(lambda value: value is None or check.holds(value), check.expected, check.choices)


def path() -> Check:
    """Accept a path as text, or None."""
    return optional(Check(is_text, f"a path, text of at most {MAX_PATH:,} bytes"))


def is_text(value: Any) -> bool:
    """Whether `value` is valid UTF-8 text of a limited length without NUL: a command line may contain any bytes."""
    try:
        return "\0" not in value and len(value.encode()) <= MAX_PATH
    except (AttributeError, UnicodeEncodeError):
        return False


def enumeration(words: Sequence[str], conjunction: str) -> str:
    """Return `a, b and c` for the conjunction `and`."""
    return f" {conjunction} ".join([*([", ".join(words[:-1])] if words[:-1] else []), words[-1]])
