"""Changes of the source that no test can notice, for `make mutants`.

By module: the changed line, what it becomes, and why nothing depends on it.
"""

EQUIVALENT: dict[str, list[tuple[str, tuple[str, ...], str]]] = {}
