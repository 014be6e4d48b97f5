"""A Keras model that learns one task after another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle, model_class, optimizers
from tf_packnet.errors import ArgumentError
from tf_packnet.fit_checks import check_callbacks, fit_arguments
from tf_packnet.fit_data import check_fit_data
from tf_packnet.heads import heads_of_task
from tf_packnet.ownership_table import ownership_table
from tf_packnet.pack_format import FORMAT, checked_format
from tf_packnet.structure.graphs import ends
from tf_packnet.structure.roles import Roles, convert
from tf_packnet.trainer import PackedTrainer


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
        names = lifecycle.records(self).names
        unnamed = range(len(names) + 1, self.committed_tasks + 1)
        return [*names, *(f"task_{number}" for number in unnamed)]

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
            name: How the task is called from now on; default `task_<number>`.
            num_classes: Outputs of the task's head, 1 for a regression; with several heads, by head. Default as many
                as the task before had.
            activation: Activation of the task's head, such as `linear` or `softmax`; with several heads, by head.
                Default the model's own.

        Raises:
            ArgumentError: If the name is taken, the head cannot have so many classes, or no weight is free.
            RuntimeError: If the task before was not committed.
        """
        number = self.committed_tasks + 1
        name = name or f"task_{number}"
        names = self.task_names
        if name in names[: number - 1]:
            raise ArgumentError("name", "a name that no task of this pack has yet", name)
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
            ArgumentError: If the examples do not fit the model, or shall lie on one of several devices.
            RuntimeError: If no task is open: all that there is is frozen.
        """
        if not lifecycle.has_open_task(self):
            raise RuntimeError("no task is open, so there is nothing to train: call begin_task first")
        arguments = fit_arguments(args, kwargs)
        check_callbacks(self, arguments.get("callbacks"), arguments.get("epochs", 1))
        check_fit_data(self, arguments)
        self.select_task(self.committed_tasks + 1)
        return super().fit(**arguments)

    def task_number(self, task: int | str) -> int:
        """Number (1-based) of the task with this name or number.

        Raises:
            ArgumentError: If there is no such task.
        """
        if isinstance(task, str):
            names = self.task_names
            if task not in names:
                raise ArgumentError("task", "one of " + ", ".join(map(repr, names)), task)
            return names.index(task) + 1
        return task

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
