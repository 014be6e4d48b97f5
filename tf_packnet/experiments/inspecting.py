"""What `launch/inspect.py` calls: open a pack, gather what it holds, show it."""

import json
import sys
from pathlib import Path

from absl import logging
from rich.console import Console

from tf_packnet.experiments.paths import RunPaths
from tf_packnet.reporting.inspection import inspect_pack
from tf_packnet.reporting.inspection_tables import tables
from tf_packnet.reporting.opened_pack import open_pack


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
        from tf_packnet.reporting import pack_page

        pack_page.write(html, packed, found)
        print(f"page in {html}", file=sys.stderr)
    if output == "json":
        print(json.dumps(found.to_json(), indent=2))
    else:
        console = Console()
        console.print(tables(found, console))
