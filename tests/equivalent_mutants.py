"""Changes of the source that no test can notice, for `make mutants`.

By module: the changed line, what it becomes, and why nothing depends on it.
"""

EQUIVALENT: dict[str, list[tuple[str, tuple[str, ...], str]]] = {
    "tf_packnet/pruning/shares.py": [
        (
            "return [n for n in range(1, budget + 1) if budget % n == 0]",
            ("return [n for n in range(1, budget + 2) if budget % n == 0]",),
            "`budget + 1` divides no `budget`",
        ),
    ],
}
