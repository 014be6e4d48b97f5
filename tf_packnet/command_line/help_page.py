"""The `--help` page: flags by theme, each with its default and meaning."""

import textwrap
from collections.abc import Mapping, Sequence

from absl import flags

HELP_FLAGS = ("--help", "-help", "-h", "--helpfull", "--helpshort")
_WIDTH = 100


def render_help(values: flags.FlagValues, themes: Mapping[str, Sequence[str]], usage: str) -> str:
    """Return the help page as text.

    Args:
        values: The declared flags.
        themes: The names of the flags to list, by theme.
        usage: The beginning of the page.
    """
    sections = [usage]
    for theme, names in themes.items():
        sections.append("\n".join([f"{theme}:", *(_describe(values[name]) for name in names)]))
    return "\n\n".join(sections)


def show_default(flag: flags.Flag) -> str:
    """Return a flag's default as the command line takes it; empty if it has none."""
    if flag.default is None or flag.default == []:
        return ""
    return ",".join(map(str, flag.default)) if isinstance(flag.default, tuple) else str(flag.default)


def help_text(flag: flags.Flag) -> str:
    """Return a flag's help text, without the text that absl appends."""
    return flag.help.partition(";\n")[0]


def _describe(flag: flags.Flag) -> str:
    if flag.boolean:
        heading = f"  --[no]{flag.name} (default: {'on' if flag.default else 'off'})"
    else:
        default = show_default(flag)
        heading = f"  --{flag.name}={default}" if default else f"  --{flag.name}"
    return heading + "\n" + textwrap.fill(help_text(flag), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
