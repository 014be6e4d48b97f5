"""`tf-packnet predict`: predicts the classes of new examples with one task of a pack."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from tf_packnet.command_line.parsers import LAYERS_HELP, MAX_BYTES_HELP, IntegerParser, ScaleParser
from tf_packnet.command_line.parsing import UsageError, parse_flags
from tf_packnet.prediction import Asked, predict
from tf_packnet.prediction.tables import FORMATS

USAGE = """\
Predicts the class of each example with one task of a pack.

usage: tf-packnet predict --pack=FILE [--task=NAME] [--name=value ...] FILE ...

  --pack=out/digits/pack.packnet --task=2-3 --input=photos    every image in a folder
  --pack=out/digits/pack.packnet --task=2 a.png b.png         two images
  --pack=out/digits/pack.packnet --task=auto --input=photos   images of any task of the pack
  --pack=out/digits/pack.packnet --task=2 --input=x.npz       array x (or the only one) of a file
  --pack=out/iris/pack.packnet --task=2 --input=new.csv       every row of a table"""


def main(argv: Sequence[str]) -> None:
    """Run `tf-packnet predict` with a command line (`argv[0]` is the program's name)."""
    predict(parse_command(argv))


def define_flags() -> tuple[flags.FlagValues, dict[str, list[str]]]:
    """Declare all flags in a new `FlagValues`. Return it, not parsed yet, and the names of the flags by theme."""
    values = flags.FlagValues()

    def define(name: str, default: Any, text: str, parser: flags.ArgumentParser | None = None) -> None:
        flags.DEFINE(parser or flags.ArgumentParser(), name, default, text, values, flags.ArgumentSerializer())

    define("pack", None, "The pack: a .packnet file (tp.save_pack), or a .keras file such as the pack.keras of a run.")
    define(
        "task",
        None,
        "Name of the task, or its number (from 1). auto infers the task of each example, which is not always right. "
        "Not needed if the pack has only one task.",
    )
    define("layers", None, LAYERS_HELP)
    flags.DEFINE_multi_string(
        "input",
        [],
        "An image (png, jpg, bmp, gif, webp, tif), a folder of images, a table (csv, tsv, parquet) "
        "with the columns of training, or a .npz or .npy array of examples. Images are "
        "converted to the network's size and colours. Images and integers are multiplied by --scale; other numbers are "
        "used unchanged. May be given several times; arguments without -- are inputs too.",
        flag_values=values,
    )
    define(
        "scale",
        None,
        "Factor for images and integers, such as 1/255. Default: that of training, if the pack records it.",
        ScaleParser(),
    )
    flags.DEFINE_enum("format", "table", FORMATS, "Format of the predictions.", flag_values=values)
    define("output", None, "Output file. Default: standard output.")
    define("max_bytes", None, MAX_BYTES_HELP, IntegerParser())
    flags.register_validator("max_bytes", lambda most: most is None or most >= 1, "expected at least 1", values)
    define("top", 1, "How many classes to list per example, most probable first.", IntegerParser())
    flags.register_validator("top", lambda top: top >= 1, "expected at least 1", values)
    return values, {
        "Pack": ["pack", "task", "layers"],
        "Examples": ["input", "scale", "max_bytes"],
        "Output": ["format", "output", "top"],
    }


def parse_command(argv: Sequence[str]) -> Asked:
    """Parse a command line (`argv[0]` is the program's name). `--help` and `--version` print and exit with 0.

    Raises:
        UsageError: If a flag is unknown, malformed or missing, or its value out of range.
    """
    values, themes = define_flags()
    values.set_gnu_getopt(True)  # flags may follow inputs
    rest = parse_flags(argv, values, themes, USAGE)
    names = ("pack", "task", "format", "output", "top", "scale", "max_bytes", "layers")
    asked = {name: values[name].value for name in names}
    inputs = (*values["input"].value, *rest)
    for name, value in (("pack", asked["pack"]), ("input", inputs)):
        if not value:
            raise UsageError(f"--{name}: expected a value (--help lists the flags)")
    return Asked(inputs=inputs, **asked)
