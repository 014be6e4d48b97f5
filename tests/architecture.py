"""Reads the imports of all source files: `python -m tests.architecture` writes `BUILD` and a diagram from them."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("tf_packnet", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").glob("*.py"))

# Distributions on PyPI, by the name that is imported.
PYPI = {
    "absl": "absl-py",
    "aiohttp": "aiohttp",
    "cosmic_ray": "cosmic-ray",
    "h5py": "h5py",
    "hypothesis": "hypothesis",
    "keras": "keras",
    "matplotlib": "matplotlib",
    "moto": "moto",
    "numpy": "numpy",
    "PIL": "pillow",
    "psutil": "psutil",
    "pyarrow": "pyarrow",
    "pytest": "pytest",
    "fsspec": "fsspec",
    "gcsfs": "gcsfs",
    "s3fs": "s3fs",
    "jinja2": "Jinja2",
    "onnx": "onnx",
    "pandas": "pandas",
    "grpc": "grpcio",
    "ray": "ray",
    "rich": "rich",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tabulate": "tabulate",
    "tensorboard": "tensorboard",
    "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_model_optimization": "tensorflow-model-optimization",
    "tf2onnx": "tf2onnx",
    "tf_keras": "tf-keras",
}


def module_of(path: Path) -> str:
    """The dotted name of the module in a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in [*SOURCES, *TESTS]}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}: relative import")
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & FILES.keys()
            found |= modules | ({node.module} if names - modules else set())
    return found


def cycle(graph: Mapping[str, set[str]]) -> list[str] | None:
    """A cycle in a graph, as the names along it, or None."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        for other in sorted(graph.get(name, ())):
            found = visit(other)
            if found:
                return found
        path.pop()
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := visit(name))), None)


def target_of(path: Path) -> str:
    """The name of the `BUILD` target of a file: its folder's, or its own for a module in `tf_packnet/` itself."""
    folder = path.parent.relative_to(ROOT)
    if folder == Path("tf_packnet") and path.name != "__init__.py":
        return f"tf_packnet_{path.stem}"
    return str(folder).replace("/", "_")


def targets() -> dict[str, tuple[list[Path], list[str]]]:
    """Files and dependencies of each target, by name."""
    files: dict[str, list[Path]] = {}
    for path in [*SOURCES, *TESTS]:
        files.setdefault(target_of(path), []).append(path)
    return {name: (paths, _dependencies(name, paths)) for name, paths in sorted(files.items())}


def _dependencies(name: str, paths: list[Path]) -> list[str]:
    found = set()
    for path in paths:
        for module in imports(path):
            top = module.split(".")[0]
            if module in FILES:
                found.add(":" + target_of(FILES[module]))
            elif top in PYPI:
                found.add("@pypi//" + PYPI[top])
            elif top not in sys.stdlib_module_names:
                raise ValueError(f"{path} imports {module}: add its distribution to PYPI")
    return sorted(found - {":" + name})


def build_file() -> str:
    """The text of `BUILD`."""
    return "\n".join(_build_lines())


def _build_lines() -> Iterator[str]:
    yield '"""Bazel targets, one per package. Generated from the imports by `make build-file`."""\n'
    yield 'load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")\n'
    for name, (paths, dependencies) in targets().items():
        kind = {"launch": "py_binary", "tests": "py_test"}.get(name, "py_library")
        yield f"{kind}("
        yield f'    name = "{name}",'
        if kind != "py_library":
            yield f'    main = "{"launch/main.py" if name == "launch" else "tests/__main__.py"}",'
        yield from _listed("srcs", [str(path.relative_to(ROOT)) for path in paths])
        if dependencies:
            yield from _listed("deps", dependencies)
        yield ")\n"


def _listed(key: str, values: list[str]) -> Iterator[str]:
    yield f"    {key} = ["
    yield from (f'        "{value}",' for value in values)
    yield "    ],"


# The page with the diagram of the packages, in its first Mermaid block.
PAGE = ROOT / "docs" / "architecture.md"


def page_with_diagram() -> str:
    """The text of `PAGE` with the diagram of the packages as they are now."""
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(r"```mermaid\n.*?```", f"```mermaid\n{diagram()}```", text, count=1, flags=re.DOTALL)


def diagram() -> str:
    """The packages as a Mermaid flow chart: an arrow for each import that no chain of other arrows implies."""
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        package = _package(module_of(path))
        needed = {_package(module) for module in imports(path) if module in FILES}
        graph.setdefault(package, set()).update(needed - {package})

    def reachable(name: str) -> set[str]:
        return set().union(*({other} | reachable(other) for other in graph[name]))

    lines = ["flowchart TD"]
    for name, needed in sorted(graph.items()):
        implied = set().union(*(reachable(other) for other in needed))
        lines += [f"    {name} --> {other}" for other in sorted(needed - implied)]
    return "\n".join(lines) + "\n"


def _package(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] != "tf_packnet" or len(parts) == 1 else parts[1]


if __name__ == "__main__":
    (ROOT / "BUILD").write_text(build_file())
    PAGE.write_text(page_with_diagram(), encoding="utf-8")
