"""What `make mutants` checks: the modules, the tests that cover them, and changes that no test can notice."""

# Modules and folders, and the fast tests that cover them.
TESTS = {
    "tf_packnet/training/freeze_guard.py": "tests/test_freeze_guard.py",
    "tf_packnet/pruning/shares.py": "tests/test_schedules.py",
    "tf_packnet/pruning/schedules.py": "tests/test_schedules.py",
    "tf_packnet/pruning/round_schedule.py": "tests/test_rounds.py",
    "tf_packnet/pruning/ranking.py": "tests/test_ranking.py tests/test_schedules.py",
    "tf_packnet/pruning/selection.py": "tests/test_selection.py tests/test_ranking.py",
    "tf_packnet/pruning/ownership.py": "tests/test_ownership.py",
    "tf_packnet/callbacks/prune_round_scheduler.py": "tests/test_rounds.py tests/test_schedules.py",
    "tf_packnet/layers": "tests/test_masked_weight.py tests/test_layers.py tests/test_freeze.py",
    "tf_packnet/lifecycle": "tests/test_freeze_guard.py tests/test_packing.py tests/test_witness.py",
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
}
