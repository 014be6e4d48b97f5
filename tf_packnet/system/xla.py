"""Finds out what XLA can compile, and makes it draw random numbers with a fast algorithm.

TensorFlow lets XLA draw random numbers with Philox. On CPU, XLA derives the key of Philox again for each number: a mask
of 128x256 takes 2.9 ms, where uncompiled code takes 0.2 ms. With Threefry, whose key is the seed itself, it takes 0.06
ms. Threefry is JAX's default and passes the same statistical tests as Philox. Uncompiled code on CPU does not have it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import kernels
from tensorflow.python.ops import random_ops_util
from tensorflow.python.ops.parallel_for import pfor

# Precedes each random operation that leaves the algorithm to TensorFlow, as Keras's random functions do.
RANDOM_KEY = "StatelessRandomGetKeyCounter"


@contextlib.contextmanager
def threefry() -> Iterator[None]:
    """Context manager in which random operations use Threefry, if they leave the algorithm to TensorFlow.

    This applies to the current graph, including the bodies of loops and conditionals, but not to functions that it
    calls: uncompiled code may call them, too.
    """
    graph, original = tf.compat.v1.get_default_graph(), random_ops_util.get_key_counter_alg

    def get_key_counter_alg(seed: Any, alg: Any) -> Any:
        left_open = alg is None or (isinstance(alg, str) and alg == "auto_select")
        return original(seed, "threefry" if left_open and _function_graph(type(graph)) is graph else alg)

    random_ops_util.get_key_counter_alg = get_key_counter_alg
    try:
        yield
    finally:
        random_ops_util.get_key_counter_alg = original


def _function_graph(graph_type: type) -> Any:
    """Return the graph of the function that is being traced, outside of loops and conditionals."""
    graph = tf.compat.v1.get_default_graph()
    while type(graph) is not graph_type and hasattr(graph, "outer_graph"):
        graph = graph.outer_graph
    return graph


def vectorized_map(function: Callable[..., Any], elements: Any) -> Any:
    """Return the result of `tf.vectorized_map`, without the fallback to loops for some operations."""
    _register_converters()
    return tf.vectorized_map(tf.autograph.experimental.do_not_convert(function), elements)


@functools.cache
def _register_converters() -> None:
    for name, convert in (("Bitcast", _bitcast), *((name, _random) for name in _RANDOM)):
        with contextlib.suppress(KeyError):  # TensorFlow has one itself
            pfor.RegisterPFor(name)(convert)


# Random numbers are drawn for one element after another, because each element has its own key.
_RANDOM = ("StatelessRandomUniformV2", "StatelessRandomNormalV2", "StatelessTruncatedNormalV2")


def _random(operation: Any) -> Any:
    shape, algorithm = operation.unstacked_input(0), operation.unstacked_input(3)
    keys, counters = (tf.unstack(operation.stacked_input(number)) for number in (1, 2))
    draw, dtype = getattr(tf.raw_ops, operation.op_type), operation.get_attr("dtype")
    inputs = [{"key": key, "counter": counter} for key, counter in zip(keys, counters, strict=True)]
    return pfor.wrap(tf.stack([draw(shape=shape, alg=algorithm, dtype=dtype, **each) for each in inputs]), True)


def _bitcast(operation: Any) -> Any:  # in Keras's `argmax`
    return pfor.wrap(tf.bitcast(operation.stacked_input(0), operation.get_attr("type")), True)


def operation_types(graph: tf.Graph) -> set[str]:
    """Return the types of all operations in `graph`, including those in loops, conditionals and functions."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    return {node.op for node in nodes} - {"Placeholder"}  # for inputs and variables


def compiles(types: Iterable[str]) -> bool:
    """Return whether XLA can compile all these types of operations for CPUs."""
    return all(map(_compiles, types))


@functools.cache
def _compiles(operation_type: str) -> bool:
    _load_compiler()
    registered = kernels.get_registered_kernels_for_op(operation_type).kernel
    return any(kernel.device_type == "XLA_CPU_JIT" for kernel in registered)


@functools.cache
def _load_compiler() -> None:
    """Compile a trivial function, because TensorFlow registers XLA's operations only then."""
    tf.function(lambda: tf.constant(0), jit_compile=True, autograph=False)()
