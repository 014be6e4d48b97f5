"""MkDocs hooks: put the files of the repository's root and a generated API reference on the documentation site.

The reference follows `tf_packnet.__all__`: one page for the names of `tf_packnet` itself, one page for each public
package. A new public name needs no change here.
"""

import importlib
import os
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# Files outside docs/, by their place on the site.
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "flags/REFERENCE.md": "flags.md",
    "LICENSE": "LICENSE",
}
LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[)#])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the API reference to the navigation."""
    for entry in config.nav:
        if entry.get("API reference") == "reference/":
            entry["API reference"] = list(reference_pages())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository's root and the pages of the API reference."""
    for name, place in FROM_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(
            File.generated(config, place, content=_relinked(text, "", place) if place.endswith(".md") else text)
        )
    for place, text in reference_pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Make links from docs/ to files of the repository's root work on the site."""
    if page.file.generated_by:
        return markdown
    source = posixpath.join("docs", page.file.src_uri)
    return _relinked(markdown, posixpath.dirname(source), page.file.src_uri)


def _relinked(markdown: str, folder: str, place: str) -> str:
    """`markdown` with its links, relative to `folder` in the repository, as the page `place` of the site needs them."""

    def replaced(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[0]))
        if target in FROM_ROOT:
            target = FROM_ROOT[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return match[0]  # MkDocs reports it
        return posixpath.relpath(target, posixpath.dirname(place) or ".")

    return LINK.sub(replaced, markdown)


def reference_pages() -> dict[str, str]:
    """Return the Markdown of the API reference, by place on the site."""
    os.environ["TF_PACKNET_LAZY"] = "1"  # the names only, without TensorFlow
    sys.path.insert(0, str(ROOT))
    package = importlib.import_module("tf_packnet")
    sys.path.pop(0)
    index = [f"- [`tp.{name}`][tf_packnet.{module}.{name}]" for name, module in package._HOME.items()]
    # The names of public packages are on the pages of these.
    own = [
        f"::: tf_packnet.{module}.{name}" for name, module in package._HOME.items() if module not in package._MODULES
    ]
    pages = {"reference/tf_packnet.md": "\n\n".join(["# tf_packnet", package.__doc__ or "", "\n".join(index), *own])}
    for name in package._MODULES:
        exported = "__all__" in (ROOT / "tf_packnet" / name / "__init__.py").read_text(encoding="utf-8")
        options = "" if exported else "\n    options:\n      show_submodules: true"
        pages[f"reference/{name}.md"] = f"# tf_packnet.{name}\n\n::: tf_packnet.{name}{options}\n"
    return pages
