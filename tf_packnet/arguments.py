"""Checks the arguments of public functions against their type hints, so that a wrong one is named at once.

Python does not check types. Without this, `tp.EqualShare(0.5, 2, rounds=1.5)` would be accepted, and fail or compute
something else much later. Functions still check ranges and combinations of arguments themselves.
"""

import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

from tf_packnet.errors import ArgumentError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Class = TypeVar("_Class")

_PLAIN = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    os.PathLike: "a path",
    type(None): "None",
}
# Classes that a message calls by another name.
_NAMED = {"PackedModel": "a pack, from tp.pack(model)", "Model": "a Keras model"}
_COLLECTIONS = {
    Sequence: "a list",
    Iterable: "a list",
    Mapping: "a mapping",
    Callable: "a function",
}


def checked_class(cls: type[_Class]) -> type[_Class]:
    """Decorate a public data class: check the arguments of its `__init__`, see `checked`."""
    cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]
    return cls


def checked(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Decorate a public function, or the `__init__` of a public class: check its arguments before each call.

    A whole number may be of any integer type and a number of any real type, but neither may be a `bool`. A list may be
    any sequence but text. Hints such as `Any`, type variables, protocols and quoted hints are not checked.

    Raises:
        ArgumentError: From the decorated function, if an argument does not have the type of its hint.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def check_and_call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which raises it with Python's own message
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or value is parameter.default:
                continue
            if not _is_instance(value, parameter.annotation):
                expected = _described(parameter.annotation)
                if isinstance(value, str):  # a frequent mistake
                    expected = expected.replace("a list of strings", f"a list of strings such as [{value!r}]")
                raise ArgumentError(name, expected, value)
        return function(*args, **kwargs)

    return check_and_call


def _is_instance(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_instance(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if hint in (int, float):
        return _is_number(value, numbers.Integral if hint is int else numbers.Real)
    if hint is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if hint is None:
        return value is None
    kind = origin or hint
    if kind is tuple:
        return isinstance(value, (tuple, list))
    if kind is Sequence:
        is_sequence = isinstance(value, Iterable) and hasattr(value, "__getitem__")
        return is_sequence and not isinstance(value, (str, bytes, Mapping)) and _all_are(value, parts)
    if kind is Mapping and isinstance(value, Mapping):
        return _all_are(value.keys(), parts[:1]) and _all_are(value.values(), parts[1:])
    is_checkable = isinstance(kind, type) and kind not in (Any, inspect.Parameter.empty)
    is_checkable = is_checkable and not getattr(kind, "_is_protocol", False)
    return not is_checkable or isinstance(value, kind)


def _all_are(values: Iterable[Any], hint: tuple[Any, ...]) -> bool:
    """Return whether all values have the type of the only hint; True without one, or for an array."""
    is_array = hasattr(values, "dtype")
    return not hint or is_array or all(_is_instance(value, hint[0]) for value in values)


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, kind):
        return True
    # An array; Python's arithmetic fails with tensors.
    is_scalar = getattr(value, "shape", None) == () and hasattr(value, "item")
    dtype = str(getattr(value, "dtype", ""))
    return is_scalar and ("int" in dtype or (kind is numbers.Real and "float" in dtype))


def _described(hint: Any) -> str:
    """Return what a message calls a hint."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        texts = list(dict.fromkeys(_described(part) for part in parts))
        if _PLAIN[os.PathLike] in texts:  # as which a string is meant
            texts.remove(_PLAIN[str])
        texts.sort(key=lambda text: text == _PLAIN[type(None)])
        return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
    if origin is Literal:
        return " or ".join(map(repr, parts))
    kind = types.NoneType if hint is None else origin or hint
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind is tuple:
        return "a tuple"
    if kind in (Sequence, Iterable) and parts and parts[0] in (int, float, str):
        return f"a list of {_PLAIN[parts[0]].removeprefix('a ')}s"
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind]
    name = getattr(kind, "__name__", str(kind))
    return _NAMED.get(name, f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}")
