"""Sets trainable kernels and optimizer slots to 0 outside the candidates."""

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning import ownership
from tf_packnet.training import optimizers


class GradientMask(keras.callbacks.Callback):
    """Sets the trainable kernels and the optimizer's slots to 0 outside the candidates, after every prune round.

    Freezing is exact even without this callback: the forward pass never reads committed or pruned entries from the
    trainable variable, so their gradients are exactly 0. With it, the optimizer too sees only the candidates. Norms of
    whole kernels (in LAMB and LARS, or norm constraints) count only the candidates, and no slot (momentum, moments,
    weight averages) keeps a value of a pruned weight.

    In a `fit` of a plain `keras.Model`, the callback also checks, before and after, that the outputs of committed tasks
    are unchanged. A `PackedModel` does this itself.

    It acts before the first gradient step of each epoch, so that its position in the list of callbacks does not matter.
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
                    continue  # candidates are only removed, so an equal number means an equal mask
                self._candidates[path] = count
                weight.zero_outside(mask)
                optimizers.clear_slots(self.model.optimizer, weight.variable, mask)
