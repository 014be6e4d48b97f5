"""Handles Python files given by a user: finds the source that a function depends on, and imports the files.

Only `load` and `load_for` execute code.
"""

import ast
import contextlib
import hashlib
import importlib.util
import os
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.system.limits import open_regular

# Names by which code can find a function whose name is not in the file.
_DYNAMIC = {"eval", "exec", "getattr", "globals", "locals", "vars", "__dict__", "__import__", "import_module"}
# Names by which code can define a name that is not in the file.
_DEFINING = {"exec", "globals", "locals", "vars", "setattr", "modules", "__getattr__"}
# Maximum size of a file in bytes.
_LARGEST = 2**24

_loaded: dict[Path, tuple[bytes, types.ModuleType]] = {}


def parse(path: Path) -> ast.Module:
    """Parse a Python file.

    Raises:
        OSError: If the file cannot be read.
        SyntaxError: If the file is not Python.
        ValueError: If the file is too large, nested too deeply, or contains null bytes.
    """
    try:
        return ast.parse(_read(path), str(path))
    except (RecursionError, MemoryError) as error:  # raised by Python's parser
        raise ValueError("nested too deeply") from error


def names_in(tree: ast.Module) -> set[str] | None:
    """Return the names that a file defines at its top level; None if they are known only after execution."""
    names: set[str] = set()
    for statement in tree.body:
        for node in _without_inner_scopes(statement):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names.add((node.asname or node.name).partition(".")[0])
    return None if "*" in names or _identifiers(tree.body) & _DEFINING or "__getattr__" in names else names


