"""A loaded version of a pack, ready to compute: `Servable`."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_packnet.errors import ArgumentError, PackFileError
from tf_packnet.export import manifest
from tf_packnet.export.endpoint import SIGNATURE
from tf_packnet.export.pack import CLASS_NAMES, WHICH_TASK, export_pack
from tf_packnet.packfile import read_contents
from tf_packnet.packfile.opening import PACKNET, kind_of, open_pack
from tf_packnet.prediction.examples import InputSpec
from tf_packnet.serving.errors import invalid
from tf_packnet.serving.settings import Settings
from tf_packnet.serving.sources import SAVED_MODEL, Source
from tf_packnet.system.images import RESIZES

# The task name that asks the pack to infer the task, and what gets one inferred task: an example or the whole batch.
AUTO = "auto"
EXAMPLE, BATCH = PER = ("example", "batch")
# Signatures that are not tasks. TensorFlow adds the last one to models of Keras 2.
_OTHER_SIGNATURES = (CLASS_NAMES, WHICH_TASK, "__saved_model_init_op")
# Operations that run Python code, or read or write files other than the weights.
_UNSAFE = {"PyFunc", "EagerPyFunc", "PyFuncStateless", "ReadFile", "WriteFile", "MatchingFiles", "WholeFileReaderV2"}


class Tensor(NamedTuple):
    """An input or an output of a task.

    Attributes:
        shape: Shape with the batch axis; None for axes of any length.
        dtype: NumPy dtype; `object` for text.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype


