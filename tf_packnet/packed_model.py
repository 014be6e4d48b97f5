"""`PackedModel`, a Keras model that learns one task after another."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.packed import model_class, safe_loading, task_inference
from tf_packnet.packed.attributes import network_config
from tf_packnet.packed.heads import heads_of_task
from tf_packnet.packed.ownership_table import ownership_table
from tf_packnet.packed.safe_loading import FORMAT, INSTEAD, checked_format
from tf_packnet.packed.task_management import TaskManagement
from tf_packnet.structure.roles import Roles, convert
from tf_packnet.system.keras_internals import graph_ends
from tf_packnet.task_names import check_task_name, default_task_name, task_number
from tf_packnet.training import optimizers
from tf_packnet.training.fit_checks import check_callbacks, check_fit_data, fit_arguments
from tf_packnet.training.trainer import PackedTrainer


@dataclass
class PackSettings:
    """Arguments of `pack`. The pack has them as attributes, unless the user's model has attributes of these names.

    Attributes:
        head: `per_task` or `shared`.
        freed_weights: Start values of the free weights: `zero`, `keep` or `reinit`.
        seed: Seeds the random values of new tasks.
        roles: How the layers were packed.
    """

    head: str
    freed_weights: str
    seed: int
    roles: Roles


@keras.saving.register_keras_serializable(package="tf_packnet")
class PackedModel(TaskManagement, PackedTrainer):
    """A functional Keras model with task-aware layers, which learns one task after another without forgetting.

    Created by `pack`. A pack has the methods of Keras models and, among others, these:

    ```python
    packed.begin_task("cats_dogs", num_classes=2)
    packed.compile(optimizer="adam", loss=...)
    packed.fit(...)                      # training
    packed.fit(..., callbacks=[...])     # retraining: prune rounds, commit at the end
    packed.select_task("cats_dogs")      # predict, evaluate and __call__ now compute as this task
    ```

    Args:
        inputs: Input tensors, as for `keras.Model`.
        outputs: Output tensors.
        head: `per_task` or `shared`.
        freed_weights: Start values of the free weights in each task: `zero`, `keep` or `reinit`.
        seed: Seeds the random values of new tasks.
        tasks: Names of the begun tasks, in order. Only configs of earlier versions contain them.
        name: Name of the model.
        roles: How the layers were packed.
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        head: str = "per_task",
        freed_weights: str = "zero",
        seed: int = 0,
        tasks: Sequence[str] = (),
        name: str | None = None,
        roles: Roles = Roles(),  # noqa: B008 (frozen)
    ):
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        # Bypasses Keras's tracking, which would wrap the lists inside.
        object.__setattr__(self, "pack_settings", PackSettings(head, freed_weights, seed, roles))
        lifecycle.records(self).names = list(tasks)
        object.__setattr__(self, "_task_check", safe_loading.TaskCheck(self))
        object.__setattr__(self, "_names_of_pack", frozenset(vars(self)))

    def __getattr__(self, name: str) -> Any:
        settings = vars(self).get("pack_settings")
        if settings is not None and name in vars(settings):
            return getattr(settings, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        settings = vars(self).get("pack_settings")
        if settings is not None and name in vars(settings) and name not in vars(self):
            setattr(settings, name, value)
        else:
            super().__setattr__(name, value)

    def begin_task(
        self,
        name: str | None = None,
        num_classes: int | Mapping[str, int] | None = None,
        activation: str | Mapping[str, str] | None = None,
    ) -> int:
        """Begin a new task: all free weights become its candidates.

        Args:
            name: Unique name of the task, at most 200 bytes in UTF-8, without control characters. Default:
                `task_<number>`; if another task has that name, `task_<number>_1` and so on.
            num_classes: Number of outputs of the task's head (units, filters), 1 for regression; with several heads, a
                mapping by the name of the head. Default: as in the previous task.
            activation: Activation of the task's head, such as `linear` or `softmax`; with several heads, a mapping by
                the name of the head. Default: the activation of the model.

        Returns:
            Number of the task (1-based).

        Raises:
            ArgumentError: If the name is invalid or taken, if the head cannot have this number of classes or this
                activation, or if no weight is free.
            RuntimeError: If the previous task is not committed.
        """
        number, names = self.committed_tasks + 1, self.task_names
        taken = names[: number - 1]
        name = default_task_name(number, taken) if name is None else check_task_name(name, taken)
        if len(names) >= number:
            raise RuntimeError(
                f"task {names[-1]!r} is still open: commit it with the TaskMaskSnapshot callback or "
                "packed.commit_task() before you begin the next one"
            )
        heads = heads_of_task(self, number, num_classes, activation)
        lifecycle.check_can_begin(self, self.pack_settings.freed_weights)
        lifecycle.remember(self)
        with lifecycle.strategy_scope(self), lifecycle.switching_heads(self):
            for head, units, head_activation in heads:
                head.use(units, head_activation)
        lifecycle.begin_task(self, self.pack_settings.freed_weights, self.pack_settings.seed)
        lifecycle.records(self).names = [*names, name]
        self._reset_optimizers()
        return number

    @checked
    def reopen_task(self, seed: int | None = None) -> None:
        """Make all free weights candidates of the open task, in addition to its current candidates.

        Args:
            seed: Seeds the random values of `freed_weights="reinit"`. Default: the seed of the pack.

        Raises:
            RuntimeError: If no task is open.
        """
        settings = self.pack_settings
        lifecycle.reopen_task(self, settings.freed_weights, settings.seed if seed is None else seed)
        self._reset_optimizers()

    def restore(self, state: Mapping[str, np.ndarray], task_names: Sequence[str]) -> None:
        """Restore a state that `lifecycle.state` returned and the names of its tasks, and reset the optimizer."""
        lifecycle.load_state(self, state)
        lifecycle.drop_compiled_functions(self)  # the number of units of a head may have changed
        lifecycle.records(self).names = list(task_names)
        self._reset_optimizers()

    def _reset_optimizers(self) -> None:
        """Reset the slots of all optimizers; replace those that were built for other variables."""
        variables = {id(variable) for variable in self.trainable_variables}
        with lifecycle.strategy_scope(self):
            for holder, name, own in optimizers.of_user(self):
                if optimizers.trains_only(own, variables):
                    optimizers.reset(own)
                else:
                    setattr(holder, name, optimizers.fresh(own))
                    lifecycle.drop_compiled_functions(self)
            optimizer = getattr(self, "optimizer", None)
            if optimizer is not None and optimizers.knows(optimizer, self.trainable_variables):
                optimizers.reset(optimizer)
            elif optimizer is not None:  # built for a head with another number of units
                self.optimizer = optimizers.fresh(optimizer)
                self.train_function = None

    def quantize(self, mode: Any = None, *args: Any, **kwargs: Any) -> None:
        """Raise ArgumentError: export a task and quantize the exported model instead."""
        raise ArgumentError("mode", "no quantization of a pack: export a task, then quantize that model", mode)

    def commit_task(self) -> int:
        """Freeze the weights of the open task; return its number. `TaskMaskSnapshot` calls this at the end of a `fit`.

        Raises:
            RuntimeError: If no task is open.
            DivergedError: If a weight of the task is NaN or infinite.
            FreezeError: If the outputs or weights of an earlier task have changed since its commit.
        """
        return lifecycle.commit_task(self)

    def select_task(self, task: int | str) -> None:
        """Make the model compute as `task`, given by name or by number (1-based).

        Raises:
            ArgumentError: If there is no such task.
        """
        lifecycle.select_task(self, self.task_number(task))

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train the open task like `keras.Model.fit`. This selects the open task.

        Args:
            *args: Positional arguments of `keras.Model.fit`. `x` may also be `tp.tasks.ResidentBatches` or
                `StreamedBatches`, which contain labels, batch size and order: `fit(batches, epochs=10)`.
            **kwargs: Keyword arguments of `keras.Model.fit`.

        Returns:
            Keras's history.

        Raises:
            ArgumentError: If the examples do not fit the model, if resident data is used with several devices, or if
                not every scheduled prune round would run.
            RuntimeError: If no task is open, so that all weights are frozen.
        """
        self._check_open_task()
        safe_loading.check_complete(self)
        arguments = fit_arguments(args, kwargs)
        check_callbacks(self, arguments)
        check_fit_data(self, arguments)
        self.select_task(self.committed_tasks + 1)
        return super().fit(**arguments)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train the open task like `keras.Model.train_on_batch`. This selects the open task.

        Raises:
            RuntimeError: If no task is open.
            DivergedError: If data, loss or gradients are NaN, infinite or out of range. The model is then unchanged.
        """
        self._check_open_task()
        safe_loading.check_complete(self)
        if self.selected_task <= self.committed_tasks:
            self.select_task(self.committed_tasks + 1)
        return super().train_on_batch(*args, **kwargs)

    def _check_open_task(self) -> None:
        if not lifecycle.has_open_task(self):
            raise RuntimeError("no task is open, so there is nothing to train: call begin_task first")

    def task_number(self, task: int | str) -> int:
        """Return the number (1-based) of the task with this name or number.

        Raises:
            ArgumentError: If there is no such task.
        """
        return task_number(self.task_names, task, last=self.committed_tasks + lifecycle.has_open_task(self))

    def predict(self, *args: Any, task: int | str | None = None, **kwargs: Any) -> Any:
        """Predict like `keras.Model.predict`.

        Args:
            *args: As for Keras.
            task: Name or number (1-based) of a task, which is selected for this call only; or `auto`, which infers the
                task of each example and returns an `AutoPrediction`, see `infer_task`. Default: the selected task.
            **kwargs: As for Keras; with `auto` also `method` and `tasks`, as for `infer_task`.
        """
        safe_loading.check_complete(self)
        if task is None:
            return super().predict(*args, **kwargs)
        return task_inference.predict_as(self, task, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate like `keras.Model.evaluate`, as the selected task."""
        safe_loading.check_complete(self)
        return super().evaluate(*args, **kwargs)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save the pack with all tasks as a `.keras` file, like `keras.Model.save`.

        Raises:
            ArgumentError: If the path has the suffix of an HDF5 file, which cannot store tasks.
        """
        safe_loading.check_save_path(filepath)
        safe_loading.check_complete(self)
        super().save(filepath, *args, **kwargs)

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Load the same or a later state of the same tasks, like `keras.Model.load_weights`. An error changes nothing.

        Raises:
            ArgumentError: If the file lacks a committed task or a prune round of this pack, or is not a weights file.
            FreezeError: If the outputs or weights of a committed task differ from those at its commit.
        """
        if skip_mismatch:
            raise ArgumentError("skip_mismatch", "False: a pack cannot be loaded partially", skip_mismatch)
        safe_loading.check_weights_path(filepath)
        with self._loading("filepath", str(filepath)):
            super().load_weights(filepath, **kwargs)

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Set the result of `get_weights` for the same tasks, like `keras.Model.set_weights`. EarlyStopping uses this.

        Raises:
            ArgumentError: If the weights lack a committed task or a prune round of this pack. The pack is then
                unchanged.
        """
        with self._loading("weights", f"{len(weights)} arrays"):
            super().set_weights(weights)

    def set_state_tree(self, state_tree: Any) -> None:
        """Set the state like `keras.Model.set_state_tree`, with the same conditions as `set_weights`."""
        with self._loading("state_tree", type(state_tree).__name__):
            super().set_state_tree(state_tree)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        """Raise ArgumentError in `tf.train.Checkpoint`, which cannot save tasks (TensorFlow's hook)."""
        if save_type == "checkpoint":
            expected = f"a model that is not a pack: tf.train.Checkpoint does not contain tasks ({INSTEAD})"
            raise ArgumentError("model", expected, self.name)
        return super()._trackable_children(save_type, **kwargs)

    @contextlib.contextmanager
    def _loading(self, argument: str, value: Any) -> Iterator[None]:
        outputs = lifecycle.head_outputs(self)
        with safe_loading.keeping_tasks(self, argument, value):
            yield
        if outputs != lifecycle.head_outputs(self):
            lifecycle.drop_compiled_functions(self)

    def owner_maps(self) -> dict[str, np.ndarray]:
        """Return the owner map of each kernel by path: `uint8`, 0 for free weights, `k` for weights of task `k`."""
        return lifecycle.owner_maps(self)

    def free_fraction(self) -> dict:
        """Return the fraction of free prunable weights: `{"overall": float, "layers": {path: float}}`."""
        return lifecycle.free_fraction(self)

    @classmethod
    def of_network(
        cls, network: keras.Model, roles: Roles, own_class: type[keras.Model] | None = None, **kwargs: Any
    ) -> "PackedModel":
        """Convert a Sequential or functional model to a pack. The model must not be used afterwards.

        Args:
            network: The model. Layers that are already task-aware stay unchanged.
            roles: How its layers are packed.
            own_class: The user's model class, if the pack must inherit from it; then call
                `model_class.take_over_model`.
            **kwargs: Arguments of `PackedModel`.

        Raises:
            ArgumentError: If a layer cannot be packed; the message names it.
        """
        network = convert(network, roles.replacement)
        inputs, outputs = (end[0] if isinstance(end, list) and len(end) == 1 else end for end in graph_ends(network))
        if own_class is not None:
            cls = model_class.packed_class(cls, own_class)  # type: ignore[arg-type]  # mypy: classes have no hash
        return cls(inputs, outputs, name=network.name, roles=roles, **kwargs)

    def network(self) -> keras.Model:
        """Return the same layers as a plain functional model."""
        return keras.Model(*graph_ends(self), name=self.name)

    def summary(self, *args: Any, print_fn: Callable[[str], None] | None = None, **kwargs: Any) -> None:
        """Print `keras.Model.summary`, and a table of the prunable weights that each task owns."""
        super().summary(*args, print_fn=print_fn, **kwargs)
        (print_fn or print)(ownership_table(self.owner_maps(), self.task_names[: self.committed_tasks]))

    def get_config(self) -> dict[str, Any]:
        config = {
            "format": FORMAT,
            "network": network_config(self),
            "head": self.pack_settings.head,
            "freed_weights": self.pack_settings.freed_weights,
            "seed": self.pack_settings.seed,
            "roles": self.pack_settings.roles.to_json(),
            "outputs": {path: head.last_outputs for path, head in lifecycle.heads(self).items()},
        }
        own = model_class.description_of(self)
        return config if own is None else {**config, "model": own}

    def get_build_config(self) -> dict[str, Any]:
        """Return the build config with the task names, so that they can be read without loading the whole file."""
        return {**(super().get_build_config() or {}), "tasks": self.task_names}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Do nothing (Keras's hook): a pack is already built."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "PackedModel":
        config = checked_format(config)
        own, outputs = config.pop("model", None), config.pop("outputs", {})
        own_class = None if own is None else model_class.user_class(own, custom_objects)
        network = keras.Model.from_config(config.pop("network"), custom_objects=custom_objects)
        packed = cls.of_network(network, Roles(**config.pop("roles", {})), own_class, **config)
        lifecycle.use_outputs(packed, outputs)
        if own is not None:
            model_class.take_over_model(packed, own)
        return packed
