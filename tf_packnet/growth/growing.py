"""`grow(packed)` returns a wider pack with the same tasks, which has new free weights for the next task."""

import math
import numbers
import warnings
from collections.abc import Mapping

import keras

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError, FreezeError, listed
from tf_packnet.growth.values import wider_state
from tf_packnet.growth.widths import Plan, Widths
from tf_packnet.layers import TaskLayer
from tf_packnet.lifecycle import witness
from tf_packnet.packed import model_class
from tf_packnet.packed_model import PackedModel
from tf_packnet.structure.graphs import Copies, build_uncalled, copy_state
from tf_packnet.structure.layer_paths import layers_by_path, resolved_paths
from tf_packnet.structure.state import seeds


@checked
def grow(packed: PackedModel, factor: float | None = None, units: Mapping[str, int] | None = None) -> PackedModel:
    """Return a wider pack with the same tasks: its layers have more units, filters, features or attention heads.

    The new weights are free. Committed tasks do not see them, and have the same outputs: bit-identical where TensorFlow
    adds the larger sums in the same order, otherwise equal up to rounding. This is checked on synthetic inputs, and new
    witnesses are recorded. The next task starts the new weights from the initializers of the layers, regardless of
    `freed_weights`; under `bias_policy="first_task"`, new biases and normalization keep their initial values.

    Layers that can grow are Dense, EinsumDense, convolutions without groups, Embedding, SimpleRNN, GRU and LSTM (also
    in Bidirectional), and MultiHeadAttention and GroupQueryAttention (by heads). A layer keeps its width if its units
    feed something that needs their exact number: layer normalization, a softmax, a layer of your own, an addition to
    units that do not grow, or an output of the model.

    Args:
        packed: The pack, without an open task. It is not changed.
        factor: Grow all layers that can grow to this multiple of their width, rounded down. Layers that keep their
            width are named in a warning.
        units: Instead of `factor`, the new width of some layers by name, such as `{"dense_1": 384}`; for attention, the
            number of (key and value) heads.

    Returns:
        The new pack. Compile it before the next `fit`.

    Raises:
        ArgumentError: If an argument is invalid, if the pack has no committed task or an open one, if its network
            cannot be created again, or if a layer that `units` names, or every layer, must keep its width.
        FreezeError: If the weights or outputs of a task have changed since its commit, or would change.
    """
    _check_pack(packed)
    widths = Widths(packed.network())
    plan = _of_factor(widths, packed.name, factor) if units is None else _of_units(widths, packed, factor, units)
    lifecycle.check_tasks(packed)
    with lifecycle.strategy_scope(packed):
        try:
            new = _rebuilt(packed, plan)
        except ArgumentError as error:
            raise ArgumentError("packed", error.expected, packed.name) from error
        _copy_values(packed, new, plan)
    _check_outputs(packed, new)
    lifecycle.records(new).witnesses = {}
    lifecycle.complete_records(new)
    if units is None and plan.stays:
        warnings.warn(f"some layers of {packed.name!r} keep their width: {_listed(plan.stays)}", stacklevel=2)
    return new


def _check_pack(packed: PackedModel) -> None:
    if not packed.committed_tasks:
        expected = "a pack with a committed task; before the first task, pack a wider model"
        raise ArgumentError("packed", expected, packed.name)
    if lifecycle.has_open_task(packed):
        name = packed.task_names[packed.committed_tasks]
        raise ArgumentError("packed", f"a pack without an open task (task {name!r} is open)", packed.name)
    if "_user_layer" in vars(packed):
        expected = "a pack of a Sequential or functional model; the layers of a subclassed model are in its own code"
        raise ArgumentError("packed", expected, packed.name)


def _of_factor(widths: Widths, name: str, factor: float | None) -> Plan:
    """Return the plan that grows all layers that can grow. `name` is the name of the pack, for messages."""
    if not isinstance(factor, numbers.Real) or not 1 < factor < math.inf:
        raise ArgumentError("factor", "a number above 1, or the new widths as `units`", factor)
    units = {path: math.floor(width * float(factor) + 1e-9) for path, width in widths.now.items()}
    units = {path: width for path, width in units.items() if width > widths.now[path]}
    if not units and widths.now:
        expected = f"at least 1 + 1/{max(widths.now.values())}, with which the widest layer gets one more unit"
        raise ArgumentError("factor", expected, factor)
    plan = widths.plan(units)
    plan.stays |= widths.fixed
    if not plan.units:
        raise ArgumentError("packed", f"a pack with a layer that can grow ({_listed(plan.stays)})", name)
    return plan


