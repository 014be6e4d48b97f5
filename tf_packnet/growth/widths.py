"""Finds the layers of a network that can grow, and how the layers around them change."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import keras
import numpy as np

from tf_packnet.growth.channels import Axes, Channels, same, wider
from tf_packnet.growth.choice import rule_of
from tf_packnet.growth.rules import ConflictError, Rule, Wider
from tf_packnet.structure.layer_paths import paths_by_id
from tf_packnet.structure.steps import Graph, trace


@dataclass
class Plan:
    """How a network becomes wider.

    Attributes:
        units: New width of each layer that becomes wider, by path.
        stays: Layers that keep their width, by path, with the reason.
        calls: How each layer and operation changes, by `id`.
        nested: Number of channels of each input of each nested model, by `id`.
    """

    units: dict[str, int]
    stays: dict[str, str] = field(default_factory=dict)
    calls: dict[int, Wider] = field(default_factory=dict)
    nested: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def axes(self) -> dict[int, dict[str, Axes]]:
        """The axes that change, by `id` of the layer and name of the weight."""
        return {layer: weights for call in self.calls.values() for layer, weights in call.weights.items()}


class Widths:
    """The widths of the layers in a network.

    Args:
        network: A Sequential or functional model with task-aware layers.

    Attributes:
        now: Current width of each layer that may grow, by path.
        fixed: Other layers with weights that tasks own, by path, with the reason why they cannot grow.
    """

    def __init__(self, network: keras.Model):
        self._graph: Graph = trace(network)
        path_of = paths_by_id(network)
        self._rules = [rule_of(self._graph, step, path_of.get(id(step.layer), step.name)) for step in self._graph.steps]
        self.fixed = {
            rule.path: rule.obstacle
            for rule in self._rules
            if rule.width is None and rule.is_pruned and (rule.key or type(rule) is Rule)
        }
        wide = [(rule.path, rule.width) for rule in self._rules if rule.path not in self.fixed]
        self.now = {path: width for path, width in wide if width is not None}

    def plan(self, units: Mapping[str, int]) -> Plan:
        """Return how the network changes if these layers get these numbers of units, as far as that is possible."""
        units, stays = dict(units), dict[str, str]()
        while True:
            plan, conflicts = self._attempt(units)
            if not conflicts:
                plan.stays = stays
                return plan
            for path in conflicts:
                del units[path]
            stays |= conflicts

    def _attempt(self, units: Mapping[str, int]) -> tuple[Plan, dict[str, str]]:
        """Trace the channels through the network.

        Returns:
            The plan, and the layers in it that must keep their width, with the reasons.
        """
        plan, conflicts = Plan(dict(units)), {}
        known = {number: same(_channels(self._graph.shape(number))) for number in self._graph.inputs}
        called: dict[int, list[Channels]] = {}

        def refuse(inputs: list[Channels], reason: str) -> None:
            tied = sorted(frozenset().union(*(each.by for each in inputs)))
            for path in units.keys() & set(tied):
                others = [each for each in tied if each != path]
                conflicts[path] = reason + (f" (tied to {', '.join(map(repr, others))})" if others else "")

        for rule in self._rules:
            inputs = [known[number] for number in rule.step.inputs]
            known |= {number: same(_channels(self._graph.shape(number))) for number in rule.step.outputs}
            try:
                call = rule.wider(inputs, self._units(rule, units))
            except ConflictError as conflict:
                refuse(inputs, conflict.reason)
                if not conflict.is_local:
                    return plan, conflicts
                continue
            before = called.setdefault(id(rule.step.layer), inputs) if call.weights or call.config else inputs
            if not all(map(_equal, before, inputs)):
                refuse([*before, *inputs], f"{rule.path!r} is called for the units of several layers")
                return plan, conflicts
            known[rule.step.outputs[0]] = call.output
            plan.calls[id(rule.step.layer)] = call
        refuse([known[number] for number in self._graph.outputs if known[number].grew], "they are outputs of the model")
        for model, numbers in self._graph.nested:
            widths = tuple(len(known[number].old) for number in numbers)
            if plan.nested.setdefault(id(model), widths) != widths:
                calls = [known[each] for inner, others in self._graph.nested if inner is model for each in others]
                refuse(calls, f"model {model.name!r} is called for the units of several layers")
        return plan, conflicts

    def _units(self, rule: Rule, units: Mapping[str, int]) -> Channels:
        if rule.path in self.now:
            width = self.now[rule.path]
            return wider(width, units.get(rule.path, width), rule.path)
        return same(_channels(rule.output_shapes[0]))


def _channels(shape: tuple[int | None, ...]) -> int:
    """Return the number of channels of a tensor; 1 if it is unknown."""
    return shape[-1] if len(shape) > 1 and shape[-1] is not None else 1


def _equal(one: Channels, other: Channels) -> bool:
    return np.array_equal(one.old, other.old)
