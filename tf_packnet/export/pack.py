"""All tasks of a pack in one SavedModel, which share there what they share in the pack."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.export import saved_model
from tf_packnet.export.dense import dense_model
from tf_packnet.export.endpoint import ClassNames, Endpoint, Preprocessing
from tf_packnet.export.paths import check_path
from tf_packnet.export.shared_kernel import SharedKernel
from tf_packnet.layers import TaskLayer
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning import ownership
from tf_packnet.system import files
from tf_packnet.system.keras_internals import all_layers

CLASS_NAMES = "class_names"


def export_pack(
    packed: PackedModel,
    path: str | os.PathLike,
    *,
    preprocessing: Preprocessing = None,
    class_names: Mapping[str, ClassNames] | None = None,
    per_task_kernels: bool = False,
) -> None:
    """Writes all committed tasks as one SavedModel folder, hardly larger than that of one task, atomically.

    After `loaded = tf.saved_model.load(path)`, `loaded.serve["cats"](x)` gives the logits of the task `cats`, those of
    its `dense_model` to the bit; a server finds them as the signature `cats`.

    Args:
        packed: The pack.
        path: The folder to write; a SavedModel that is there is replaced.
        preprocessing: As for `export_task`, for all tasks.
        class_names: By name of the task, as for `export_task`. `loaded.class_names()` answers them.
        per_task_kernels: What a process that loaded the file holds in memory. False: one dense kernel and its owner map
            a layer, of which every call computes the task's kernels. True: dense kernels for each task, as much as all
            their models take; calls are as fast as those of one model. The weights in the file are the same.

    Raises:
        ArgumentError: If no task is committed, the path is no place for a folder, or an option does not fit. Nothing is
            written then.
    """
    path = Path(path)
    check_path(path, "saved_model")
    class_names = {} if class_names is None else class_names
    tasks = _checked_tasks(packed, class_names)
    endpoints = {
        task: Endpoint(dense_model(packed, number), preprocessing, class_names.get(task))
        for number, task in enumerate(tasks, start=1)
    }
    module, signatures = _servable(packed, endpoints, per_task_kernels)
    with files.replacing(path) as temporary:
        saved_model.save(module, temporary, signatures, [endpoint.model for endpoint in endpoints.values()])


def _servable(
    packed: PackedModel, endpoints: dict[str, Endpoint], per_task_kernels: bool
) -> tuple[saved_model.Servable, dict[str, Callable[..., Any]]]:
    """What will be loaded, and its signatures, from an endpoint for each task."""
    store = _Store(packed, per_task_kernels)
    module = saved_model.Servable()
    module.serve, signatures = {}, {}
    for number, (task, endpoint) in enumerate(endpoints.items(), start=1):
        module.serve[task] = endpoint.function(store.values(endpoint.model, number))
        signatures[task] = endpoint.signature(module.serve[task])
    module.kernels, module.variables = list(store.kernels.values()), list(store.others.values())
    answers = {
        task if len(endpoint.output_names) == 1 else f"{task}/{output}": names
        for task, endpoint in endpoints.items()
        for output, names in endpoint.class_names.items()
    }
    if answers:
        module.class_names = signatures[CLASS_NAMES] = saved_model.constants(answers)
    return module, signatures


def _checked_tasks(packed: PackedModel, class_names: Mapping[str, ClassNames]) -> list[str]:
    tasks = packed.task_names[: packed.committed_tasks]
    if not tasks:
        raise ArgumentError("packed", "a pack with a committed task", packed.name)
    if CLASS_NAMES in tasks:
        raise ArgumentError("packed", f"tasks of other names than {CLASS_NAMES!r}, which is a signature's", tasks)
    listed = ", ".join(map(repr, tasks))
    if not isinstance(class_names, Mapping):
        raise ArgumentError("class_names", f"names by task, among {listed}", class_names)
    for task in class_names:
        if task not in tasks:
            raise ArgumentError("class_names", f"names by task, among {listed}", task)
    return tasks


class _Store:
    """What the tasks of a pack compute with, everything once.

    Attributes:
        kernels: The kernels that are owned by tasks, by the identity of their weight in the pack.
        others: The other weights by their content: tasks share what is equal, such as the biases of the first.
    """

    def __init__(self, packed: PackedModel, per_task_kernels: bool):
        self._packed = packed
        weights = lifecycle.masked_weights(packed).values()
        self.kernels = {id(weight): _shared(weight, per_task_kernels) for weight in weights}
        self.others: dict[Any, tf.Variable] = {}

    def values(self, model: keras.Model, task: int) -> dict[int, Callable[[], tf.Tensor]]:
        """By `id` of a weight of `model`, the dense one of `task`: what gives the tensor that stands in its place."""
        owned = {key: kernel.of_task(task) for key, kernel in self._owned(model).items()}
        return {id(each): owned.get(id(each)) or self._once(each).read_value for each in model.variables}

    def _owned(self, model: keras.Model) -> dict[int, SharedKernel]:
        found = {}
        for source, target in zip(all_layers(self._packed), all_layers(model), strict=True):
            for weight in source.masked_weights if isinstance(source, TaskLayer) else ():
                variable = next(each for each in target.weights if each.name == weight.name)
                found[id(variable)] = self.kernels[id(weight)]
        return found

    def _once(self, variable: keras.Variable) -> tf.Variable:
        value = ops.convert_to_numpy(variable)
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self.others:
            self.others[key] = tf.Variable(value, name=variable.path, trainable=False)
        return self.others[key]


def _shared(weight: MaskedWeight, per_task: bool) -> SharedKernel:
    base = ops.convert_to_numpy(weight.base) if weight.pretrained == "visible" else None
    owner = ownership.without_candidates(weight.owner_map())
    return SharedKernel(owner, ops.convert_to_numpy(weight.frozen), base, per_task)
