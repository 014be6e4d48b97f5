"""Mutation testing: changes the source in small ways, and lists the changes that no test notices.

`make mutants` checks all modules of `TESTS`, which takes hours, and `make mutants MODULE=tf_packnet/pruning/shares.py`
one of them. Each change is made in a copy of the source, and only the tests that execute the changed statement run.
Changes that no test can notice are in `tests/mutation_config.py`, with the reason.

Results are kept in `out/mutants/`: a later run repeats only the survivors and what is new. `rm -r out/mutants` starts
over, which is needed after tests were removed.
"""

import argparse
import ast
import collections
import contextlib
import dataclasses
import gc
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator

import cosmic_ray.plugins
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from tests.architecture import ROOT
from tests.mutation_config import ANY, EQUIVALENT, TESTS, plain

WORK = ROOT / "out" / "mutants"
COPY = WORK / "checkout"
# Changes that can stand for a mistake, without near duplicates.
OPERATORS = re.compile(
    "core/("
    "ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_FloorDiv|Pow_Mul|BitAnd_BitOr)|"
    "ReplaceComparisonOperator_(Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is)|"
    "ReplaceUnaryOperator_Delete_.*|Replace(TrueWithFalse|FalseWithTrue|AndWithOr|OrWithAnd)|"
    "ReplaceBreakWithContinue|ReplaceContinueWithBreak|"
    "AddNot|NumberReplacer|ExceptionReplacer|ZeroIterationForLoop)"
)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of a module.

    Attributes:
        line: Number of the changed line (1-based).
        before: The changed lines, without indentation.
        after: What they become.
        code: The whole changed module.
        key: Identifies the change in all versions of the module that contain these lines.
    """

    line: int
    before: str
    after: str
    code: str
    key: str


def mutants(source: str) -> Iterator[Mutant]:
    """All changes of a module that give a valid module."""
    seen: dict[tuple[str, str], int] = collections.Counter()
    for line, code in [*_replacements(source), *_deletions(source)]:
        try:
            compile(code, "mutant", "exec")
        except SyntaxError:
            continue
        old, new = source.splitlines(), code.splitlines()
        start = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        if start is None:
            continue
        end = next(n for n, (a, b) in enumerate(zip(reversed(old), reversed(new), strict=False)) if a != b)
        before, after = (" ".join(" ".join(text[start : len(text) - end]).split()) for text in (old, new))
        if _harmless(before) == _harmless(after):
            continue
        seen[before, after] += 1
        yield Mutant(line, before, after, code, f"{before} -> {after} ({seen[before, after]})")


def _harmless(line: str) -> str:
    """Return a line without what changes nothing in a correct program: guards, and the number of an unknown size."""
    line = plain(line).replace("strict=True", "strict=False").replace("frozen=True", "frozen=False")
    return re.sub(r"reshape\(-2\b", "reshape(-1", line)


def _replacements(source: str) -> Iterator[tuple[int, str]]:
    """Changes of an operator, number, or condition, by Cosmic Ray."""
    for name in filter(OPERATORS.fullmatch, cosmic_ray.plugins.operator_names()):
        operator = cosmic_ray.plugins.get_operator(name)()
        positions = [start for node in ast_nodes(get_ast(source)) for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, _) in enumerate(positions):
            yield line, mutate_code(source, operator, occurrence)


def _deletions(source: str) -> Iterator[tuple[int, str]]:
    """Deletions of a statement that only has effects: a call, a raise, an assignment to a part of something."""
    for node in ast.walk(ast.parse(source)):
        if (
            (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
            or isinstance(node, ast.AugAssign | ast.Raise | ast.Delete)
            or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript))
        ):
            lines = source.splitlines()
            lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + "pass"]
            yield node.lineno, "\n".join(lines) + "\n"


def statement(source: str, line: int) -> range | None:
    """The lines of the smallest statement at `line`, of a compound one only its head; None outside of functions."""
    best, inside = None, False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno:
            is_function = isinstance(node, ast.FunctionDef)
            body = getattr(node, "body", None)
            head = body[0].lineno - 1 if body else node.end_lineno
            inside |= is_function and line > head
            if best is None or node.lineno >= best.start:
                best = range(node.lineno, max(head, node.lineno) + 1)
    return best if inside else None


# Under this name, `Coverage` has the lines that are executed while tests are collected.
_COLLECTION = ""


class Coverage:
    """A pytest plugin that records which lines of `file` each test executes, and its running time."""

    def __init__(self, file: str):
        self.file = file
        self.lines: dict[str, set[int]] = collections.defaultdict(set)
        self.seconds: dict[str, float] = collections.Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        return (yield from self._record(_COLLECTION, _COLLECTION))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        # Other tests of the file may use the same fixture.
        return (yield from self._record(item.nodeid, item.nodeid.partition("::")[0]))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self._record(item.nodeid, item.nodeid))

    def _record(self, test: str, key: str) -> Iterator[None]:
        executed = self.lines[key]

        def in_file(frame, event, argument):
            executed.add(frame.f_lineno)
            return in_file

        start = time.monotonic()
        sys.settrace(lambda frame, event, _: in_file if frame.f_code.co_filename == self.file else None)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            if test:
                self.seconds[test] += time.monotonic() - start

    def covering(self, lines: range | None, limit: float) -> list[str]:
        """The fastest tests that execute one of `lines`, or anything if None, for `limit` seconds in all."""
        chosen, total = [], 0.0
        wanted = set(lines or ())
        if wanted & self.lines[_COLLECTION]:
            lines = None  # also executed when the module is imported
        for name in sorted(self.seconds, key=self.seconds.get):
            executed = self.lines[name] | self.lines[name.partition("::")[0]]
            if lines is None or executed & wanted:
                total += self.seconds[name]
                if chosen and total > limit:
                    break
                chosen.append(name)
        return chosen


class Selection:
    """A pytest plugin that runs the named tests only, file by file, because files share fixtures."""

    def __init__(self, names: list[str]):
        self.names = names

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        found = {item.nodeid: item for item in items}
        files = list(dict.fromkeys(name.partition("::")[0] for name in self.names))
        items[:] = [found[name] for name in sorted(self.names, key=lambda name: files.index(name.partition("::")[0]))]


def preload() -> None:
    """Import what the tests import, apart from this project: forked processes then begin within milliseconds."""
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="2", CUDA_VISIBLE_DEVICES="-1")
    import hypothesis  # noqa: F401
    import keras  # noqa: F401

    import tf_packnet.pruning.tfmot  # noqa: F401

    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "tf_packnet")]:
        del sys.modules[name]
    gc.freeze()


def forked(timeout: float, run: Callable[[], int]) -> int:
    """Call `run` in a process of its own, in the copy; return its exit code, or -9 after the timeout."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(COPY)
        os.environ["PYTHONPATH"] = str(COPY)
        sys.path[0:0] = [str(COPY)]
        sys.dont_write_bytecode = True
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            code = run()
        finally:
            os._exit(code)
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also what a test has started and left
    return os.waitstatus_to_exitcode(status) if ended else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# `unraisableexception` collects garbage several times at the end, which takes seconds after TensorFlow was imported.
