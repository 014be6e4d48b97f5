"""`MaskedWeight`, a kernel whose entries are owned by tasks.

Committed values are stored in a separate non-trainable variable, which no optimizer changes. The forward pass reads
committed entries from there and candidates from the trainable variable. Freezing therefore does not depend on the
optimizer: momentum, weight decay, weight averaging and clipping may change the trainable variable anywhere, but
committed entries are not read from it.
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
    """A kernel in which every entry is owned by one task, free, or a candidate of the open task.

    Attributes:
        name: Name of the weight in its layer, such as `kernel`.
        variable: Trainable Keras variable. Only candidate entries of it are read.
        regularizer: Regularizer of the variable, or None.
        frozen: Non-trainable variable of the same shape: the committed value of each owned entry, and the value that
            each free entry had when it was pruned.
        owner: Non-trainable `uint8` owner map, see `tf_packnet.pruning.ownership`.
        shown: Non-trainable `uint8` scalar: the weights of tasks `1..shown` are visible.
        learning: Non-trainable `bool` scalar: whether the candidates are visible too.
        pretrained: None, `prunable` or `visible`, see `tf_packnet.pruning.policies`.
        base: Pretrained values, a non-trainable variable of the same shape; None if `pretrained` is None.
        in_place: Whether the trainable variable currently holds the whole kernel, see `tf_packnet.training.kernels`.
        has_free_values: Whether the free entries of `frozen` and `base` are valid. False after loading a file without
            them, until the next task begins.
        fresh: `bool` mask of the entries that no task could use so far, because the layer has grown; None if there are
            none. In the next task they start from the initializer, regardless of the policy: with `zero`, a unit whose
            input and output weights are 0 would get no gradient.
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
        self.fresh: np.ndarray | None = None
        self.in_place = False
        self._substitute: Any = None

    def value(self) -> Any:
        """Return the kernel that the layer computes with: the substituted kernel if there is one, or `own_value()`."""
        return self.own_value() if self._substitute is None else self._substitute

    def own_value(self) -> Any:
        """Compute the kernel of the selected task, in the dtype of the variable.

        Invisible entries are 0, or the pretrained values if `pretrained` is `visible`. Gradients reach the trainable
        variable at visible candidates and are exactly 0 elsewhere.
        """
        trained = self.trained()
        if self.in_place:  # only stops gradients; XLA removes the selection from the forward pass
            return ops.where(trained, self.variable, ops.stop_gradient(self.variable))
        return ops.where(trained, self.variable, self.value_of(ops.convert_to_tensor(self.shown)))

    def value_of(self, task: Any) -> Any:
        """Compute the kernel of the committed `task` (1-based, a `uint8` tensor), whichever task is selected."""
        committed = ownership.visible(ops.convert_to_tensor(self.owner), task)
        invisible_value = self.base if self.pretrained == "visible" else ops.zeros((), self.frozen.dtype)
        return ops.where(committed, self.frozen, invisible_value)

    @property
    def bookkeeping(self) -> list[keras.Variable]:
        """All variables of this weight except the trainable one."""
        variables = (self.frozen, self.owner, self.shown, self.learning, self.base)
        return [variable for variable in variables if variable is not None]

    def trained(self) -> Any:
        """Return a boolean mask of the entries that are read from the trainable variable and get gradients."""
        owner = ops.convert_to_tensor(self.owner)
        # Both sides are uint8: with a Python number, Keras would compare in int32, with four times the memory.
        return ops.logical_and(ops.equal(owner, ops.full((), ownership.CANDIDATE, "uint8")), self.learning)

    @contextlib.contextmanager
    def substitute(self, kernel: Any) -> Iterator[None]:
        """Make the layer compute with `kernel`, a tensor with the content of `own_value()`, inside the block."""
        before, self._substitute = self._substitute, kernel
        try:
            yield
        finally:
            self._substitute = before

    @property
    def is_substituted(self) -> bool:
        """Whether the layer computes with a substituted kernel."""
        return self._substitute is not None

    def owner_map(self) -> np.ndarray:
        """Return the owner map, including candidates (255), as a read-only array."""
        return view(self.owner)

    def values(self) -> np.ndarray:
        """Return the trainable variable as a read-only array; only the entries of candidates are meaningful."""
        return view(self.variable)

    def importance(self) -> np.ndarray:
        """Return the values that a prune round ranks by magnitude.

        These are the weights; if pruned weights return to visible pretrained values, they are the differences from
        these.
        """
        return self.values() - view(self.base) if self.pretrained == "visible" else self.values()

    def set_pretrained(self) -> None:
        """Store the current values as the pretrained ones. Does nothing if `pretrained` is None."""
        if self.base is not None:
            self.base.assign(self.variable)

    def zero_outside(self, candidates: np.ndarray) -> None:
        """Set the trainable variable to 0 outside the boolean mask `candidates`."""
        self.variable.assign(ops.where(candidates, self.variable, ops.zeros((), self.variable.dtype)))

    def begin(self, task: int, freed_weights: str, seed: int) -> None:
        """Make the free entries candidates of `task`. From task 2 on, `freed_weights` determines their start values."""
        if task > 1:
            owner = ownership.begin(self.owner_map())
            # Other entries are not read. They are set to 0 so that norms of the whole variable do not count them.
            self.variable.assign(np.where(ownership.candidates(owner), self._start_values(freed_weights, seed), 0))
            self.owner.assign(owner)
            self.has_free_values = True  # all free entries are candidates now; pruning stores their values
            self.fresh = None
        self.select(task, learning=True)

    def reopen(self, freed_weights: str, seed: int) -> None:
        """Make the free entries candidates of the open task. Its current candidates do not change."""
        owner = self.owner_map()
        self.variable.assign(np.where(owner == ownership.FREE, self._start_values(freed_weights, seed), self.values()))
        self.owner.assign(ownership.reopen(owner))

    def _start_values(self, freed_weights: str, seed: int) -> np.ndarray:
        """Return the start values of free entries: the pretrained values, or by the policy `freed_weights`."""
        shape, dtype = tuple(self.variable.shape), self.variable.dtype
        policies = {
            "zero": lambda: np.zeros(shape, dtype),
            "keep": lambda: view(self.frozen),
            "reinit": lambda: fresh_values(self.initializer, shape, dtype, seed),
        }
        values = view(self.base) if self.base is not None else policies[freed_weights]()
        return values if self.fresh is None else np.where(self.fresh, policies["reinit"](), values)

    def prune(self, keep: np.ndarray) -> None:
        """Free the candidates outside the boolean mask `keep`, and store their current values in `frozen`."""
        owner = self.owner_map()
        self._copy_to_frozen(ownership.pruned(owner, keep))
        self.owner.assign(ownership.prune(owner, keep))

    def commit(self, task: int) -> None:
        """Make `task` the owner of the remaining candidates, and freeze their current values."""
        owner = self.owner_map()
        self._copy_to_frozen(ownership.candidates(owner))
        self.owner.assign(ownership.commit(owner, task))
        self.select(task, learning=False)

    def forget(self, task: int, last: int) -> None:
        """Remove the committed `task` of `last` tasks, see `ownership.forget`. Freed entries keep their values."""
        self.owner.assign(ownership.forget(self.owner_map(), task, last))
        self.variable.assign(self.trained_values(last - 1))

    def trained_values(self, task: int) -> np.ndarray:
        """Return the value of the trainable variable after `GradientMask` and the commit of the last task, `task`."""
        owner, frozen = self.owner_map(), view(self.frozen)
        return np.where(owner == task, frozen, np.zeros((), frozen.dtype))

    def select(self, task: int, learning: bool) -> None:
        """Make the weights of `task` visible.

        Args:
            task: Task number (1-based).
            learning: Whether it is the open task, for which the candidates are visible too.
        """
        self.shown.assign(np.uint8(task))
        self.learning.assign(learning)

    def computes_as(self, task: int) -> bool:
        """Return whether the layer computes as the committed `task` (1-based)."""
        return not bool(view(self.learning)) and int(view(self.shown)) == task

    def save(self, store: dict) -> None:
        """Write all variables into a Keras weights store."""
        for part in self._parts():
            store[f"{self.name}.{part}"] = view(getattr(self, part))
        if not self.has_free_values:
            store[f"{self.name}.lost"] = np.array(True)
        if self.fresh is not None:
            store[f"{self.name}.fresh"] = self.fresh

    def load(self, store: dict) -> None:
        """Load what `save` has written."""
        for part in self._parts():
            getattr(self, part).assign(np.asarray(store[f"{self.name}.{part}"]))
        self.has_free_values = f"{self.name}.lost" not in store
        fresh = f"{self.name}.fresh"
        self.fresh = np.array(store[fresh], bool) if fresh in store else None

    def _parts(self) -> tuple[str, ...]:
        parts = ("variable", "frozen", "owner", "shown", "learning")
        return parts if self.base is None else (*parts, "base")

    def _copy_to_frozen(self, mask: np.ndarray) -> None:
        # With `ops` rather than NumPy, so that kernels on a device are not copied to the host.
        self.frozen.assign(ops.where(mask, self.variable, self.frozen))
