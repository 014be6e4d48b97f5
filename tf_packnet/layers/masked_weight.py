"""A kernel whose entries are owned by tasks.

What is committed lies in a place that no optimizer sees, and the forward pass chooses between it and the trainable
variable. So the freeze needs no cooperation from the optimizer: momentum, weight decay, weight averaging and clipping
may do what they like to the trainable variable, it is not read where a committed value stands.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_packnet.layers.weights import fresh_values, non_trainable, view
from tf_packnet.pruning import ownership


class MaskedWeight:
    """A kernel whose every entry is owned by one task, free, or a candidate of the task being learned.

    Attributes:
        name: Name of the weight in its layer.
        variable: The trainable Keras variable. Only its candidates' entries are ever read.
        regularizer: That of the variable, None without one.
        frozen: Values at rest, non-trainable, same shape: an owned entry's committed value, a freed entry's value at
            the moment it was pruned.
        owner: Non-trainable `uint8` map, see `tf_packnet.pruning.ownership`.
        shown: Non-trainable `uint8` scalar: the weights of tasks `1..shown` are visible.
        learning: Non-trainable `bool` scalar: the candidates are visible too.
        pretrained: None, `prunable` or `visible`, see `tf_packnet.pruning.policies`.
        base: Those values, non-trainable, same shape; None without them.
        in_place: Whether the trainable variable holds the whole kernel for now, see `tf_packnet.training.kernels`.
        has_free_values: Whether the free entries of `frozen` and `base` are what they were: not after a file without
            them, until the next task has begun.
    """

    def __init__(
        self, layer: keras.Layer, name: str, variable: keras.Variable, initializer: Any, pretrained: str | None = None
    ):
        self.name = name
        self.variable = variable
        self.regularizer, variable.regularizer = variable.regularizer, None  # see TaskLayer._get_own_losses
        self.initializer = initializer
        shape = tuple(variable.shape)
        add = non_trainable(layer, variable)
        self.frozen = add(f"{name}_frozen", shape, variable.dtype, "zeros")
        self.owner = add(f"{name}_owner", shape, "uint8", keras.initializers.Constant(ownership.CANDIDATE))
        self.shown = add(f"{name}_shown", (), "uint8", "zeros")
        self.learning = add(f"{name}_learning", (), "bool", "ones")
        self.pretrained = pretrained
        self.base = None if pretrained is None else add(f"{name}_base", shape, variable.dtype, "zeros")
        self.has_free_values = True
        self.in_place = False
        self._substitute: Any = None

    def value(self) -> Any:
        """The kernel that the selected task computes with: what is hidden from it is 0, or `visible` pretrained values.

        Gradients reach the trainable variable at visible candidates and are exactly 0 elsewhere.
        """
        return self.whole_value() if self._substitute is None else self._substitute

    def whole_value(self) -> Any:
        """The same in the dtype of the variable, also while the layer computes with a kernel from `substitute`."""
        trained = self.trained()
        if self.in_place:  # the choice is for the gradient: XLA leaves it out of the values
            return ops.where(trained, self.variable, ops.stop_gradient(self.variable))
        # FREE is 0, so `owner - 1` wraps to 255: one comparison hides the free entries and those of later tasks.
        owner = ops.convert_to_tensor(self.owner)
        committed = ops.less(ops.subtract(owner, ops.ones((), "uint8")), self.shown)
        unseen = self.base if self.pretrained == "visible" else ops.zeros((), self.frozen.dtype)
        at_rest = ops.where(committed, self.frozen, unseen)
        return ops.where(trained, self.variable, at_rest)

    @property
    def bookkeeping(self) -> list[keras.Variable]:
        """The variables besides the trainable one."""
        return [each for each in (self.frozen, self.owner, self.shown, self.learning, self.base) if each is not None]

    def trained(self) -> Any:
        """Boolean mask of the entries that are read from the trainable variable, where gradients go."""
        owner = ops.convert_to_tensor(self.owner)
        # Of one dtype: with a Python number Keras would compare in int32, four times the memory.
        return ops.logical_and(ops.equal(owner, ops.full((), ownership.CANDIDATE, "uint8")), self.learning)

    @contextlib.contextmanager
    def substitute(self, kernel: Any) -> Iterator[None]:
        """Within the block the layer computes with `kernel`, a tensor with the content of `value()`."""
        self._substitute = kernel
        try:
            yield
        finally:
            self._substitute = None

    def owner_map(self) -> np.ndarray:
        """The owner map as it stands, open candidates (255) included; read-only."""
        return view(self.owner)

    def values(self) -> np.ndarray:
        """The trainable variable as NumPy, read-only; only its candidates mean anything."""
        return view(self.variable)

    def importance(self) -> np.ndarray:
        """What a prune round ranks by magnitude: the values, or how far they are from where they would go back to."""
        return self.values() - view(self.base) if self.pretrained == "visible" else self.values()

    def take_as_pretrained(self) -> None:
        """Makes the present values the pretrained ones, where the weight has such."""
        if self.base is not None:
            self.base.assign(self.variable)

    def confine(self, candidates: np.ndarray) -> None:
        """Sets the trainable variable to 0 outside the boolean mask `candidates`."""
        self.variable.assign(ops.where(candidates, self.variable, ops.zeros((), self.variable.dtype)))

    def begin(self, task: int, freed_weights: str, seed: int) -> None:
        """Opens the free entries for `task`; from the second task on they start by the policy `freed_weights`."""
        if task > 1:
            owner = ownership.begin(self.owner_map())
            # What is not a candidate is not read. At 0, no regulariser or norm of the whole variable sees it either.
            self.variable.assign(np.where(ownership.candidates(owner), self._start(freed_weights, seed), 0))
            self.owner.assign(owner)
            self.has_free_values = True  # they are candidates now, and rest as they are when pruned
        self.select(task, learning=True)

    def reopen(self, freed_weights: str, seed: int) -> None:
        """Opens the free entries for the task that is open already; its candidates go on as they are."""
        owner = self.owner_map()
        self.variable.assign(np.where(owner == ownership.FREE, self._start(freed_weights, seed), self.values()))
        self.owner.assign(ownership.reopen(owner))

    def _start(self, freed_weights: str, seed: int) -> np.ndarray:
        """Where freed entries start from: the pretrained values, or by policy."""
        if self.base is not None:
            return view(self.base)
        shape, dtype = tuple(self.variable.shape), self.variable.dtype
        return {
            "zero": lambda: np.zeros(shape, dtype),
            "keep": lambda: view(self.frozen),
            "reinit": lambda: fresh_values(self.initializer, shape, dtype, seed),
        }[freed_weights]()

    def prune(self, keep: np.ndarray) -> None:
        """Frees the candidates outside the boolean mask `keep` and puts their present values to rest."""
        owner = self.owner_map()
        self._rest(ownership.pruned(owner, keep))
        self.owner.assign(ownership.prune(owner, keep))

    def commit(self, task: int) -> None:
        """Gives the remaining candidates to `task` and puts their present values to rest, for ever."""
        owner = self.owner_map()
        self._rest(ownership.candidates(owner))
        self.owner.assign(ownership.commit(owner, task))
        self.select(task, learning=False)

    def select(self, task: int, learning: bool) -> None:
        """Shows what `task` sees; `learning` says whether it is the open task, whose candidates are visible."""
        self.shown.assign(np.uint8(task))
        self.learning.assign(learning)

    def shows(self, task: int) -> bool:
        """Whether the layer computes as the committed `task` (1-based)."""
        return not bool(view(self.learning)) and int(view(self.shown)) == task

    def save(self, store: dict) -> None:
        """Writes the whole state into a Keras weights store."""
        for part in self._parts():
            store[f"{self.name}.{part}"] = view(getattr(self, part))
        if not self.has_free_values:
            store[f"{self.name}.lost"] = np.array(True)

    def load(self, store: dict) -> None:
        """Reads the whole state back."""
        for part in self._parts():
            getattr(self, part).assign(np.asarray(store[f"{self.name}.{part}"]))
        self.has_free_values = f"{self.name}.lost" not in store

    def _parts(self) -> tuple[str, ...]:
        parts = ("variable", "frozen", "owner", "shown", "learning")
        return parts if self.base is None else (*parts, "base")

    def _rest(self, where: np.ndarray) -> None:
        # On the device: the kernels may be large, and one copy of them is enough.
        self.frozen.assign(ops.where(where, self.variable, self.frozen))
