"""`tf-packnet inspect`: shows the contents of a pack, as tables, as JSON or as an HTML page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from tf_packnet.command_line.parsers import LAYERS_HELP, MAX_BYTES_HELP, IntegerParser
from tf_packnet.command_line.parsing import UsageError, check_no_positional, parse_flags
from tf_packnet.errors import ArgumentError
from tf_packnet.packfile.opening import kind_of
from tf_packnet.system import python_files

FORMATS = ("table", "json")

USAGE = """\
Shows the contents of a pack: its tasks, how many weights of each layer they own, and how many more
tasks fit.

usage: tf-packnet inspect --pack=FILE [--name=value ...]

  --pack=out/digits/pack.keras                        tables
  --pack=out/digits/pack.keras --html=digits.html     tables, and a page with pictures
  --pack=out/digits/pack.keras --format=json          for programs"""


class Request(NamedTuple):
    """A parsed command line.

    Attributes:
        pack: The file of the pack.
        format: One of `FORMATS`.
        html: The HTML page to write; None for none.
        max_bytes: Limit in bytes on the memory for opening the pack; None for the default.
        layers: A Python file that defines layers of the pack; None for none.
    """

    pack: Path
    format: str = "table"
    html: Path | None = None
    max_bytes: int | None = None
    layers: str | None = None


def main(argv: Sequence[str]) -> None:
    """Run `tf-packnet inspect` with a command line (`argv[0]` is the program's name)."""
    request = parse_request(argv)
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow(on_cpu=True)
    python_files.load_for("layers", request.layers)
    show(request)


def show(request: Request) -> None:
    """Print the contents of a pack, and write the HTML page if one was requested.

    Raises:
        ArgumentError: If the file is not a pack.
    """
    from absl import logging

    from tf_packnet.inspection.contents import inspect_pack
    from tf_packnet.inspection.opened_pack import open_pack
    from tf_packnet.inspection.tables import tables
    from tf_packnet.runs.paths import RunPaths
    from tf_packnet.system.console import Console
    from tf_packnet.text import to_json

    logging.set_verbosity(logging.ERROR)
    packed, file = open_pack(request.pack, RunPaths(request.pack.parent).results, request.max_bytes)
    contents = inspect_pack(packed, file)
    if request.html is not None:
        from tf_packnet.inspection import html_page

        html_page.write(request.html, packed, contents)
        print(f"page in {request.html}", file=sys.stderr)
    if request.format == "json":
        print(to_json(contents.to_json()))
    else:
        console = Console()
        console.print(tables(contents, console))


def define_flags() -> tuple[flags.FlagValues, dict[str, list[str]]]:
    """Declare all flags in a new `FlagValues`. Return it, not parsed yet, and the names of the flags by theme."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "pack",
        None,
        "The pack, such as out/digits/pack.keras. Accuracies are read from results.json in the same folder.",
        flag_values=values,
    )
    flags.DEFINE(IntegerParser(), "max_bytes", None, MAX_BYTES_HELP, values, flags.ArgumentSerializer())
    flags.register_validator("max_bytes", lambda most: most is None or most >= 1, "expected at least 1", values)
    flags.DEFINE_string("layers", None, LAYERS_HELP, flag_values=values)
    flags.DEFINE_enum("format", "table", FORMATS, "Format on standard output.", flag_values=values)
    flags.DEFINE_string(
        "html",
        None,
        "Write a self-contained HTML page to this file: owner maps, ownership, accuracy, weights and filters.",
        flag_values=values,
    )
    return values, {"Pack": ["pack", "layers", "max_bytes"], "Output": ["format", "html"]}


def parse_request(argv: Sequence[str]) -> Request:
    """Parse and check a command line. `--help` and `--version` print and exit with 0.

    Raises:
        UsageError: If a flag is unknown or malformed, or --pack is missing.
        ArgumentError: If the file is not a pack, or the HTML page cannot be written.
    """
    values, themes = define_flags()
    check_no_positional(parse_flags(argv, values, themes, USAGE))
    if not values["pack"].value:
        raise UsageError("--pack: expected the file of a pack, such as --pack=out/digits/pack.keras")
    pack, html = Path(values["pack"].value).expanduser(), values["html"].value
    kind_of(pack)  # raises ArgumentError if it is not a pack
    page = None if html is None else _check_page(Path(html).expanduser(), pack)
    layers = values["layers"].value
    python_files.check("layers", layers)
    return Request(pack, values["format"].value, page, values["max_bytes"].value, layers)


def _check_page(page: Path, pack: Path) -> Path:
    try:
        if page.is_dir():
            raise ArgumentError("html", "a file, not a folder", str(page))
        if page.exists() and page.samefile(pack):
            raise ArgumentError("html", "another file than the pack", str(page))
        if not page.name:
            raise ArgumentError("html", "the name of a file", str(page))
        ancestor = next(folder for folder in page.absolute().parents if folder.exists())
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError("html", "a file that can be written", str(page)) from error
    if not ancestor.is_dir():
        raise ArgumentError("html", f"a file in a folder ({ancestor} is a file)", str(page))
    return page