class ServedTask:
    """A task of a loaded version.

    Attributes:
        name: Its name.
        inputs: Its inputs by name.
        images: For each input, by name, how images are converted to it.
        outputs: Its outputs by name.
        class_names: Names of the classes of its only output; empty if unknown.
        class_axis: The axis of the classes in this output.
        probabilities: Whether this output consists of probabilities, not logits; None if unknown.
    """

    def __init__(
        self,
        name: str,
        function: Any,
        class_names: tuple[str, ...],
        facts: Mapping[str, Any],
        images: Callable[[float | None, Tensor], InputSpec],
    ):
        self.name = name
        self._function = function
        specs, scales = function.structured_input_signature[1], facts.get("scales", {})
        self.inputs = {key: _tensor(spec) for key, spec in specs.items()}
        self.images = {key: images(scales.get(key), each) for key, each in self.inputs.items()}
        self.outputs = {key: _tensor(spec) for key, spec in function.structured_outputs.items()}
        self.class_names = class_names
        self.class_axis: int = facts.get("class_axis", -1)
        self.probabilities: bool | None = facts.get("probabilities")

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs of a batch."""
        tensors = {key: tf.constant(value, self.inputs[key].dtype) for key, value in inputs.items()}
        return {key: output.numpy() for key, output in self._function(**tensors).items()}

    def warm_up(self) -> None:
        """Compute one example of zeros, unless an input has axes of unknown length."""
        shapes = {key: [size or 0 for size in each.shape[1:]] for key, each in self.inputs.items()}
        if all(0 not in shape for shape in shapes.values()):
            self({key: np.zeros([1, *shape], self.inputs[key].dtype) for key, shape in shapes.items()})


class Servable:
    """A loaded version of a pack.

    Attributes:
        source: Where it was loaded from.
        tasks: Its tasks, in the order of the pack.
        which_task: The signature that infers tasks; its output `scores` has the tasks in this order. None without one.
    """

    def __init__(self, source: Source, tasks: list[ServedTask], loaded: Any, which_task: ServedTask | None = None):
        self.source = source
        self.tasks = tasks
        self.which_task = which_task
        self._loaded = loaded  # owns the variables

    def is_auto(self, asked: Any) -> bool:
        """Return whether the task of each example is to be inferred: for `auto`, unless it is the name of a task.

        Raises:
            RequestError: If the task is to be inferred, and the version cannot infer tasks.
        """
        if asked != AUTO or any(task.name == AUTO for task in self.tasks):
            return False
        if self.which_task is None:
            names = ", ".join(repr(task.name) for task in self.tasks)
            reason = f"the version has no signature {WHICH_TASK!r}, or prepares the images of its tasks differently"
            raise invalid("task", f"one of {names}, or its number; {reason}", asked)
        return True

    def inferred(self, scores: np.ndarray, per: str) -> list[int]:
        """Return the index in `tasks` of the most likely task for each example; with `per="batch"`, the same for all.

        Args:
            scores: Output of `which_task`, `(examples, tasks)`.
            per: `example`, or `batch` if all examples belong to one task.
        """
        if per == BATCH:
            return [int(scores.mean(axis=0, dtype=np.float64).argmax())] * len(scores)
        return [int(index) for index in scores.argmax(axis=1)]

    def task(self, asked: Any) -> ServedTask:
        """Find a task by its name or number (1-based); None for the only one.

        Raises:
            RequestError: If there is no such task.
        """
        names = [task.name for task in self.tasks]
        expected = f"one of {', '.join(map(repr, names))}, or its number"
        if asked is None or asked == SIGNATURE and asked not in names:  # TensorFlow Serving clients send its default
            if len(names) > 1 and SIGNATURE not in names:
                raise invalid("task", expected)
            return self.tasks[names.index(SIGNATURE) if SIGNATURE in names else 0]
        if asked in names:
            return self.tasks[names.index(asked)]
        if asked == WHICH_TASK and self.which_task is not None:  # a TensorFlow Serving client may call it directly
            return self.which_task
        number = int(asked) if isinstance(asked, str) and asked.isascii() and asked.isdecimal() else asked
        if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= len(names):
            return self.tasks[number - 1]
        raise invalid("task", expected, asked)


def load(source: Source, settings: Settings) -> Servable:
    """Load a version, and compute one example with each of its tasks.

    Raises:
        ArgumentError: If it is not a pack or a SavedModel, or has no task.
        PackFileError: If one of its files is damaged or missing.
        Exception: TensorFlow raises errors of many types for a damaged SavedModel.
    """
    if source.path.is_dir():
        servable = _load_saved_model(source, source.path, {}, settings)
    else:
        servable = _load_pack_file(source, settings)
    for task in servable.tasks:
        task.warm_up()
    if servable.which_task is not None:
        servable.which_task.warm_up()
    return servable


def _load_pack_file(source: Source, settings: Settings) -> Servable:
    packed = open_pack(source.path, settings.max_bytes)
    facts: dict[str, dict[str, Any]] = {}
    if kind_of(source.path) == PACKNET:
        contents = read_contents(source.path, max_bytes=settings.max_bytes)
        keys = ("class_names", "scale", "white", "resize")
        facts = {name: {key: contents.recorded(key, name) for key in keys} for name in contents.task_names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pack")
        export_pack(packed, path, per_task_kernels=settings.per_task_kernels)
        return _load_saved_model(source, path, facts, settings)


def _load_saved_model(
    source: Source, folder: Path, recorded: Mapping[str, Mapping[str, Any]], settings: Settings
) -> Servable:
    facts = manifest.read(folder)
    _check_program(folder)
    loaded = tf.saved_model.load(str(folder))
    signatures = dict(loaded.signatures)
    names = _class_names(signatures)
    order = [name for name in facts if name in signatures] or list(signatures)
    tasks = []
    for task in order:
        if task in _OTHER_SIGNATURES and task not in facts:
            continue
        known = recorded.get(task, {})
        function = signatures[task]
        outputs = function.structured_outputs
        classes = known.get("class_names") or names.get(task) or (names.get(*outputs) if len(outputs) == 1 else None)
        tasks.append(
            ServedTask(task, function, tuple(classes or ()), facts.get(task, {}), _image_specs(known, settings))
        )
    if not tasks:
        raise ArgumentError("pack", "a SavedModel with a signature", str(source.path))
    which_task = None
    image_facts = [[recorded.get(task.name, {}).get(key) for key in ("scale", "white", "resize")] for task in tasks]
    if WHICH_TASK in signatures and facts and WHICH_TASK not in facts and all(e == image_facts[0] for e in image_facts):
        first = tasks[0].name
        specs = _image_specs(recorded.get(first, {}), settings)
        which_task = ServedTask(WHICH_TASK, signatures[WHICH_TASK], (), facts.get(first, {}), specs)
    return Servable(source, tasks, loaded, which_task)


def _image_specs(known: Mapping[str, Any], settings: Settings) -> Callable[[float | None, Tensor], InputSpec]:
    """Return a function from the built-in scale and the tensor of an input to how images are converted to it."""
    resize = settings.resize or known.get("resize") or RESIZES[0]

    def image_spec(built_in: float | None, tensor: Tensor) -> InputSpec:
        shape, dtype = tensor.shape[1:], tensor.dtype.name
        if built_in is None:
            scale = known.get("scale") if settings.scale is None else settings.scale
            return InputSpec(shape, dtype, scale, known.get("white") or 255.0, resize)
        white = min(255.0, round(1 / built_in)) if built_in < 1 else 255.0
        return InputSpec(shape, dtype, 1.0, white, resize)

    return image_spec


def _class_names(signatures: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    if CLASS_NAMES not in signatures:
        return {}
    return {
        key: tuple(name.decode(errors="replace") for name in names.numpy())
        for key, names in signatures[CLASS_NAMES]().items()
    }


def _check_program(folder: Path) -> None:
    """Refuse a SavedModel that is incomplete, or that would run Python code, or read or write files, when called."""
    try:
        model = saved_model_pb2.SavedModel.FromString((folder / SAVED_MODEL).read_bytes())
    except FileNotFoundError as error:
        raise PackFileError(folder, SAVED_MODEL, "is missing") from error
    except Exception as error:  # of the library of protocol buffers
        raise PackFileError(folder, SAVED_MODEL, "is damaged") from error
    for graph in model.meta_graphs:
        if graph.meta_info_def.meta_graph_version == manifest.MARK and not (folder / manifest.PATH).exists():
            raise PackFileError(folder, manifest.PATH, "is missing")
        nodes = [*graph.graph_def.node, *(node for each in graph.graph_def.library.function for node in each.node_def)]
        unsafe = sorted({node.op for node in nodes} & _UNSAFE)
        if unsafe:
            raise PackFileError(folder, SAVED_MODEL, f"has the operation {unsafe[0]}, which is not served")


def _tensor(spec: tf.TensorSpec) -> Tensor:
    if not spec.shape.rank:
        raise ArgumentError("pack", "inputs and outputs with a batch axis", spec.name)
    return Tensor(tuple(spec.shape), np.dtype(spec.dtype.as_numpy_dtype))
