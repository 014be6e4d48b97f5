"""Configures `make mutants`: the modules, the tests that cover them, and changes that no test can detect."""

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
    "tf_packnet/layers/base.py": (
        "tests/test_masked_weight.py tests/test_lifecycle.py tests/test_layers.py "
        "tests/test_any_model.py::TestCustomLayer"
    ),
    "tf_packnet/layers/head.py": (
        "tests/test_heads.py tests/test_masked_weight.py tests/test_lifecycle.py tests/test_layers.py "
        "tests/test_head_kinds.py::test_each_task_starts_from_new_values"
    ),
    "tf_packnet/layers/masked.py": "tests/test_layers.py tests/test_products.py",
    "tf_packnet/layers/masked_weight.py": "tests/test_masked_weight.py",
    "tf_packnet/layers/products.py": "tests/test_products.py",
    "tf_packnet/layers/records.py": "tests/test_records.py",
    "tf_packnet/layers/unpruned.py": " ".join(
        f"tests/test_normalization.py::test_{name}"
        for name in (
            "a_fresh_layer_computes_and_updates_like_keras",
            "masked_batches_are_normalised_as_by_keras",
            "a_later_task_trains_with_the_first_ones_statistics",
            "selecting_an_earlier_task_in_between_changes_nothing",
            "batch_renormalization_is_refused",
        )
    ),
    "tf_packnet/layers/task_weight.py": "tests/test_masked_weight.py",
    "tf_packnet/layers/weights.py": "tests/test_masked_weight.py tests/test_layers.py",
    "tf_packnet/lifecycle/begin_commit.py": "tests/test_lifecycle.py",
    "tf_packnet/lifecycle/task_checks.py": "tests/test_lifecycle.py",
    "tf_packnet/lifecycle/witness.py": "tests/test_witness_values.py",
    "tf_packnet/lifecycle/model_state.py": "tests/test_lifecycle.py",
}

# Instead of what a line becomes: no test can notice any change of it.
ANY = ("any change",)

# Changes that no test can notice, by module: the line, what it becomes, and why nothing depends on it.
EQUIVALENT: dict[str, list[tuple[str, tuple[str, ...], str]]] = {
    "tf_packnet/pruning/shares.py": [
        (
            "return [n for n in range(1, budget + 1) if budget % n == 0]",
            ("return [n for n in range(1, budget + 2) if budget % n == 0]",),
            "`budget + 1` divides no `budget`",
        ),
    ],
    "tf_packnet/pruning/selection.py": [
        ("CHUNK = 2**20", ANY, "a size for speed"),
        ("SAMPLE = 2**16", ANY, "a size for speed"),
        (
            "for start in range(0, flat[0].size, CHUNK):",
            ("for start in range(0, flat[-1].size, CHUNK):",),
            "all arrays of a group have one size",
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
    "tf_packnet/layers/head.py": [
        ("raise NotImplementedError", ("pass",), "every kind of head overrides the method"),
        (
            "if self.units > NARROW or len(inputs.shape) != 2 or self.bias is None:",
            (
                "if self.units >= NARROW or len(inputs.shape) != 2 or self.bias is None:",
                "if not self.units > NARROW or len(inputs.shape) != 2 or self.bias is None:",
                "if self.units > NARROW or len(inputs.shape) != 1 or self.bias is None:",
            ),
            "both ways compute the same; one is faster for few units",
        ),
        (
            "return self.outputs_of(max(self._outputs_of, default=1))",
            tuple(f"return self.outputs_of(max(self._outputs_of, default={task}))" for task in (0, 2)),
            "before any task has begun, all tasks have the layer's first number of outputs",
        ),
    ],
    "tf_packnet/layers/products.py": [
        ("NARROW = 8", ANY, "a size for speed"),
        ("LARGE = 2**20", ANY, "a size for speed"),
    ],
    "tf_packnet/layers/weights.py": [
        ("values.flags.writeable = False", ("pass",), "TensorFlow's arrays on CPU cannot be changed either"),
    ],
    "tf_packnet/lifecycle/model_state.py": [
        *(
            (
                f"return task_layers(model)[0].{name}",
                (f"return task_layers(model)[-1].{name}",),
                "all task-aware layers of a model agree",
            )
            for name in ("committed_tasks", "open", "selected_task")
        ),
        (
            "return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)",
            (
                "return int(np.random.SeedSequence(parts).generate_state(2)[0] >> 1)",
                "return int(np.random.SeedSequence(parts).generate_state(1)[-1] >> 1)",
            ),
            "the first number does not depend on how many are drawn",
        ),
        ("values.flags.writeable = False", ("pass",), "TensorFlow's arrays on CPU cannot be changed either"),
    ],
    "tf_packnet/lifecycle/task_checks.py": [
        (
            "if witness.difference(outputs, again, tolerance=0.0):",
            ("if witness.difference(outputs, again, tolerance=-1.0):",),
            "no tolerance either way",
        ),
        (
            'warnings.warn(f"{message}TensorFlow adds in another order, and rounds differently", stacklevel=2)',
            tuple(
                f'warnings.warn(f"{{message}}TensorFlow adds in another order, and rounds differently", stacklevel={n})'
                for n in (1, 3)
            ),
            "the line of code that the warning names",
        ),
        (
            "ends = np.searchsorted(owner[order], np.arange(1, tasks + 2, dtype=np.uint8))",
            ("ends = np.searchsorted(owner[order], np.arange(1, tasks + 3, dtype=np.uint8))",),
            "nothing reads one more end",
        ),
    ],
    "tf_packnet/lifecycle/witness.py": [
        (
            "gap = np.abs(now[different] - before[different]).max(initial=0)",
            ("gap = np.abs(now[different] - before[different]).max(initial=-1)",),
            "arrays without a difference differ in bits alone, and no number below 0 is the largest difference",
        ),
        (
            "return int(np.clip(_MOST_INPUT_VALUES // max(1, *values), 1, EXAMPLES))",
            ("return int(np.clip(_MOST_INPUT_VALUES // max(2, *values), 1, EXAMPLES))",),
            "inputs of one value and of two are small",
        ),
        (
            "@tf.function(autograph=False)",
            ("@tf.function(autograph=True)",),
            "converted code computes the same; tracing takes longer",
        ),
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
