"""Flag parsers that say what they expected rather than what Python failed at."""

from typing import Any

from absl import flags

from tf_packnet.experiments.definitions import MAX_RUNS

# Longer than any number that a flag may be: Python refuses to print what is much longer.
LONGEST_NUMBER = 100


def _short(argument: Any) -> Any:
    if isinstance(argument, str) and len(argument) > LONGEST_NUMBER:
        raise ValueError("too long")
    return argument


class IntegerParser(flags.IntegerParser):
    """A whole number."""

    def convert(self, argument: Any) -> int:
        try:
            return super().convert(_short(argument))
        except (TypeError, ValueError) as error:
            raise ValueError("expected a whole number") from error


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
    """Whole numbers with commas between them, to a tuple."""

    def parse(self, argument: Any) -> tuple[int, ...]:
        if isinstance(argument, (list, tuple)):
            return tuple(argument)
        try:
            return tuple(int(_short(part)) for part in argument.split(","))
        except ValueError as error:
            raise ValueError("expected whole numbers with commas between them, such as 256,256") from error

    def flag_type(self) -> str:
        return "comma separated whole numbers"


class SeedsParser(flags.ArgumentParser):
    """How many seeds, to an int; or the seeds with commas between them, to a tuple."""

    def parse(self, argument: Any) -> int | tuple[int, ...]:
        if not isinstance(argument, str):
            return argument
        try:
            numbers = tuple(int(_short(part)) for part in argument.removesuffix(",").split(","))
        except ValueError as error:
            raise ValueError("expected how many, or seeds with commas between them, such as 3,5,8") from error
        if "," not in argument:
            if not 1 <= numbers[0] <= MAX_RUNS:
                expected = f"expected at least 1 and at most {MAX_RUNS:,}"
                raise ValueError(f"{expected}, or seeds with commas between them, such as 3,5,8")
            return numbers[0]
        if min(numbers) < 0 or len(set(numbers)) < len(numbers):
            raise ValueError("expected different seeds from 0 on")
        return numbers

    def flag_type(self) -> str:
        return "a number, or seeds with commas between them"
