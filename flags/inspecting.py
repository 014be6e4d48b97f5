"""The flags of `launch/inspect_pack.py`."""

from pathlib import Path
from typing import NamedTuple

from absl import flags

from flags.command_line import UsageError, read
from tf_packnet.errors import ArgumentError
from tf_packnet.inspection.pack_kinds import kind_of

FORMATS = ("table", "json")

_USAGE = """\
Shows what a pack holds: its tasks, who owns how much of which layer, and how many more tasks fit.

usage: python launch/inspect_pack.py --pack=FILE [--name=value ...]

  --pack=out/digits/pack.keras                        tables
  --pack=out/digits/pack.keras --html=digits.html     and a page with pictures
  --pack=out/digits/pack.keras --format=json          for programs"""


class Inspect(NamedTuple):
    """What a command line asks for.

    Attributes:
        pack: The pack.
        format: How to print what is in it: one of `FORMATS`.
        html: Where to write a page; None for nowhere.
    """

    pack: Path
    format: str = "table"
    html: Path | None = None


def define_flags() -> tuple[flags.FlagValues, dict[str, list[str]]]:
    """As `flags.definitions.define_flags`."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "pack",
        None,
        "The pack, such as out/digits/pack.keras. A run's results.json beside it says how accurate its tasks are.",
        flag_values=values,
    )
    flags.DEFINE_enum("format", "table", FORMATS, "How to print it.", flag_values=values)
    flags.DEFINE_string(
        "html",
        None,
        "Write one HTML page there that needs nothing else: owner maps, ownership, accuracy, weights and filters.",
        flag_values=values,
    )
    return values, {"What to show": ["pack"], "How": ["format", "html"]}


def parse_inspection(argv: list[str]) -> Inspect:
    """Parses a command line (`argv[0]` is the program) and checks it.

    `--help` and `--version` print and exit with 0.

    Raises:
        UsageError: If a flag is unknown or malformed, or --pack is missing.
        ArgumentError: If there is no such pack, or the page cannot be written where it is wanted.
    """
    values, themes = define_flags()
    rest = read(argv, values, themes, _USAGE)
    if rest:
        raise UsageError(f"{rest[0]!r} is no flag: expected only --name=value (--help lists the flags)")
    if not values["pack"].value:
        raise UsageError("--pack: expected the file of a pack, such as --pack=out/digits/pack.keras")
    pack, html = Path(values["pack"].value).expanduser(), values["html"].value
    kind_of(pack)  # or an error
    return Inspect(pack, values["format"].value, None if html is None else _checked_page(Path(html).expanduser(), pack))


def _checked_page(page: Path, pack: Path) -> Path:
    try:
        if page.is_dir():
            raise ArgumentError("html", "a file, not a folder", str(page))
        if page.exists() and page.samefile(pack):
            raise ArgumentError("html", "another file than the pack", str(page))
        if not page.name:
            raise ArgumentError("html", "the name of a file", str(page))
        taken = next(folder for folder in page.absolute().parents if folder.exists())
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError("html", "a file that can be written", str(page)) from error
    if not taken.is_dir():
        raise ArgumentError("html", f"a file in a folder ({taken} is a file)", str(page))
    return page
