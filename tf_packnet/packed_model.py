"""A Keras model that learns one task after another."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.packed import model_class, safe_loading
from tf_packnet.packed.heads import heads_of_task
from tf_packnet.packed.ownership_table import ownership_table
from tf_packnet.packed.safe_loading import FORMAT, INSTEAD, checked_format
from tf_packnet.structure.graphs import ends
from tf_packnet.structure.roles import Roles, convert
from tf_packnet.task_names import check_task_name, default_task_name, task_number
from tf_packnet.training import optimizers
from tf_packnet.training.fit_checks import check_callbacks, check_fit_data, fit_arguments
from tf_packnet.training.trainer import PackedTrainer


@dataclass
class PackSettings:
    """What `pack` was asked for. A pack has these as attributes too, unless its user's model has others so called.

    Attributes:
        head: `per_task` or `shared`.
        freed_weights: `zero`, `keep` or `reinit`.
        seed: Seeds every draw that a new task needs.
        roles: How the layers were packed.
    """

    head: str
    freed_weights: str
    seed: int
    roles: Roles


@keras.saving.register_keras_serializable(package="tf_packnet")
class PackedModel(PackedTrainer):
    """A functional Keras model with masked layers, which learns one task after another and forgets none.

    Made by `pack`. It is a Keras model in every respect; what it adds is the life of its tasks:

    ```python
    packed.begin_task("cats_dogs", num_classes=2)
    packed.compile(optimizer="adam", loss=...)
    packed.fit(...)                      # the day
    packed.fit(..., callbacks=[...])     # the night: prune, retrain, commit
    packed.select_task("cats_dogs")      # predict, evaluate and __call__ now compute as this task
    ```

    Args:
        inputs: Input tensors, as for `keras.Model`.
        outputs: Output tensors.
        head: `per_task` or `shared`.
        freed_weights: How freed weights start the next task: `zero`, `keep` or `reinit`.
        seed: Seeds every draw that a new task needs.
        tasks: Names of the tasks that were begun, in order: files of earlier versions have them in the config.
        name: Name of the model.
        roles: How the layers of layers were packed, such as those of MultiHeadAttention.
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
        # Past Keras's tracking, which would wrap its lists.
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

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order they were learned; the last may still be open."""
        # A fresh pack can be trained and committed without `begin_task`: that task goes by its number.
        names = list(lifecycle.records(self).names)
        for number in range(len(names) + 1, self.committed_tasks + 1):
            names.append(default_task_name(number, names))
        return names

    @property
    def committed_tasks(self) -> int:
        """How many tasks are committed."""
        return lifecycle.committed_tasks(self)

    @property
    def selected_task(self) -> int:
        """Number (1-based) of the task that the model computes as."""
        return lifecycle.selected_task(self)

    def begin_task(
        self,
        name: str | None = None,
        num_classes: int | Mapping[str, int] | None = None,
        activation: str | Mapping[str, str] | None = None,
    ) -> int:
        """Opens every free weight for a new task; returns its number (1-based).

        Args:
            name: How the task is called from now on: a text of at most 200 bytes in UTF-8, without control characters,
                that no other task has. Default `task_<number>`; if a task has that name, `task_<number>_1` and so on.
            num_classes: Outputs of the task's head, 1 for a regression; with several heads, by head. Default as many
                as the task before had.
            activation: Activation of the task's head, such as `linear` or `softmax`; with several heads, by head.
                Default the model's own.

        Raises:
            ArgumentError: If the name is taken or cannot be one, the head cannot have so many classes or this
                activation, or no weight is free.
            RuntimeError: If the task before was not committed.
        """
        number = self.committed_tasks + 1
        names = self.task_names
        taken = names[: number - 1]
        name = default_task_name(number, taken) if name is None else check_task_name(name, taken)
        if len(names) >= number:
            raise RuntimeError(
                f"task {names[-1]!r} is still open: commit it with the TaskMaskSnapshot callback or "
                "packed.commit_task() before the next one begins"
            )
        wanted = heads_of_task(self, number, num_classes, activation)
        lifecycle.check_room(self, self.pack_settings.freed_weights)
        with lifecycle.strategy_scope(self):
            reshaped = [head.use(units, shape) for head, units, shape in wanted]
        if any(reshaped):
            lifecycle.drop_compiled_functions(self)
        lifecycle.begin_task(self, self.pack_settings.freed_weights, self.pack_settings.seed)
        lifecycle.records(self).names = [*names, name]
        self._start_optimizer_afresh()
        return number

    def reopen_task(self, seed: int | None = None) -> None:
        """Opens every free weight for the task that is open already, which goes on with all it kept.

        For a network whose one task grows, such as full rehearsal: nothing is committed in between.

        Args:
            seed: Seeds the fresh draws of `freed_weights="reinit"`; default the model's own.

        Raises:
            RuntimeError: If no task is open.
        """
        settings = self.pack_settings
        lifecycle.reopen_task(self, settings.freed_weights, settings.seed if seed is None else seed)
        self._start_optimizer_afresh()

    def restore(self, state: dict[str, np.ndarray], task_names: Sequence[str]) -> None:
        """Brings back what `lifecycle.state` gave, with the names of the tasks; the optimizer starts afresh."""
        lifecycle.load_state(self, state)
        lifecycle.drop_compiled_functions(self)  # a head may have another number of units
        lifecycle.records(self).names = list(task_names)
        self._start_optimizer_afresh()

    def _start_optimizer_afresh(self) -> None:
        variables = {id(variable) for variable in self.trainable_variables}
        with lifecycle.strategy_scope(self):
            for holder, name, optimizer in optimizers.of_user(self):
                if optimizers.trains_only(optimizer, variables):
                    optimizers.reset(optimizer)
                else:
                    setattr(holder, name, optimizers.fresh(optimizer))
                    lifecycle.drop_compiled_functions(self)
            if getattr(self, "optimizer", None) is None:
                return
            if optimizers.knows(self.optimizer, self.trainable_variables):
                optimizers.reset(self.optimizer)
            else:  # it was built for a head of another size
                self.optimizer = optimizers.fresh(self.optimizer)
                lifecycle.drop_compiled_functions(self)

    def quantize(self, mode: Any = None, *args: Any, **kwargs: Any) -> None:
        """Not for a pack: export a task, and quantize the plain model.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError("mode", "no quantization of a pack: export a task first, then quantize that model", mode)

    def commit_task(self) -> int:
        """Freezes the open task for ever; returns its number. `TaskMaskSnapshot` does this at the end of a `fit`."""
        return lifecycle.commit_task(self)

    def select_task(self, task: int | str) -> None:
        """Makes the model compute as `task`, given by name or by number (1-based).

        Raises:
            ArgumentError: If there is no such task.
        """
        lifecycle.select_task(self, self.task_number(task))

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`, on the open task, whichever was selected.

        Args:
            *args: As for Keras, by position. `x` may also be `tp.tasks.ResidentBatches` or `StreamedBatches`, which
                bring their labels, batch size and order: `fit(batches, epochs=10)`.
            **kwargs: As for Keras, by name.

        Raises:
            ArgumentError: If the examples do not fit the model, shall lie on one of several devices, or not every
                scheduled prune round would run.
            RuntimeError: If no task is open: all that there is is frozen.
        """
        if not lifecycle.has_open_task(self):
            raise RuntimeError("no task is open, so there is nothing to train: call begin_task first")
        safe_loading.check_whole(self)
        arguments = fit_arguments(args, kwargs)
        check_callbacks(self, arguments)
        check_fit_data(self, arguments)
        self.select_task(self.committed_tasks + 1)
        return super().fit(**arguments)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`, on the open task, whichever was selected.

        Raises:
            RuntimeError: If no task is open.
            DivergedError: If the data, the loss or the gradients are not finite or out of range; nothing has changed.
        """
        if not lifecycle.has_open_task(self):
            raise RuntimeError("no task is open, so there is nothing to train: call begin_task first")
        safe_loading.check_whole(self)
        if self.selected_task <= self.committed_tasks:
            self.select_task(self.committed_tasks + 1)
        return super().train_on_batch(*args, **kwargs)

    def task_number(self, task: int | str) -> int:
        """Return the number (1-based) of the task with this name or number.

        Raises:
            ArgumentError: If there is no such task.
        """
        return task_number(self.task_names, task, last=self.committed_tasks + lifecycle.has_open_task(self))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`, as the selected task."""
        safe_loading.check_whole(self)
        return super().predict(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, as the selected task."""
        safe_loading.check_whole(self)
        return super().evaluate(*args, **kwargs)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`, into a `.keras` file that holds all tasks.

        Raises:
            ArgumentError: If the path is that of an HDF5 file, which cannot hold tasks.
        """
        safe_loading.check_save_path(filepath)
        safe_loading.check_whole(self)
        super().save(filepath, *args, **kwargs)

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`, of a later or equal state of the same tasks; otherwise nothing changes.

        Raises:
            ArgumentError: If the file lacks a committed task or a prune round of this pack, or is no such file.
            FreezeError: If a committed task in it does not compute what it did when it was committed.
        """
        if skip_mismatch:
            raise ArgumentError("skip_mismatch", "False: a pack is loaded completely, or not at all", skip_mismatch)
        safe_loading.check_weights_path(filepath)
        with self._loading("filepath", str(filepath)):
            super().load_weights(filepath, **kwargs)

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """As `keras.Model.set_weights`, with what `get_weights` gave for the same tasks, such as by EarlyStopping.

        Raises:
            ArgumentError: If they lack a committed task or a prune round of this pack. Nothing changes then.
        """
        with self._loading("weights", f"{len(weights)} arrays"):
            super().set_weights(weights)

    def set_state_tree(self, state_tree: Any) -> None:
        """As `keras.Model.set_state_tree`, with the same conditions as `set_weights`."""
        with self._loading("state_tree", type(state_tree).__name__):
            super().set_state_tree(state_tree)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        """TensorFlow's hook, from which `tf.train.Checkpoint` learns what there is to save or to restore."""
        if save_type == "checkpoint":
            expected = f"saved as a pack: tf.train.Checkpoint does not hold tasks ({INSTEAD})"
            raise ArgumentError("model", expected, self.name)
        return super()._trackable_children(save_type, **kwargs)

    @contextlib.contextmanager
    def _loading(self, argument: str, value: Any) -> Iterator[None]:
        units = [head.units for head in lifecycle.heads(self).values()]
        with safe_loading.keeping_tasks(self, argument, value):
            yield
        if units != [head.units for head in lifecycle.heads(self).values()]:
            lifecycle.drop_compiled_functions(self)

    def owner_maps(self) -> dict[str, np.ndarray]:
        """A `uint8` owner map a kernel, by path: 0 is free, `k` is owned by task `k`."""
        return lifecycle.owner_maps(self)

    def free_fraction(self) -> dict:
        """Share of the prunable weights that no task owns: `{"overall": float, "layers": {path: float}}`."""
        return lifecycle.free_fraction(self)

    @classmethod
    def of_network(
        cls, network: keras.Model, roles: Roles, own_class: type[keras.Model] | None = None, **kwargs: Any
    ) -> "PackedModel":
        """The pack of a Sequential or functional model, whose layers become what `roles` says; it is used up.

        Args:
            network: The model; layers that are masked already stay as they are.
            roles: What becomes of its layers.
            own_class: The class of the user's model, if the pack shall be of it too: `model_class.become` comes next.
            **kwargs: Arguments of `PackedModel`.

        Raises:
            ArgumentError: If a layer cannot be packed; the message names it.
        """
        network = convert(network, roles.replacement)
        inputs, outputs = (end[0] if isinstance(end, list) and len(end) == 1 else end for end in ends(network))
        cls = cls if own_class is None else model_class.packed_class(cls, own_class)
        return cls(inputs, outputs, name=network.name, roles=roles, **kwargs)

    def network(self) -> keras.Model:
        """The same layers as a plain functional model."""
        return keras.Model(*ends(self), name=self.name)

    def summary(self, *args: Any, print_fn: Callable[[str], None] | None = None, **kwargs: Any) -> None:
        """As `keras.Model.summary`, and then who owns how many of the prunable weights."""
        super().summary(*args, print_fn=print_fn, **kwargs)
        (print_fn or print)(ownership_table(self.owner_maps(), self.task_names[: self.committed_tasks]))

    def get_config(self) -> dict[str, Any]:
        settings = self.pack_settings
        config = {
            "format": FORMAT,
            "network": self.network().get_config(),
            "head": settings.head,
            "freed_weights": settings.freed_weights,
            "seed": settings.seed,
            "roles": settings.roles.to_json(),
        }
        own = model_class.description_of(self)
        return config if own is None else {**config, "model": own}

    def get_build_config(self) -> dict[str, Any]:
        """Keras's hook. With the tasks, which can be read from a `.keras` file without loading it."""
        return {**(super().get_build_config() or {}), "tasks": self.task_names}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Keras's hook: a pack is built when it is made."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "PackedModel":
        config = checked_format(config)
        own = config.pop("model", None)
        own_class = None if own is None else model_class.user_class(own, custom_objects)
        network = keras.Model.from_config(config.pop("network"), custom_objects=custom_objects)
        packed = cls.of_network(network, Roles(**config.pop("roles", {})), own_class, **config)
        if own is not None:
            model_class.become(packed, own)
        return packed
