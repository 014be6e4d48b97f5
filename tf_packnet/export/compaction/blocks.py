"""Compaction rules that remove heads from attention, units from recurrent layers, and features from embeddings."""

import keras
import numpy as np

from tf_packnet.export.compaction.rules import Arrays, Rule, Value, array
from tf_packnet.structure.steps import Graph, Step
from tf_packnet.system.keras_internals import all_layers

# Inner layers of attention: those with one head per query head, and those with one per key and value head.
_OF_QUERIES, _OF_VALUES = ("query", "gate", "attention_output"), ("key", "value")


class Heads(Rule):
    """Rule for MultiHeadAttention and GroupQueryAttention: a barrier, but heads that contribute only zeros are removed.

    These are the heads whose values are always 0, or whose results are multiplied by 0.
    """

    options = ("query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask", "use_causal_mask")

    def __init__(self, graph: Graph, step: Step):
        super().__init__(graph, step)
        self.inner = {each.name: each for each in all_layers(self.layer) if isinstance(each, keras.layers.EinsumDense)}

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        used = self._used_groups()
        if used.all():
            return super().smaller(inputs, needed, values)
        old, of_queries = self.inner, np.repeat(used, self._group_size())
        layer = self.copy(**self._sizes(int(used.sum()), int(of_queries.sum())))
        results = self._called(layer, values)
        for each in all_layers(layer):
            if each.name in old and isinstance(each, keras.layers.EinsumDense):
                kept = of_queries if each.name in _OF_QUERIES else used
                for new, variable in zip(each.weights, old[each.name].weights, strict=True):
                    new.assign(_cut_to(new.shape, array(variable), kept))
        return results

    def _used_groups(self) -> np.ndarray:
        """Return whether each head of the keys and values is used; at least one counts as used."""
        value, output = self.inner["value"], self.inner["attention_output"]
        has_values = (array(value.kernel) != 0).any((0, 2))  # the kernel is (features, heads, size)
        if value.bias is not None:
            has_values |= (array(value.bias) != 0).any(1)
        is_read = (array(output.kernel) != 0).reshape(has_values.size, -1).any(1)  # (heads, size, features)
        used = has_values & is_read
        used[0] |= not used.any()
        return used

    def _group_size(self) -> int:
        """Return the number of query heads for each key head."""
        sizes = self.layer.get_config()
        return sizes.get("num_query_heads", 1) // sizes.get("num_key_value_heads", 1)

    def _sizes(self, values: int, queries: int) -> dict[str, int]:
        if "num_heads" in self.layer.get_config():
            return {"num_heads": values}
        return {"num_key_value_heads": values, "num_query_heads": queries}


def _cut_to(shape: tuple[int, ...], value: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return `value` with only the kept positions of the axis in which it differs from `shape`."""
    axes = [axis for axis, size in enumerate(shape) if size != value.shape[axis]]
    return np.compress(kept, value, axis=axes[0]) if axes else value


class Recurrent(Rule):
    """Rule for SimpleRNN, GRU and LSTM: removes units that neither the outputs nor the kept units read."""

    options = ("mask",)

    def __init__(self, graph: Graph, step: Step):
        super().__init__(graph, step)
        kernel, recurrent = array(self.layer.cell.kernel), array(self.layer.cell.recurrent_kernel)
        self.units = len(recurrent)
        self.reads_input = (kernel != 0).reshape(len(kernel), -1, self.units).any(1)
        self.reads_unit = (recurrent != 0).reshape(self.units, -1, self.units).any(1)

    def _kept(self, needed: np.ndarray) -> np.ndarray:
        """Return the needed units and all units that they read, directly or indirectly."""
        kept = needed
        while True:
            more = kept | self.reads_unit[:, kept].any(1)
            if np.array_equal(more, kept):
                return kept
            kept = more

    def needed(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        mask = [np.ones_like(known, bool) for known in inputs[1:]]
        return [self.reads_input[:, self._kept(outputs[0])].any(1), *mask]

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        kept, rows = self._kept(needed[0]), values[0].kept
        layer = self.copy(units=int(kept.sum()))
        (result,) = self._called(layer, values)
        gates = np.tile(kept, array(self.layer.cell.kernel).shape[1] // self.units)
        cells = (layer.cell, self.layer.cell)
        for new, old in zip(*(cell.weights for cell in cells), strict=True):
            value = np.compress(gates, array(old), axis=-1)
            if old is self.layer.cell.kernel:
                value = value[rows]
            elif old is self.layer.cell.recurrent_kernel:
                value = value[kept]
            new.assign(value)
        return [Value(result.tensor, kept)]


class Table(Rule):
    """Rule for Embedding: removes features."""

    def known(self, inputs: Arrays) -> Arrays:
        return [np.where((array(self.layer.embeddings) == 0).all(0), 0.0, np.nan)]

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        layer = self.copy(output_dim=int(needed[0].sum()))
        tensor = layer(values[0].tensor)
        layer.embeddings.assign(array(self.layer.embeddings)[:, needed[0]])
        return [Value(tensor, needed[0])]
