"""Checks the arguments of a network's function before it is called."""

import inspect
from collections.abc import Callable
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.runs.config import Config

RETURNS = "a function of the shape of an example and the number of classes that returns a built Keras model"


def check_arguments(
    config: Config, make: Callable[..., Any], positional: int, arguments: dict[str, Any], reserved: tuple[str, ...] = ()
) -> None:
    """Raise ArgumentError unless a function takes `positional` arguments and the keyword arguments of `--model_args`.

    Args:
        config: The run.
        make: The function.
        positional: The number of positional arguments that it is called with.
        arguments: The keyword arguments.
        reserved: Keyword arguments that the user must not give.
    """
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # some functions in C have no signature
        return
    parameters = list(signature.parameters.values())
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    taken = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    free = [name for name in named if name not in taken[:positional] and name not in reserved]
    takes_any = any(each.kind == each.VAR_KEYWORD for each in parameters)
    for name in arguments:
        if name not in free and (not takes_any or name in taken[:positional]):
            expected = f"arguments of {config.model}, among {', '.join(free)}" if free else "{}: it takes no arguments"
            raise ArgumentError("model_args", f"{expected} (not {name})", config.model_args)
    try:
        signature.bind(*[None] * positional, **arguments)
    except TypeError as error:
        is_missing = "missing a required" in str(error) and len(taken) >= positional
        argument, received = ("model_args", config.model_args) if is_missing else ("model", config.model)
        expected = "arguments for all parameters without a default" if is_missing else RETURNS
        raise ArgumentError(argument, f"{expected} ({error})", received) from error
