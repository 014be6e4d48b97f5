"""What `make mutants` checks: the modules, the tests that cover them, and changes that no test can notice."""

# Modules and folders, and the fast tests that cover them.
TESTS = {
    "tf_packnet/training/freeze_guard.py": "tests/test_freeze_guard.py",
    "tf_packnet/pruning/shares.py": "tests/test_schedules.py",
    "tf_packnet/pruning/schedules.py": "tests/test_schedules.py",
    "tf_packnet/pruning/round_schedule.py": "tests/test_round_schedule.py",
    "tf_packnet/pruning/ranking.py": "tests/test_ranking.py tests/test_schedules.py",
    "tf_packnet/pruning/selection.py": "tests/test_selection.py tests/test_ranking.py",
    "tf_packnet/pruning/ownership.py": "tests/test_ownership.py",
    "tf_packnet/callbacks/prune_round_scheduler.py": "tests/test_prune_round_scheduler.py",
    "tf_packnet/layers/masked_weight.py": "tests/test_masked_weight.py",
    "tf_packnet/layers/task_weight.py": "tests/test_masked_weight.py",
    "tf_packnet/layers": "tests/test_masked_weight.py tests/test_lifecycle.py tests/test_layers.py",
    "tf_packnet/lifecycle/begin_commit.py": "tests/test_lifecycle.py",
    "tf_packnet/lifecycle/task_checks.py": "tests/test_freeze_guard.py tests/test_lifecycle.py tests/test_witness.py",
    "tf_packnet/lifecycle/witness.py": "tests/test_witness_values.py",
    "tf_packnet/lifecycle": "tests/test_lifecycle.py tests/test_freeze_guard.py tests/test_packing.py",
}

# Changes that no test can notice, by module: the line, what it becomes, and why nothing depends on it.
EQUIVALENT: dict[str, list[tuple[str, tuple[str, ...], str]]] = {
    "tf_packnet/pruning/shares.py": [
        (
            "return [n for n in range(1, budget + 1) if budget % n == 0]",
            ("return [n for n in range(1, budget + 2) if budget % n == 0]",),
            "`budget + 1` divides no `budget`",
        ),
    ],
    "tf_packnet/callbacks/prune_round_scheduler.py": [
        (
            'warnings.warn(f"{missing_rounds(self.model)} {advice}", stacklevel=2)',
            tuple(
                f'warnings.warn(f"{{missing_rounds(self.model)}} {{advice}}", stacklevel={level})' for level in (1, 3)
            ),
            "the line of code that the warning names",
        ),
    ],
    "tf_packnet/layers/masked_weight.py": [
        (
            'store[f"{self.name}.lost"] = np.array(True)',
            ('store[f"{self.name}.lost"] = np.array(False)',),
            "loading asks only whether the name exists",
        ),
    ],
    "tf_packnet/lifecycle/witness.py": [
        ("_MOST_FUNCTIONS = 32", ("_MOST_FUNCTIONS = 33", "_MOST_FUNCTIONS = 31"), "a limit for memory"),
    ],
    "tf_packnet/pruning/round_schedule.py": [
        ("_ROUNDS_AHEAD = 100", ("_ROUNDS_AHEAD = 101", "_ROUNDS_AHEAD = 99"), "how far to look ahead is a choice"),
    ],
    "tf_packnet/pruning/ownership.py": [
        ("_CHUNK = 1 << 20", ("_CHUNK = 2 << 20", "_CHUNK = 1 << 21", "_CHUNK = 1 << 19"), "a size for speed"),
        ("flat = owner.reshape(-1)", ("flat = owner.reshape(-2)",), "NumPy computes any negative size"),
    ],
    "tf_packnet/pruning/ranking.py": [
        (
            "if density >= cap:",
            ("if density > cap:",),
            "with `density == cap`, the loop gives every layer the same density",
        ),
        (
            "over = ~capped & (scale * raw > cap)",
            ("over = ~capped & (scale * raw >= cap)",),
            "a layer at the cap gets the cap either way, and the others keep their densities",
        ),
        (
            "scale = wanted / weight if weight else 0.0",
            ("scale = wanted / weight if weight else 1.0",),
            "a scale of layers without candidates, of which nothing is kept",
        ),
    ],
}


def plain(line: str) -> str:
    """Return a line without spaces and comments, to compare it. Cosmic Ray puts a space before numbers."""
    return "".join(line.partition(" #")[0].split())
