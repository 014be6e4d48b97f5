"""`sparsify(model)` makes a Keras model whose weights can be pruned while it is trained."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.callbacks.layer_choice import by_weight
from tf_packnet.errors import ArgumentError
from tf_packnet.packed_model import PackedModel
from tf_packnet.packing import pack

Chosen = Sequence[str] | Callable[[keras.Layer], bool] | None


@checked
def sparsify(
    model: keras.Model, layers: Chosen = None, *, exclude: Sequence[str] = (), inputs: Any = None
) -> PackedModel:
    """Return a copy of a Keras model whose weights can be pruned in `fit`.

    ```python
    sparse = tp.sparsify(model)
    sparse.compile(optimizer="adam", loss=...)
    sparse.fit(x, y, epochs=2, callbacks=[tp.PruneStepScheduler(schedule)])
    final = tp.strip_pruning(sparse)
    ```

    The copy computes and trains like `model` until `PruneStepScheduler` or `PruneRoundScheduler` prunes it. A `fit`
    without these callbacks trains the remaining weights. The copy can be saved and loaded at any time. It is a pack
    with one task and a shared head.

    Args:
        model: A built Sequential, functional or subclassed model, possibly trained. It is not changed.
        layers: The layers to prune: their names or paths; a function that returns whether to prune a layer, such as
            `lambda layer: isinstance(layer, keras.layers.Dense)`; or None for all layers with weights of more than one
            axis. The other layers are trained, but not pruned.
        exclude: Names of layers that are neither trained nor pruned, like layers with `trainable=False`.
        inputs: Symbolic inputs of a subclassed model, as for `pack`.

    Returns:
        The model, not compiled.

    Raises:
        ArgumentError: If an argument is invalid, or a layer cannot be pruned; the message names it.
    """
    if not isinstance(model, keras.Model):
        raise ArgumentError("model", "a keras.Model", type(model).__name__)
    packed = pack(model, head="shared", exclude=exclude, inputs=inputs)
    if layers is not None:
        packed = pack(model, head="shared", exclude=exclude, inputs=inputs, prune=_choice(packed, layers))
    packed.begin_task("sparse")
    return packed


def _choice(packed: PackedModel, layers: Any) -> dict[str, bool]:
    """Return, by path, whether each masked weight of `packed` is to be pruned."""
    if callable(layers):
        owners = lifecycle.named_layers(packed)
        chosen = {f"{path}/{each.name}" for path, layer in owners for each in layer.masked_weights if layers(layer)}
    elif isinstance(layers, str) or not isinstance(layers, Sequence):
        raise ArgumentError("layers", "a list of names of layers, a function of a layer, or None", layers)
    else:
        chosen = set(by_weight(packed, "layers", dict.fromkeys(layers, True)))
    if not chosen:
        raise ArgumentError("layers", "at least one layer to prune", layers)
    return {path: path in chosen for path in lifecycle.masked_weights(packed)}
