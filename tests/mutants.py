"""Mutation testing: changes the source in small ways, and lists the changes that no test notices.

`make mutants` checks all modules of `TESTS`, which takes hours, and `make mutants MODULE=tf_packnet/pruning/shares.py`
one of them. The changes are made in a copy, in `out/mutants/`. An interrupted run resumes with the same command;
`rm -r out/mutants` starts over after a change of the source.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from tests.architecture import ROOT

TOOLS = Path(sys.executable).parent
# Modules and folders, and the fast tests that cover them.
TESTS = {
    "tf_packnet/pruning/shares.py": "tests/test_schedules.py",
    "tf_packnet/pruning/schedules.py": "tests/test_schedules.py",
    "tf_packnet/pruning/ranking.py": "tests/test_ranking.py",
    "tf_packnet/pruning/selection.py": "tests/test_selection.py tests/test_ranking.py",
    "tf_packnet/pruning/ownership.py": "tests/test_ownership.py",
    "tf_packnet/layers": "tests/test_layers.py tests/test_freeze.py",
    "tf_packnet/lifecycle": "tests/test_layers.py tests/test_packing.py tests/test_witness.py",
    "tf_packnet/callbacks/prune_round_scheduler.py": "tests/test_rounds.py",
    "tf_packnet/training/freeze_guard.py": "tests/test_freeze_guard.py",
}
# Changes that hardly ever stand for a mistake: arithmetic turned into bit operations, comparisons into identity.
SKIPPED = (
    r"core/Replace(BinaryOperator_.*_(BitOr|BitAnd|BitXor|LShift|RShift|FloorDiv|Mod)|ComparisonOperator_.*_Is(Not)?)$"
)
CONFIG = """\
[cosmic-ray]
module-path = {module!r}
timeout = 300.0
excluded-modules = []
test-command = {command!r}

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = [{skipped!r}]
"""


def survivors(module: str, tests: str) -> str:
    """Mutate `module`, run `tests` on every mutant, and return the diffs of those that pass."""
    copy = ROOT / "out" / "mutants" / module.replace("/", ".")
    session = copy / "session.sqlite"
    is_new = not session.exists()
    if is_new:
        shutil.rmtree(copy, ignore_errors=True)
    # Resuming needs this too: a mutant may have been left behind.
    for folder in ("tf_packnet", "tests", "flags", "launch"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    if is_new:
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / file, copy)
        command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {tests}"
        config = CONFIG.format(module=module, command=command, skipped=SKIPPED)
        (copy / "mutants.toml").write_text(config, encoding="utf-8")
        subprocess.run([TOOLS / "cosmic-ray", "baseline", "mutants.toml"], cwd=copy, check=True)
        subprocess.run([TOOLS / "cosmic-ray", "init", "mutants.toml", "session.sqlite"], cwd=copy, check=True)
        subprocess.run([TOOLS / "cr-filter-operators", "session.sqlite", "mutants.toml"], cwd=copy, check=True)
    subprocess.run([TOOLS / "cosmic-ray", "exec", "mutants.toml", "session.sqlite"], cwd=copy, check=True)
    report = [TOOLS / "cr-report", "session.sqlite", "--surviving-only", "--show-diff"]
    return subprocess.run(report, cwd=copy, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Print the survivors of the modules that the command line names, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="modules or folders; default: " + ", ".join(TESTS))
    parser.add_argument("--tests", help="the tests to run; default: those that cover the module")
    asked = parser.parse_args()
    for module in asked.modules or TESTS:
        tests = asked.tests or TESTS.get(module)
        if tests is None:
            parser.error(f"--tests: expected test files for {module}")
        print(f"== {module}: {tests}", flush=True)
        print(survivors(module, tests))


if __name__ == "__main__":
    main()
