"""The same bytes for the same SavedModel, whatever its process did before.

TensorFlow numbers functions and nameless tensors in the order they are made in a process, lists functions in no order,
and adds a random identifier.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import saved_model_pb2

# `__inference_serve_1234`; `PartitionedCall-1234`, where gradients are looked up; `1234` and `1234:0` for a tensor.
_NUMBERED = re.compile(r"(__(?:inference|forward|backward)_.*_|(?:Stateful)?PartitionedCall-|\^?)(\d+)(|:.*)")


def canonicalize(folder: Path) -> None:
    """Rewrites the SavedModel in `folder`: numbers from 1 on, functions by their names, and no random identifier."""
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel()
    model.ParseFromString(path.read_bytes())
    used: set[int] = set()

    def collect(text: str) -> str:
        match = _NUMBERED.fullmatch(text)
        used.update([int(match[2])] if match else [])
        return text

    def renumber(text: str) -> str:
        match = _NUMBERED.fullmatch(text)
        return f"{match[1]}{numbers[int(match[2])]}{match[3]}" if match else text

    _change_texts(model, collect)
    numbers = {number: place for place, number in enumerate(sorted(used), start=1)}
    _change_texts(model, renumber)
    for graph in model.meta_graphs:
        functions = sorted(graph.graph_def.library.function, key=lambda function: function.signature.name)
        del graph.graph_def.library.function[:]
        graph.graph_def.library.function.extend(functions)
    path.write_bytes(model.SerializeToString(deterministic=True))
    (folder / "fingerprint.pb").unlink(missing_ok=True)  # of another content, with the identifier


def _change_texts(message: Any, change: Callable[[str], str]) -> None:
    """Puts `change(text)` in the place of every text in a protocol buffer, the keys of maps included."""
    for field, value in message.ListFields():
        if field.name == "local_name":  # the place of an object in a list, not the number of a tensor
            continue
        if hasattr(value, "ListFields"):
            _change_texts(value, change)
        elif isinstance(value, str):
            setattr(message, field.name, change(value))
        elif hasattr(value, "keys"):
            _change_map(value, change)
        elif hasattr(value, "extend"):
            for index, each in enumerate(value):
                if hasattr(each, "ListFields"):
                    _change_texts(each, change)
                elif isinstance(each, str):
                    value[index] = change(each)


def _change_map(entries: Any, change: Callable[[str], str]) -> None:
    for key in sorted(entries.keys()):
        entry = entries[key]
        if key == "_user_specified_name":  # the one attribute of an operation in which the numbers are
            entry.s = change(entry.s.decode()).encode()
        elif hasattr(entry, "ListFields"):
            _change_texts(entry, change)
        elif isinstance(entry, str):
            entries[key] = change(entry)
    renamed = {key: change(key) for key in entries.keys() if isinstance(key, str) and change(key) != key}  # noqa: SIM118
    kept = {key: _copy(entries[key]) for key in renamed}
    for key in renamed:
        del entries[key]
    for key, name in renamed.items():
        if hasattr(kept[key], "ListFields"):
            entries[name].CopyFrom(kept[key])
        else:
            entries[name] = kept[key]


def _copy(entry: Any) -> Any:
    if not hasattr(entry, "ListFields"):
        return entry
    copied = type(entry)()
    copied.CopyFrom(entry)
    return copied
