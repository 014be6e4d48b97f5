"""One task of a pack as an ordinary Keras model: plain layers, dense kernels, 0 where a weight is not the task's."""

import keras
import numpy as np
from keras import ops

from tf_packnet import lifecycle
from tf_packnet.layers import TWINS, TaskHead, TaskLayer
from tf_packnet.packed_model import PackedModel
from tf_packnet.structure.graphs import copy_graph, copy_state, graph_layers
from tf_packnet.structure.layer_paths import layers_by_path
from tf_packnet.structure.roles import convert
from tf_packnet.structure.state import own_state


def dense_model(packed: PackedModel, task: int | str) -> keras.Model:
    """The network of one committed task, without anything of this library in it.

    It is a plain Keras model: what the user's model class replaces, such as `predict_step`, does not come along.

    Args:
        packed: The pack; the task it has selected stays selected.
        task: Name or number (1-based) of a committed task.

    Raises:
        ArgumentError: If there is no such task.
        RuntimeError: If the task is still being learned.
        DivergedError: If committed weights are NaN or infinite.
    """
    number = packed.task_number(task)
    if number == packed.committed_tasks + 1 and lifecycle.has_open_task(packed):
        raise RuntimeError(f"task {task!r} is still being learned: it can be exported once it is committed")
    lifecycle.check_committed_finite(packed)
    selected = packed.selected_task
    packed.select_task(number)
    try:
        sources = layers_by_path(packed)
        # Layers made of layers are made anew as their class makes them, of masked layers or of plain ones.
        model = convert(copy_graph(packed.network()), lambda layer, place: _plain(layer, sources[place]))
        for source, target in zip(graph_layers(packed), graph_layers(model), strict=True):
            _copy_seen_values(source, target)
    finally:
        packed.select_task(selected)
    return model


def _plain(layer: keras.Layer, source: keras.Layer) -> keras.Layer:
    plain = {TaskHead: keras.layers.Dense, **{masked: plain for plain, masked in TWINS.items()}}
    if type(source) not in plain:
        return layer
    config = source.get_config()
    for ours in ("bias_policy", "pretrained"):
        config.pop(ours, None)
    if isinstance(source, TaskHead):
        config["units"] = source.units  # of the selected task
        config["activation"] = keras.activations.serialize(source.activation)
    return plain[type(source)].from_config(config)


def _copy_seen_values(source: keras.Layer, target: keras.Layer) -> None:
    if isinstance(source, TaskLayer):
        for name in source.masked + source.per_task:
            value = getattr(source, name)
            if value is not None:
                _variable(target, name).assign(np.asarray(ops.convert_to_numpy(value)))
        there = dict(own_state(target))
        for name, variable in own_state(source):
            if name in there:
                there[name].assign(variable)
        return
    copy_state(source, target)


def _variable(layer: keras.Layer, name: str) -> keras.Variable:
    return next(v for v in layer.weights if v.name == name)
