"""Flag parsers whose error messages say what was expected."""

from typing import Any

from absl import flags

from tf_packnet.experiments.definitions import MAX_RUNS

MAX_BYTES_HELP = (
    "Most memory in bytes that opening a file may take. Default: 256 MiB, or, if that is more, 4 times the size of a "
    "file of examples and 32 times that of a pack."
)
# Limit on the digits of a number; Python refuses to print much longer ones.
MAX_DIGITS = 100


def _check_length(argument: Any) -> Any:
    if isinstance(argument, str) and len(argument) > MAX_DIGITS:
        raise ValueError("too long")
    return argument


class IntegerParser(flags.IntegerParser):
    """An integer."""

    def convert(self, argument: Any) -> int:
        try:
            return super().convert(_check_length(argument))
        except (TypeError, ValueError) as error:
            raise ValueError("expected an integer") from error


class FloatParser(flags.FloatParser):
    """A number."""

    def convert(self, argument: Any) -> float:
        try:
            return super().convert(argument)
        except (TypeError, ValueError) as error:
            raise ValueError("expected a number") from error


class BooleanParser(flags.BooleanParser):
    """True or false."""

    def parse(self, argument: Any) -> bool:
        try:
            return super().parse(argument)
        except (TypeError, ValueError) as error:
            raise ValueError("expected true or false") from error


class IntegerListParser(flags.ArgumentParser):
    """Comma-separated integers; parses to a tuple."""

    def parse(self, argument: Any) -> tuple[int, ...]:
        if isinstance(argument, (list, tuple)):
            return tuple(argument)
        try:
            return tuple(int(_check_length(part)) for part in argument.split(","))
        except ValueError as error:
            raise ValueError("expected comma-separated integers, such as 256,256") from error

    def flag_type(self) -> str:
        return "comma-separated integers"


class SeedsParser(flags.ArgumentParser):
    """A number of seeds, which parses to an int, or comma-separated seeds, which parse to a tuple."""

    def parse(self, argument: Any) -> int | tuple[int, ...]:
        if not isinstance(argument, str):
            return argument
        try:
            numbers = tuple(int(_check_length(part)) for part in argument.removesuffix(",").split(","))
        except ValueError as error:
            raise ValueError("expected a number of seeds, or comma-separated seeds such as 3,5,8") from error
        if "," not in argument:
            if not 1 <= numbers[0] <= MAX_RUNS:
                expected = f"expected at least 1 and at most {MAX_RUNS:,}"
                raise ValueError(f"{expected}, or comma-separated seeds such as 3,5,8")
            return numbers[0]
        if min(numbers) < 0 or len(set(numbers)) < len(numbers):
            raise ValueError("expected different seeds from 0 on")
        return numbers

    def flag_type(self) -> str:
        return "a number, or comma-separated seeds"
