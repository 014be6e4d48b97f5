"""The `--help` page: flags by theme, each with its default."""

import textwrap

from absl import flags

_USAGE = """\
Learns a stream of tasks in one network that forgets none of them: PackNet with iterative pruning.

usage: python launch/main.py [--flagfile=FILE] [--name=value ...]

  --flagfile=flags/presets/digits.flags    the demo: half a minute, no network needed
  --flagfile=flags/presets/mnist.flags     the paper's MNIST setting
  --flagfile=flags/presets/cifar10.flags   the paper's CIFAR-10 setting
  --experiment=figure2 --flagfile=...      one of the paper's figures, in that setting

A flag file holds one --name=value a line; flags that follow --flagfile override it."""


def render_help(values: flags.FlagValues, themes: dict[str, list[str]], usage: str = _USAGE) -> str:
    """The page as text, which begins with `usage`."""
    sections = [usage]
    for theme, names in themes.items():
        sections.append("\n".join([f"{theme}:", *(_describe(values[name]) for name in names)]))
    return "\n\n".join(sections)


def _describe(flag: flags.Flag) -> str:
    default = flag.default
    if isinstance(default, bool):
        heading = f"  --[no]{flag.name}" + (" (default: on)" if default else " (default: off)")
    elif default is None or default == []:
        heading = f"  --{flag.name}"
    else:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else f"{default}"
        heading = f"  --{flag.name}={shown}"
    text = flag.help.partition(";\n")[0]  # absl adds what the text says already
    return heading + "\n" + textwrap.fill(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
