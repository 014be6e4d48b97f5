"""Writes the report of an experiment: a summary in Markdown and JSON, and one self-contained HTML page."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from tf_packnet.inspection.owner_maps import any_characters
from tf_packnet.reporting import frames
from tf_packnet.system import files
from tf_packnet.text import markdown as escaped
from tf_packnet.text import printable_lines


@dataclass
class Report:
    """The content of a report.

    Attributes:
        title: Title.
        lead: A few sentences that explain what was measured.
        figures: Figures by file name without suffix, main figure first.
        tables: Tables by caption, main table first.
        findings: Sentences that state the results, and which runs are missing.
        command: Command line that repeats the experiment.
        settings: Config fields that all runs share.
        environments: Versions and machines on which the runs were computed.
        summary: Content of `summary.json`.
    """

    title: str
    lead: str
    figures: dict[str, Figure]
    tables: dict[str, pd.DataFrame]
    findings: list[str]
    command: str
    settings: dict[str, Any]
    environments: list[dict[str, Any]]
    summary: dict[str, Any] = field(default_factory=dict)


def write(report: Report, folder: Path) -> list[Path]:
    """Write figures (PNG and PDF), `summary.md`, `summary.json` and `report.html` into `folder`, each atomically.

    Returns:
        The written files.
    """
    pictures = {name: _png(figure) for name, figure in report.figures.items()}
    for name, figure in report.figures.items():
        _write(folder / f"{name}.png", pictures[name])
        _write(folder / f"{name}.pdf", _pdf(figure))
    tables = {caption: readable(table) for caption, table in report.tables.items()}
    _write(folder / "summary.md", printable_lines(markdown(report, tables)).encode())
    files.write_json(folder / "summary.json", {"title": report.title, **report.summary, "command": report.command})
    page = _PAGE.render(
        report=report,
        tables={caption: table.to_html(index=False, border=0, na_rep="") for caption, table in tables.items()},
        pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
    )
    _write(folder / "report.html", printable_lines(page).encode())
    figure_files = [folder / f"{name}.{kind}" for name in report.figures for kind in ("png", "pdf")]
    return [*figure_files, *(folder / name for name in ("summary.md", "summary.json", "report.html"))]


def markdown(report: Report, tables: dict[str, pd.DataFrame]) -> str:
    """Return the summary as Markdown."""
    parts = [f"# {escaped(report.title)}", escaped(report.lead)]
    for caption, table in tables.items():
        numbers = ["right" if _is_number(table[name]) else "left" for name in table.columns]
        cells = table.map(escaped).rename(columns=escaped)
        parts += [f"**{escaped(caption)}**", cells.to_markdown(index=False, disable_numparse=True, colalign=numbers)]
    parts += ["\n".join(f"- {escaped(finding)}" for finding in report.findings)] if report.findings else []
    parts += [f"![{escaped(report.title)}]({name}.png)" for name in report.figures]
    parts += [f"```\n{printable_lines(report.command)}\n```"]
    return "\n\n".join(parts) + "\n"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Format a table as text: scores with four decimals, missing values empty, no underscores in headings."""
    shown = pd.DataFrame({name: [_cell(name, value) for value in table[name]] for name in table.columns}, dtype=object)
    return shown.rename(columns=lambda name: name.replace("_", " "))


_DECIMALS = {"accuracy": 4, "error": 4, "standard_error": 4, "paper": 3, "target": 4, "gap": 4, "compression": 2}
_DECIMALS |= dict.fromkeys([*frames.MEASURES, "difference", "low", "high"], 4)


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if name in _DECIMALS:
        return f"{value:.{_DECIMALS[name]}f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(column: pd.Series) -> bool:
    return all(value == "" or value.replace(".", "", 1).lstrip("-").isdigit() for value in column)


def _png(figure: Figure) -> bytes:
    # Without date and version, so that the same results give the same bytes.
    return _image(figure, format="png", metadata={"Software": None})


def _pdf(figure: Figure) -> bytes:
    return _image(figure, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})


def _image(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with any_characters():
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)


_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; line-height: 1.25; }
  h2 { font-size: 1.1rem; margin-top: 2.2rem; }
  img { max-width: 100%; height: auto; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
  th, td { padding: 0.25rem 0.8rem 0.25rem 0; text-align: right; border-bottom: 1px solid #e4e4e4; }
  th { border-bottom: 2px solid #888; font-weight: 600; }
  th:first-child, td:first-child { text-align: left; }
  pre { background: #f5f5f5; padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.88rem; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1.2rem; font-size: 0.92rem; }
  dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
  @media print { body { max-width: none; } h2 { break-after: avoid; } img { break-inside: avoid; } }
</style>
<h1>{{ report.title }}</h1>
<p>{{ report.lead }}</p>
{% if report.findings %}
<ul>
{% for finding in report.findings %}
  <li>{{ finding }}</li>
{% endfor %}
</ul>
{% endif %}
{% for name, picture in pictures.items() %}
<p><img alt="{{ name }}: {{ report.title }}" src="data:image/png;base64,{{ picture }}"></p>
{% endfor %}
{% for caption, table in tables.items() %}
<h2>{{ caption }}</h2>
<div class="scroll">{{ table | safe }}</div>
{% endfor %}
<h2>Command</h2>
<pre>{{ report.command }}</pre>
<h2>Settings of all runs</h2>
<dl>
{% for name, value in report.settings.items() %}
  <dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
<h2>Environment</h2>
{% for environment in report.environments %}
<dl>
{% for name, value in environment.items() %}
  <dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% endfor %}
""")
