"""Rules for Embedding, recurrent layers and attention."""

from typing import Any

from tf_packnet.growth.channels import Axes, Axis, Channels, joined, same
from tf_packnet.growth.rules import Rule, Wider, inner_config
from tf_packnet.structure.steps import Graph, Step


class Table(Rule):
    """Rule for Embedding."""

    key = "output_dim"

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        return Wider(units, self._weights(embeddings={-1: Axis(units.old)}), self._sized(units))


class Recurrent(Rule):
    """Rule for SimpleRNN, GRU and LSTM."""

    options = ("mask",)
    key = "units"

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        return Wider(units, {id(self.layer.cell): _cell_axes(self.layer, inputs[0], units)}, self._sized(units))


class BothWays(Recurrent):
    """Rule for Bidirectional with inner SimpleRNN, GRU or LSTM layers of the same width."""

    def _width(self) -> int | None:
        return int(self.layer.forward_layer.units)

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        ways, config = (self.layer.forward_layer, self.layer.backward_layer), self.layer.get_config()
        changed = {name: inner_config(config[name], self._sized(units)) for name in ("layer", "backward_layer")}
        output = joined([units, units]) if self.layer.merge_mode == "concat" else units
        return Wider(output, {id(way.cell): _cell_axes(way, inputs[0], units) for way in ways}, changed)


class Heads(Rule):
    """Rule for MultiHeadAttention and GroupQueryAttention: a barrier that can get more heads."""

    options = ("query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask", "use_causal_mask")

    def __init__(self, graph: Graph, step: Step, path: str):
        self.key = "num_heads" if hasattr(step.layer, "num_heads") else "num_key_value_heads"
        super().__init__(graph, step, path)
        # A mask with more axes is tied to the number of heads by the layer's equations.
        if any(len(shape) > len(self.output_shapes[0]) for shape in self.input_shapes):
            self.width = None

    def _width(self) -> int | None:
        return int(self.layer.get_config()[self.key])

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        config = self.layer.get_config()
        output = super().wider(inputs, same(self.output_shapes[0][-1] or 1)).output
        if not units.grew:
            return Wider(output)
        times = config.get("num_query_heads", 1) // config.get("num_key_value_heads", 1)
        queries = units.repeated(times)
        changes = {self.key: len(units.old)}
        if "num_query_heads" in config:
            changes["num_query_heads"] = len(queries.old)
        weights: dict[int, dict[str, Axes]] = {}
        for name, heads in {"query": queries, "gate": queries, "key": units, "value": units}.items():
            inner = getattr(self.layer, f"_{name}_dense", None)
            if inner is not None:  # the kernel is (features, heads, size)
                weights[id(inner)] = {"kernel": {1: Axis(heads.old)}, "bias": {0: Axis(heads.old)}}
        weights[id(self.layer._output_dense)] = {"kernel": {0: Axis(queries.old, reads=True)}}
        return Wider(output, weights, changes)


def _cell_axes(layer: Any, x: Channels, units: Channels) -> dict[str, Axes]:
    """Return how the weights of a recurrent cell change. They hold the units of all gates side by side."""
    gates = Axis(units.tiled(layer.cell.kernel.shape[-1] // layer.units).old)
    return {
        "kernel": {-2: Axis(x.old, reads=True), -1: gates},
        "recurrent_kernel": {-2: Axis(units.old, reads=True), -1: gates},
        "bias": {-1: gates},
    }
