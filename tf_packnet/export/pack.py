"""Exports all tasks of a pack into one SavedModel in which they share weights, as they do in the pack."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.export import manifest, saved_model
from tf_packnet.export.dense import dense_model
from tf_packnet.export.endpoint import ClassNames, Endpoint, Function, Preprocessing
from tf_packnet.export.paths import check_path
from tf_packnet.export.shared_kernel import SharedKernel
from tf_packnet.layers import TaskLayer
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.packed import task_inference
from tf_packnet.packed.task_scores import class_axis, output_kind, scores
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning import ownership
from tf_packnet.system import files
from tf_packnet.system.keras_internals import all_layers

CLASS_NAMES, WHICH_TASK = "class_names", "which_task"


@checked
def export_pack(
    packed: PackedModel,
    path: str | os.PathLike,
    *,
    preprocessing: Preprocessing = None,
    class_names: Mapping[str, ClassNames] | None = None,
    per_task_kernels: bool = False,
) -> None:
    """Write all committed tasks into one SavedModel folder, hardly larger than that of a single task.

    After `loaded = tf.saved_model.load(path)`, `loaded.serve["cats"](x)` returns the logits of the task `cats`,
    bit-identical to those of its `dense_model`. Servers offer them under the signature `cats`. The signature
    `which_task` infers the `task` of each example, as `packed.infer_task(x)` does, and returns its `scores` with each
    task in their order; it is left out if the tasks have no class scores to compare, or if one has its name. The folder
    is written atomically.

    Args:
        packed: The pack.
        path: The folder to write. An existing SavedModel is replaced.
        preprocessing: As for `export_task`, for all tasks.
        class_names: By task name, as for `export_task`. `loaded.class_names()` returns them.
        per_task_kernels: Which kernels the process that loads the file keeps in memory. False: one dense kernel and one
            owner map per layer, from which each call computes the kernels of its task. True: dense kernels for each
            task. They take as much memory as separate models, and calls are as fast as those of a separate model. The
            weights in the file are the same.

    Raises:
        ArgumentError: If no task is committed, the path is unsuitable, or an option is invalid. Nothing is written in
            this case.
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
        manifest.write(temporary, endpoints)


def _servable(
    packed: PackedModel, endpoints: dict[str, Endpoint], per_task_kernels: bool
) -> tuple[saved_model.Servable, dict[str, Function]]:
    """Return the object to save, and its signatures by name."""
    store = _SharedWeights(packed, per_task_kernels)
    module = saved_model.Servable()
    module.serve, signatures = {}, {}
    for number, (task, endpoint) in enumerate(endpoints.items(), start=1):
        module.serve[task] = endpoint.function(store.values(endpoint.model, number))
        signatures[task] = endpoint.signature(module.serve[task])
    module.kernels, module.variables = list(store.kernels.values()), list(store.others.values())
    class_names = {
        task if len(endpoint.output_names) == 1 else f"{task}/{output}": names
        for task, endpoint in endpoints.items()
        for output, names in endpoint.class_names.items()
    }
    which_task = _which_task(packed, endpoints, module)
    if which_task is not None:
        module.which_task = signatures[WHICH_TASK] = which_task
    if class_names:
        module.class_names = signatures[CLASS_NAMES] = saved_model.constants(class_names)
    return module, signatures


def _which_task(packed: PackedModel, endpoints: dict[str, Endpoint], module: saved_model.Servable) -> Function | None:
    """Return the signature that infers the task of each example; None if the tasks cannot be compared."""
    names, first = list(endpoints), next(iter(endpoints.values()))
    try:
        kinds = [(output_kind(each.model), class_axis(each.model)) for each in endpoints.values()]
    except ArgumentError:
        return None
    if WHICH_TASK in names:
        return None
    numbers = range(1, len(names) + 1)
    method = task_inference.default_method(packed, numbers)
    mean, spread = np.transpose(task_inference.calibrations(packed, numbers, method))

    @tf.function(input_signature=first.specs, autograph=False)
    def which_task(*inputs: Any) -> dict[str, Any]:
        outputs = [keras.tree.flatten(module.serve[name](first.structured(inputs)))[0] for name in names]
        found = [scores(each, *kind, method) for each, kind in zip(outputs, kinds, strict=True)]
        table = (tf.stack(found, axis=1) - tf.constant(mean, tf.float32)) / tf.constant(spread, tf.float32)
        return {"task": tf.gather(tf.constant(names), tf.argmax(table, axis=1)), "scores": table}

    return which_task


def _checked_tasks(packed: PackedModel, class_names: Mapping[str, ClassNames]) -> list[str]:
    tasks = packed.task_names[: packed.committed_tasks]
    if not tasks:
        raise ArgumentError("packed", "a pack with at least one committed task", packed.name)
    if CLASS_NAMES in tasks:
        raise ArgumentError("packed", f"no task named {CLASS_NAMES!r}, which is the name of a signature", tasks)
    expected = f"a mapping from task names to class names; the tasks are {', '.join(map(repr, tasks))}"
    if not isinstance(class_names, Mapping):
        raise ArgumentError("class_names", expected, class_names)
    for task in class_names:
        if task not in tasks:
            raise ArgumentError("class_names", expected, task)
    return tasks


class _SharedWeights:
    """The weights of all tasks of a pack. Each weight is stored once.

    Attributes:
        kernels: The owned kernels, by `id` of the `MaskedWeight` in the pack.
        others: All other weights, by content. Tasks share equal weights, such as the biases of the first task.
    """

    def __init__(self, packed: PackedModel, per_task_kernels: bool):
        self._packed = packed
        weights = lifecycle.masked_weights(packed).values()
        self.kernels = {id(weight): _shared(weight, per_task_kernels) for weight in weights}
        self.others: dict[Any, tf.Variable] = {}

    def values(self, model: keras.Model, task: int) -> dict[int, Callable[[], tf.Tensor]]:
        """Return a function for each variable of `model`, which returns its shared value.

        Args:
            model: The dense model of a task.
            task: The number of this task (1-based).

        Returns:
            By `id` of the variable, a function that returns the tensor to use in its place.
        """
        owned = {key: kernel.of_task(task) for key, kernel in self._owned(model).items()}
        return {
            id(variable): owned.get(id(variable)) or self._shared_variable(variable).read_value
            for variable in model.variables
        }

    def _owned(self, model: keras.Model) -> dict[int, SharedKernel]:
        kernels = {}
        for source, target in zip(all_layers(self._packed), all_layers(model), strict=True):
            for weight in source.masked_weights if isinstance(source, TaskLayer) else ():
                variable = next(variable for variable in target.weights if variable.name == weight.name)
                kernels[id(variable)] = self.kernels[id(weight)]
        return kernels

    def _shared_variable(self, variable: keras.Variable) -> tf.Variable:
        value = ops.convert_to_numpy(variable)
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self.others:
            self.others[key] = tf.Variable(value, name=variable.path, trainable=False)
        return self.others[key]


def _shared(weight: MaskedWeight, per_task: bool) -> SharedKernel:
    base = ops.convert_to_numpy(weight.base) if weight.pretrained == "visible" else None
    owner = ownership.without_candidates(weight.owner_map())
    return SharedKernel(owner, ops.convert_to_numpy(weight.frozen), base, per_task)
