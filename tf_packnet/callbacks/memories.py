"""What Keras callbacks remember in the middle of a `fit`: counters, best values, best weights, prune rounds."""

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

Memories = dict[str, dict[str, Any]]


def fresh(callbacks: Sequence[keras.callbacks.Callback]) -> Memories:
    """What each has when a `fit` begins, a copy."""
    return {name: copy.deepcopy(_memory(callback)) for name, callback in by_name(callbacks).items()}


def changed(
    callbacks: Sequence[keras.callbacks.Callback], fresh: Memories
) -> tuple[dict[str, Memories], dict[str, np.ndarray]]:
    """What they remember that they had not when the `fit` began: plain values, and lists of weights.

    Returns:
        Values for JSON, and arrays by name: what `remind` takes.
    """
    plain, weights, arrays = {}, {}, {}
    for name, callback in by_name(callbacks).items():
        values = {key: value for key, value in _memory(callback).items() if fresh[name].get(key, fresh) != value}
        lists = {key: value for key, value in _public(callback).items() if _is_weights(value)}
        if values or lists:
            plain[name] = values
            weights[name] = {key: len(value) for key, value in lists.items()}
        for key, value in lists.items():
            arrays.update({f"{name}/{key}/{i}": np.array(array) for i, array in enumerate(value)})
    return {"callbacks": plain, "weights": weights}, arrays


def remind(
    callbacks: Sequence[keras.callbacks.Callback], values: Mapping[str, Memories], arrays: dict[str, np.ndarray]
) -> None:
    """Gives them back what `changed` found, and takes their arrays out of `arrays`."""
    beside = by_name(callbacks)
    for name, memory in values["callbacks"].items():
        vars(beside[name]).update(memory)
    for name, lists in values["weights"].items():
        for attribute, count in lists.items():
            setattr(beside[name], attribute, [arrays.pop(f"{name}/{attribute}/{i}") for i in range(count)])


def by_name(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, keras.callbacks.Callback]:
    """Each by its class, numbered where there are several: the same in every process that does this `fit`."""
    found: dict[str, keras.callbacks.Callback] = {}
    for callback in callbacks:
        name = type(callback).__name__
        same = sum(each.partition(" ")[0] == name for each in found)
        found[name if same == 0 else f"{name} {same + 1}"] = callback
    return found


def _memory(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """What a callback remembers in plain values: counters, best values, prune rounds. Its private parts it can make."""
    return {name: value for name, value in _public(callback).items() if _is_plain(value)}


def _public(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """The public attributes of a callback, without its settings: these it was given."""
    settings = _settings(type(callback))
    return {
        name: value
        for name, value in vars(callback).items()
        if not name.startswith("_") and name != "params" and name not in settings
    }


@functools.cache  # looked up after every epoch
def _settings(kind: type[keras.callbacks.Callback]) -> frozenset[str]:
    return frozenset(inspect.signature(kind).parameters)


def _is_plain(value: Any) -> bool:
    """Whether JSON gives `value` back as it is."""
    if isinstance(value, (bool, int, float, str, type(None), np.number, np.bool_)):
        return True
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(isinstance(key, str) and _is_plain(item) for key, item in value.items())


def _is_weights(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, np.ndarray) for item in value)


def plain_number(value: np.generic) -> Any:
    return value.item()
