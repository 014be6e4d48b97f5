"""Flag parsers that say what they expected rather than what Python failed at."""

from typing import Any

from absl import flags


class IntegerParser(flags.IntegerParser):
    """A whole number."""

    def convert(self, argument: Any) -> int:
        try:
            return super().convert(argument)
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
            return tuple(int(part) for part in argument.split(","))
        except ValueError as error:
            raise ValueError("expected whole numbers with commas between them, such as 256,256") from error

    def flag_type(self) -> str:
        return "comma separated whole numbers"
