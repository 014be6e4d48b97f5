"""The flags of `launch/predict.py`, and from its command line to what is asked for."""

from typing import Any

from absl import flags

from flags.command_line import UsageError, read
from flags.parsers import IntegerParser
from tf_packnet.prediction import Asked
from tf_packnet.prediction.tables import FORMATS

_USAGE = """\
Says which class of a task each example belongs to.

usage: python launch/predict.py --pack=FILE --input=FILE [--task=NAME] [--name=value ...] [FILE ...]

  --pack=out/digits/pack.packnet --task=2-3 --input=photos    every image in a folder
  --pack=out/digits/pack.packnet --task=2 a.png b.png         some images
  --pack=out/digits/pack.packnet --task=2 --input=x.npz       the array x (or the only one)"""


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


def define_flags() -> tuple[flags.FlagValues, dict[str, list[str]]]:
    """Declares all flags on a fresh `FlagValues`; returns them, not parsed yet, and their names by theme."""
    values = flags.FlagValues()

    def define(name: str, default: Any, text: str, parser: flags.ArgumentParser | None = None) -> None:
        flags.DEFINE(parser or flags.ArgumentParser(), name, default, text, values, flags.ArgumentSerializer())

    define("pack", None, "A file by save_pack (pack.packnet), or the pack.keras that the launcher leaves.")
    define("task", None, "Name of the task, or its number from 1 on. May be left out where the pack has one task.")
    flags.DEFINE_multi_string(
        "input",
        [],
        "An image (png, jpg, bmp, gif), a folder of images, or a .npz or .npy array of examples. Images are brought to "
        "the network's size and colours. Whole numbers are multiplied by --scale, other numbers taken as they are. May "
        "be given again; arguments that are no flags are inputs too.",
        flag_values=values,
    )
    define(
        "scale",
        None,
        "What to multiply images and whole numbers by, such as 1/255. Default: as in training, if the pack records it.",
        ScaleParser(),
    )
    flags.DEFINE_enum("format", "table", FORMATS, "How to write the predictions.", flag_values=values)
    define("output", None, "The file to write. Default: standard output.")
    define("top", 1, "How many classes to name of each example, the likeliest first.", IntegerParser())
    flags.register_validator("top", lambda top: top >= 1, "expected at least 1", values)
    return values, {"Pack": ["pack", "task"], "Examples": ["input", "scale"], "Output": ["format", "output", "top"]}


def parse_command(argv: list[str]) -> Asked:
    """Parses a command line (`argv[0]` is the program). `--help` and `--version` print and exit with 0.

    Raises:
        UsageError: If a flag is unknown, malformed or missing, or its value out of range.
    """
    values, themes = define_flags()
    values.set_gnu_getopt(True)  # flags may come after inputs
    rest = read(argv, values, themes, _USAGE)
    asked = {name: values[name].value for name in ("pack", "task", "format", "output", "top", "scale")}
    inputs = (*values["input"].value, *rest)
    for name, value in (("pack", asked["pack"]), ("input", inputs)):
        if not value:
            raise UsageError(f"--{name}: expected to be given (--help lists the flags)")
    return Asked(inputs=inputs, **asked)
