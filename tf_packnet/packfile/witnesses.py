"""Converts the witness and the state of each task to arrays of a pack file, and back."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tf_packnet.layers.records import TaskRecords, Witness
from tf_packnet.packfile.coding import ITEM_BYTES
from tf_packnet.system.limits import Bound

FACTS = "facts"

Arrays = Mapping[tuple[str, str], np.ndarray]


def to_arrays(records: TaskRecords, task: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the witness of a task (1-based) as arrays of its part: kind, name, array."""
    witness = records.witnesses.get(task)
    if witness is None:
        return
    storable = all(output.dtype.name in ITEM_BYTES for output in witness.outputs)
    outputs = witness.outputs if storable else []
    facts = {**witness.facts(), "outputs": len(outputs), "volatile": sorted(records.volatile)}
    if task in records.calibration:
        facts["calibration"] = records.calibration[task]
    before = records.witnesses.get(task - 1)
    if before is not None:  # store only facts that differ from those of the task before
        earlier = {**before.facts(), "volatile": facts["volatile"]}
        same_names = list(witness.checksums) == list(before.checksums)
        facts = {name: value for name, value in facts.items() if earlier.get(name) != value}
        if same_names and "checksums" in facts:
            facts["checksums"] = list(witness.checksums.values())
    text = json.dumps(facts, separators=(",", ":"))
    yield "witness", FACTS, np.frombuffer(text.encode(), np.uint8)
    for number, output in enumerate(outputs):
        yield "witness", str(number), output


def restore(records: TaskRecords, parts: Mapping[str, Arrays], last: int) -> None:
    """Restore the state and the witnesses of tasks 1 to `last`, as far as the file has them.

    Args:
        records: The records to change.
        parts: The arrays of the file, by part.
        last: Number (1-based) of the last task to restore.

    Raises:
        KeyError: If an array is missing.
        ValueError: If the facts of a witness are invalid.
    """
    for task in range(1, last + 1):
        arrays = parts[f"task {task}"]
        own = {name: value for (kind, name), value in arrays.items() if kind == "state"}
        if own or ("witness", FACTS) in arrays:
            records.state[task] = {**records.state.get(task - 1, {}), **own}
        if ("witness", FACTS) not in arrays:  # a file of format version 1
            continue
        facts = Bound().parsed(arrays["witness", FACTS].tobytes(), f"the witness of task {task}")
        before = records.witnesses.get(task - 1)
        if before is not None:
            facts = {**before.facts(), "volatile": (), **facts}
            if isinstance(facts["checksums"], list):
                facts["checksums"] = dict(zip(before.checksums, facts["checksums"], strict=True))
        outputs = [arrays["witness", str(number)] for number in range(int(facts["outputs"]))]
        checksums = {str(name): str(value) for name, value in facts["checksums"].items()}
        records.witnesses[task] = Witness(outputs, facts["inputs"], checksums, dict(facts["environment"]))
        records.volatile |= set(map(str, facts["volatile"]))
        if "calibration" in facts:
            records.calibration[task] = _calibration(facts["calibration"])


def _calibration(saved: Mapping[str, Any]) -> dict[str, list[float]]:
    return {str(method): [float(mean), float(deviation)] for method, (mean, deviation) in saved.items()}