def functions_in(tree: ast.Module) -> list[str]:
    """Return the names of the top-level functions of a file, without those that start with an underscore."""
    return [each.name for each in tree.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")]


def digest(path: Path, function: str) -> str:
    """Return a hash of the source that a function depends on.

    The hash covers all statements of the file except undecorated functions that `function` does not use, directly or
    through other statements; and all files of the same folder that these statements import. Comments and blank lines
    between statements do not count, nor does the path of the file. The hash does not cover installed packages, other
    files that the code reads, and imports by names that are not in the file.

    Args:
        path: The file.
        function: The name of a function in it.

    Raises:
        OSError: If a file cannot be read.
        SyntaxError: If the file is not Python.
        ValueError: As for `parse`.
    """
    used = _used_statements(parse(path), function)
    lines = _lines(path)
    sources = {b"": [line for each in used for line in lines[_first_line(each) - 1 : each.end_lineno]]}
    for module in _local_files(used, path.parent):
        sources[os.fsencode(module.relative_to(path.parent))] = _lines(module)
    hashed = hashlib.sha256()
    for name, source in sorted(sources.items()):
        for content in (name, b"\n".join(source)):
            hashed.update(len(content).to_bytes(8, "little") + content)
    return hashed.hexdigest()


def load(path: Path) -> types.ModuleType:
    """Execute a file as a module, unless this process has already done so. It may import modules from its folder.

    Raises:
        Exception: Any error that the file raises.
    """
    path = path.resolve()
    source = _read(path)
    if path in _loaded and _loaded[path][0] == source:
        return _loaded[path][1]
    module = types.ModuleType(_free_name(path, source))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        with importing_from(path.parent):
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    _loaded[path] = source, module
    return module


def check(argument: str, name: str | None) -> None:
    """Raise ArgumentError if `name` is given and is not a Python file. Executes nothing."""
    if name is not None:
        path = Path(os.path.expanduser(name))
        with reported(argument, "a Python file", name, path):
            parse(path)


def load_for(argument: str, name: str | None) -> None:
    """Execute the file `name`, if it is given; raise ArgumentError if it fails."""
    if name is not None:
        path = Path(os.path.expanduser(name))
        with reported(argument, "a Python file that can be executed", name, path):
            load(path)


@contextlib.contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Context manager in which modules are imported from `folder` first, as in a script there.

    After the block, `folder` is the last one in `sys.path`.
    """
    name = str(folder)
    sys.path.insert(0, name)
    try:
        yield
    finally:
        sys.path.remove(name)
        if name not in sys.path:  # for imports in functions that are called later
            sys.path.append(name)


@contextlib.contextmanager
def reported(argument: str, expected: str, received: str, path: Path) -> Iterator[None]:
    """Context manager that turns every error in a user's file into an ArgumentError that names the line.

    Args:
        argument: Name of the argument.
        expected: Description of the valid values.
        received: The value of the argument.
        path: The file.
    """
    try:
        yield
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise ArgumentError(argument, f"{expected} ({describe(error, path)})", received) from error


def describe(error: BaseException, path: Path) -> str:
    """Describe an error raised by a file in one line, such as `line 3: ValueError: no shape`."""
    if isinstance(error, OSError) and error.strerror and error.filename in (None, str(path)):
        return error.strerror
    if isinstance(error, SyntaxError):
        where = f"line {error.lineno}" if error.filename == str(path) else f"{error.filename}, line {error.lineno}"
        return f"{where}: SyntaxError: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in (str(path), str(path.resolve()))]
    where = f"line {lines[-1]}: " if lines else ""
    message = first_line(error)
    name = type(error).__name__
    return f"{where}{name}" if message in ("", name) else f"{where}{name}: {message}"


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        source = file.read(_LARGEST + 1)
    if len(source) > _LARGEST:
        raise ValueError(f"larger than {_LARGEST:,} bytes")
    return source


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a file, split as Python splits them."""
    return _read(path).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def _free_name(path: Path, source: bytes) -> str:
    """Return a module name for a file: its own name, unless another module has it."""
    name = path.stem
    is_free = False
    if name.isidentifier() and name not in sys.modules:
        spec = importlib.util.find_spec(name)
        is_free = spec is None or spec.origin == str(path)
    return name if is_free else f"{name}_{hashlib.sha256(str(path).encode() + source).hexdigest()[:8]}"


def _without_inner_scopes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _without_inner_scopes(child)


def _used_statements(tree: ast.Module, function: str) -> list[ast.stmt]:
    """Return the statements of a file that `function` depends on, see `digest`."""
    optional: dict[str, list[ast.stmt]] = {}
    used: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) and not statement.decorator_list:
            optional.setdefault(statement.name, []).append(statement)
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):  # a docstring
            used.append(statement)
    names = {function} | _identifiers(used)
    while wanted := list(optional) if names & _DYNAMIC else [name for name in optional if name in names]:
        added = [statement for name in wanted for statement in optional.pop(name)]
        used += added
        names |= _identifiers(added)
    return sorted(used, key=lambda statement: statement.lineno)


def _identifiers(statements: Sequence[ast.stmt]) -> set[str]:
    """Return all words in `statements` that may name a function: names, attributes and texts."""
    words: set[str] = set()
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                words.add(node.id)
            elif isinstance(node, ast.Attribute):
                words.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            elif isinstance(node, ast.alias):
                words.add(node.name)
    return words


def _first_line(statement: ast.stmt) -> int:
    """Return the number of the first line of a statement, with its decorators."""
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(each.lineno for each in decorators)])


def _local_files(statements: Sequence[ast.stmt], folder: Path) -> list[Path]:
    """Return the files in `folder` that statements import, directly or through other files there."""
    found: dict[Path, None] = {}
    waiting = list(statements)
    while waiting:
        for name in _imported(waiting.pop()):
            package = folder / name
            files = [package.with_suffix(".py")] if not package.is_dir() else sorted(package.rglob("*.py"))
            for path in files:
                if path.is_file() and path not in found:
                    found[path] = None
                    with contextlib.suppress(SyntaxError, ValueError):  # reported when it is imported
                        waiting += parse(path).body
    return list(found)


def _imported(statement: ast.stmt) -> set[str]:
    """Return the names of the top-level modules that a statement imports."""
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
