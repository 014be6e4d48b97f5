"""Keeps what the optimizer sees in line with the masks."""

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning import ownership
from tf_packnet.training import optimizers


class GradientMask(keras.callbacks.Callback):
    """Confines the optimizer to the candidates: everything else it holds of a kernel is 0.

    The forward pass of a masked layer never reads a committed or pruned entry from the trainable variable, so their
    gradients are exactly 0 and the freeze holds without this callback. What it adds is that the optimizer's own view
    agrees: after every prune round the entries of the trainable kernels and of the optimizer's slots (momentum,
    moments, weight averages) outside the candidates are 0. So norms over a whole kernel (LAMB- or LARS-like trust
    ratios, norm constraints) count the candidates alone, and no momentum gathered before a round lives
    on in a weight that it pruned.

    In a `fit` of a plain `keras.Model` it also checks, before and after, that committed tasks compute what they did; a
    `PackedModel` does that itself.

    It acts before the first gradient step of each epoch, whatever its place in the list of callbacks.
    """

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._check_tasks()
        self._weights = lifecycle.masked_weights(self.model)
        self._candidates: dict[str, int] = {}
        self._due = True

    def on_train_end(self, logs: dict | None = None) -> None:
        self._check_tasks()

    def _check_tasks(self) -> None:
        if not isinstance(self.model, PackedModel):
            lifecycle.check_tasks(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._due = True

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if self._due:
            self._due = False
            self._apply()

    def _apply(self) -> None:
        with lifecycle.strategy_scope(self.model):
            for path, weight in self._weights.items():
                mask = ownership.candidates(weight.owner_map())
                count = int(np.count_nonzero(mask))
                if self._candidates.get(path) == count:
                    continue  # candidates only ever leave: the same number means the same mask
                self._candidates[path] = count
                weight.zero_outside(mask)
                optimizers.clear_slots(self.model.optimizer, weight.variable, mask)
