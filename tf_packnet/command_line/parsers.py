"""Flag parsers whose error messages say what was expected."""

from typing import Any

from absl import flags

from tf_packnet.pruning.shares import AUTO

MAX_BYTES_HELP = (
    "Most memory in bytes that opening a file may take. Default: 320 MB, or, if that is more, 4 times the size of a "
    "file of examples and 32 times that of a pack."
)
LAYERS_HELP = (
    "A Python file with the layers of your own that the pack has, such as FILE.py of --model=FILE.py:FUNCTION. It is "
    "executed."
)
# Limit on the digits of a number; Python refuses to print much longer ones.
MAX_DIGITS = 100


def check_length(argument: Any) -> Any:
    if isinstance(argument, str) and len(argument) > MAX_DIGITS:
        raise ValueError("too long")
    return argument


class IntegerParser(flags.IntegerParser):
    """An integer."""

    def convert(self, argument: Any) -> int:
        try:
            return super().convert(check_length(argument))
        except (TypeError, ValueError) as error:
            raise ValueError("expected an integer") from error


class RoundsParser(IntegerParser):
    """An integer or `auto`."""

    def parse(self, argument: Any) -> int | str:
        if argument == AUTO:
            return AUTO
        try:
            return super().parse(argument)
        except ValueError as error:
            raise ValueError(f"expected an integer, or {AUTO}") from error

    def flag_type(self) -> str:
        return f"a number, or {AUTO}"


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
            return tuple(int(check_length(part)) for part in argument.split(","))
        except ValueError as error:
            raise ValueError("expected comma-separated integers, such as 256,256") from error

    def flag_type(self) -> str:
        return "comma-separated integers"


class TaskSizesParser(flags.ArgumentParser):
    """A number, comma-separated numbers, or a word."""

    def parse(self, argument: Any) -> int | tuple[int, ...] | str:
        if not isinstance(argument, str):
            return tuple(argument) if isinstance(argument, list) else argument
        try:
            numbers = tuple(int(check_length(part)) for part in argument.split(","))
        except ValueError:
            return argument
        return numbers if len(numbers) > 1 else numbers[0]

    def flag_type(self) -> str:
        return "a number, or comma-separated numbers"


class NameListParser(flags.ArgumentParser):
    """Comma-separated names; parses to a tuple."""

    def parse(self, argument: Any) -> tuple[str, ...]:
        if isinstance(argument, (list, tuple)):
            return tuple(argument)
        return tuple(argument.split(",")) if argument else ()

    def flag_type(self) -> str:
        return "comma-separated names"


class ScaleParser(flags.ArgumentParser):
    """A number above 0, or a fraction such as 1/255."""

    def parse(self, argument: Any) -> float:
        try:
            upper, _, lower = str(argument).partition("/")
            value = float(upper) / float(lower or 1)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError("expected a number, or a fraction such as 1/255") from error
        if not 0 < value < float("inf"):
            raise ValueError("expected a finite number above 0")
        return value

    def flag_type(self) -> str:
        return "a number or a fraction"
