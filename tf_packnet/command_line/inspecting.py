"""What `launch/inspect_pack.py` calls: open a pack, gather what it holds, show it."""

import json
import sys
from pathlib import Path

from absl import logging
from rich.console import Console

from tf_packnet.inspection.contents import inspect_pack
from tf_packnet.inspection.opened_pack import open_pack
from tf_packnet.inspection.tables import tables
from tf_packnet.runs.paths import RunPaths


def main(pack: Path, output: str = "table", html: Path | None = None) -> None:
    """Prints what a pack holds, and writes a page if one is wanted.

    Args:
        pack: The file.
        output: `table` or `json`.
        html: Where to write the page.

    Raises:
        ArgumentError: If it is no pack.
    """
    logging.set_verbosity(logging.ERROR)
    packed, file = open_pack(pack, RunPaths(pack.parent).results)
    found = inspect_pack(packed, file)
    if html is not None:
        from tf_packnet.inspection import html_page

        html_page.write(html, packed, found)
        print(f"page in {html}", file=sys.stderr)
    if output == "json":
        print(json.dumps(found.to_json(), indent=2))
    else:
        console = Console()
        console.print(tables(found, console))