OPTIONS = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "-m", "not slow"]


def measure(module: str, tests: str) -> Coverage:
    """Run `tests` once, on a fresh copy of the source."""
    shutil.rmtree(COPY, ignore_errors=True)
    for folder in ("tf_packnet", "tests", "flags", "launch"):
        shutil.copytree(ROOT / folder, COPY / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, COPY)
    measured = Coverage(str(COPY / module))

    def run() -> int:
        code = pytest.main([*OPTIONS, *tests.split()], plugins=[measured])
        lines = {name: sorted(lines) for name, lines in measured.lines.items()}
        (COPY / "coverage.json").write_text(json.dumps([lines, measured.seconds]))
        return code

    if forked(3600.0, run):
        sys.exit(f"the tests fail without a change:\n{(COPY / 'log.txt').read_text()[-3000:]}")
    lines, seconds = json.loads((COPY / "coverage.json").read_text())
    measured.lines.update({name: set(lines) for name, lines in lines.items()})
    measured.seconds.update(seconds)
    return measured


def check(module: str, measured: Coverage, asked: argparse.Namespace) -> None:
    """Run the tests on the mutants of one module, and print the survivors."""
    file, results = COPY / module, WORK / f"{module.replace('/', '.')}.json"
    source = file.read_text(encoding="utf-8")
    killed = set(json.loads(results.read_text())) if results.exists() else set()
    found = list(mutants(source))
    if asked.sample:
        found = random.Random(asked.seed).sample(found, min(asked.sample, len(found)))
    open_ = [each for each in found if each.key not in killed and not is_equivalent(module, each)]
    print(f"== {module}: {len(found)} mutants, {len(open_)} to run", flush=True)
    start, survivors = time.monotonic(), 0
    for mutant in open_:
        chosen = measured.covering(statement(source, mutant.line), asked.seconds)
        file.write_text(mutant.code, encoding="utf-8")
        files = sorted({name.partition("::")[0] for name in chosen})
        timeout = 30 + 3 * sum(measured.seconds[name] for name in chosen)
        plugins = [Selection(chosen)]
        code = forked(timeout, lambda: pytest.main([*OPTIONS, *files], plugins=plugins)) if chosen else 0  # noqa: B023
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            killed.add(mutant.key)
            results.write_text(json.dumps(sorted(killed), indent=1))
        else:
            survivors += 1
            print(f"{module}:{mutant.line} ({len(chosen)} tests)\n- {mutant.before}\n+ {mutant.after}", flush=True)
    file.write_text(source, encoding="utf-8")
    equivalent = sum(is_equivalent(module, each) for each in found)
    seconds = time.monotonic() - start
    print(
        f"{module}: {len(found)} mutants, {len(found) - equivalent - survivors} killed, {equivalent} equivalent, "
        f"{survivors} survived; {seconds:.0f} s for {len(open_)}",
        flush=True,
    )


def is_equivalent(module: str, mutant: Mutant) -> bool:
    """Whether `EQUIVALENT` explains why no test can notice this change."""
    return any(
        plain(mutant.before) == plain(before) and (afters == ANY or plain(mutant.after) in map(plain, afters))
        for before, afters, _ in EQUIVALENT.get(module, ())
    )


def main() -> None:
    """Print the survivors of the modules that the command line names, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="modules or folders; default: " + ", ".join(TESTS))
    parser.add_argument("--tests", help="the test files to run; default: those that cover the module")
    parser.add_argument("--sample", type=int, help="check so many mutants of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the tests of one mutant may take")
    asked = parser.parse_args()
    modules = []
    for name in asked.modules or TESTS:
        inside = [module for module in TESTS if module == name or module.startswith(f"{name}/")]
        if not inside and asked.tests is None:
            parser.error(f"--tests: expected test files for {name}")
        modules += inside or [name]
    WORK.mkdir(parents=True, exist_ok=True)
    preload()
    for module in modules:
        check(module, measure(module, asked.tests or TESTS[module]), asked)


if __name__ == "__main__":
    main()