def _of_units(widths: Widths, packed: PackedModel, factor: float | None, units: Mapping[str, int]) -> Plan:
    """Return the plan that grows the layers in `units`."""
    if factor is not None:
        raise ArgumentError("factor", "None, because `units` is given", factor)
    if not isinstance(units, Mapping) or not units:
        raise ArgumentError("units", 'a mapping such as {"dense_1": 384}', units)
    paths = resolved_paths("units", units, packed)
    for path, width in zip(paths, units.values(), strict=True):
        if path not in widths.now:
            growing = listed(map(repr, widths.now), 20) or "none in this pack"
            reason = widths.fixed.get(path, "it follows other layers, or is a head")
            raise ArgumentError("units", f"layers that can grow ({growing}); {path!r} cannot: {reason}", units)
        if not isinstance(width, numbers.Integral) or width <= widths.now[path]:
            raise ArgumentError("units", f"more than the present {widths.now[path]} of layer {path!r}", width)
    plan = widths.plan({path: int(width) for path, width in zip(paths, units.values(), strict=True)})
    if plan.stays:
        expected = f"layers whose units no other layer needs as they are ({_listed(plan.stays)})"
        raise ArgumentError("units", expected, units)
    return plan


def _listed(reasons: Mapping[str, str]) -> str:
    """Format layers with the reasons why they keep their width, for a message."""
    return listed((f"{path!r}: {reason}" for path, reason in reasons.items()), 20) or "it has no layer with units"


def _rebuilt(packed: PackedModel, plan: Plan) -> PackedModel:
    """Return a wider pack like `packed`, without tasks."""
    network, settings = packed.network(), packed.pack_settings
    own_class = getattr(type(packed), "_user_class", None)
    description = model_class.description_of(packed)
    copies = Copies(network)
    for layer in layers_by_path(network).values():
        if id(layer) in plan.nested:
            copies.change_inputs(layer, plan.nested[id(layer)])
        elif id(layer) in plan.calls and plan.calls[id(layer)].config:
            copies.change(layer, plan.calls[id(layer)].config)
    new = PackedModel.of_network(
        copies.connected(network),
        settings.roles,
        own_class,
        head=settings.head,
        freed_weights=settings.freed_weights,
        seed=settings.seed,
    )
    build_uncalled(packed, new)
    lifecycle.use_outputs(new, {path: head.last_outputs for path, head in lifecycle.heads(packed).items()})
    if description is not None:
        model_class.take_over_model(new, description)
    return new


def _copy_values(packed: PackedModel, new: PackedModel, plan: Plan) -> None:
    """Copy the tasks of `packed`, and the state that belongs to no task, to `new`."""
    targets = layers_by_path(new) | model_class.held_layers(new)
    for path, layer in (layers_by_path(packed) | model_class.held_layers(packed)).items():
        if isinstance(layer, keras.Layer) and not isinstance(layer, (TaskLayer, keras.layers.InputLayer)):
            copy_state(layer, targets[path])
    new.restore(wider_state(packed, new, plan.axes), packed.task_names)
    for source, target in zip(seeds(packed), seeds(new), strict=True):
        target.assign(source)


def _check_outputs(packed: PackedModel, new: PackedModel) -> None:
    """Raise FreezeError if an output of a committed task differs by more than rounding."""
    selected, tolerance = packed.selected_task, witness.rounding(packed)
    for task, recorded in lifecycle.records(packed).witnesses.items():
        if not recorded.outputs:  # the model cannot be called with synthetic inputs
            continue
        for model in (packed, new):
            lifecycle.select_task(model, task)
        before, now = (witness.outputs(each, lifecycle.records(each), recorded.inputs)[0] for each in (packed, new))
        difference = witness.difference(before, now, tolerance)
        if difference is not None:
            name = lifecycle.records(packed).name_of(task)
            raise FreezeError(
                f"the outputs of task {name!r} would change by {difference:.2g} relative to their size: a layer "
                "computes differently when it is wider. The pack is unchanged"
            )
    for model in (packed, new):
        lifecycle.select_task(model, selected)
