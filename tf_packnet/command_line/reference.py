"""The reference of all flags of runs and experiments: `python -m tf_packnet.command_line.reference` prints it."""

from tf_packnet.command_line.help_page import help_text, show_default
from tf_packnet.command_line.run_flags import define_flags
from tf_packnet.runs.config import OPTIONS

_INTRODUCTION = """\
# Flags of `tf-packnet run`, `experiment` and `plan`

Generated from the declarations of `Config` in `tf_packnet/runs` by `make flag-reference`.

"Stage key" says which stages depend on a flag: runs that agree in it may share stored results of those stages."""


def render() -> str:
    """Return the reference in Markdown: default, range, meaning and stage key of each flag."""
    values, themes = define_flags()
    sections = [_INTRODUCTION]
    for theme, names in themes.items():
        lines = [f"## {theme}", "", "| flag | default | expected | meaning | stage key |", "|---|---|---|---|---|"]
        for name in names:
            option = OPTIONS.get(name)
            expected = option.check.expected if option else values[name].flag_type()
            key = option.stage_key.value if option else "no"
            default = show_default(values[name])
            cells = [f"`--{name}`", f"`{default}`" if default else "", expected, help_text(values[name]), key]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    print(render(), end="")
