"""`tp.plan` computes, before training, how many weights each task will get, and the memory and disk space of a pack."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers import TaskLayer
from tf_packnet.packed.ownership_table import plan_table
from tf_packnet.packed_model import PackedModel
from tf_packnet.packing import pack
from tf_packnet.pruning import ownership
from tf_packnet.pruning.ranking import PRUNE_SCOPES, counts_to_keep, remaining
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.pruning.shares import PruneRounds
from tf_packnet.pruning.unequal_shares import Shares
from tf_packnet.structure.layer_paths import layers_by_path
from tf_packnet.system.keras_internals import all_layers, own_variables

FLOAT_BYTES = 4
ADAM_BYTES = 2 * FLOAT_BYTES  # two moments per weight


@dataclass(frozen=True)
class LayerPlan:
    """The capacity plan of one kernel.

    Attributes:
        path: Path of the kernel, such as `dense/kernel`.
        shape: Shape of the kernel.
        outputs: Number of outputs of the layer; for convolutions, per position.
        kept: Number of weights that each planned task will own; None with scope `global`, where it depends on the
            values of the weights.
        free: Number of free weights after all tasks; None with scope `global`.
    """

    path: str
    shape: tuple[int, ...]
    outputs: int
    kept: tuple[int, ...] | None
    free: int | None


@dataclass(frozen=True)
class CapacityPlan:
    """Result of `plan`. `str(plan)` is a table with warnings.

    Attributes:
        first_task: Number (1-based) of the first planned task.
        tasks: Number of planned tasks.
        final_prune: `p`.
        prune_rounds: `N`, prune rounds per task, or `auto`.
        scope: Prune scope: `layer`, `global` or `erk`.
        layers: One plan per kernel.
        kept: Number of weights that each planned task will own.
        free: Number of free weights after all tasks.
        weights: Number of weights in all kernels.
        training_bytes: Memory in bytes of weights, owner maps and Adam's moments.
        pack_bytes: Disk space in bytes of a saved pack, without optimizer state.
        export_bytes: Disk space in bytes of the weights in a dense SavedModel of one task.
        last_task: Name of the last committed task; None without one. It is the only task whose weights become free if
            it is forgotten.
        frees: Number of weights that forgetting `last_task` would free.
    """

    first_task: int
    tasks: int
    final_prune: float
    prune_rounds: PruneRounds
    scope: str
    layers: tuple[LayerPlan, ...]
    kept: tuple[int, ...]
    free: int
    weights: int
    training_bytes: int
    pack_bytes: int
    export_bytes: int
    last_task: str | None = None
    frees: int = 0

    def too_few(self) -> list[tuple[str, int, int, int]]:
        """Return `(path, task, weights, outputs)` wherever a task gets fewer weights than a layer has outputs."""
        return [
            (layer.path, self.first_task + index, count, layer.outputs)
            for layer in self.layers
            for index, count in enumerate(layer.kept or ())
            if count < layer.outputs
        ]

    def to_json(self) -> dict[str, Any]:
        """Return all attributes as JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return plan_table(self)


@checked
def plan(
    model: keras.Model,
    num_tasks: int | None = None,
    final_prune: float | None = None,
    prune_rounds: PruneRounds = 1,
    scope: str = "layer",
    *,
    shares: Shares | Sequence[float] | Mapping[str, float] | None = None,
    **pack_arguments: Any,
) -> CapacityPlan:
    """Compute how many weights each of `num_tasks` tasks will get; the counts are exactly those of the prune rounds.

    Args:
        model: A Keras model; or a pack, whose committed tasks are included in `num_tasks`.
        num_tasks: `T`, number of tasks of the network. Default with `shares`: the number of shares.
        final_prune: `p`, fraction of the weights that is free after all tasks, in (0, 1); not with `shares`.
        prune_rounds: `N`, prune rounds per task, or `auto`: the counts do not depend on when weights are pruned.
        scope: Prune scope: `layer`, `global` or `erk`.
        shares: `tp.Shares`, or its argument: the share of each task, by number or by name.
        **pack_arguments: Arguments of `pack`, if `model` is not packed yet.

    Returns:
        The plan, which can be printed.

    Raises:
        ArgumentError: If an argument is out of range, or if a task would get no weights; the message contains the
            largest possible number of tasks.
    """
    rounds = 1 if isinstance(prune_rounds, str) else prune_rounds
    schedule = _schedule(num_tasks, final_prune, rounds, shares)
    check_choice("scope", scope, PRUNE_SCOPES)
    packed = model if isinstance(model, PackedModel) else pack(model, **pack_arguments)
    committed = packed.committed_tasks
    names = _names(packed.task_names[:committed], schedule)
    num_tasks = schedule.num_tasks if schedule.names() is None else len(names)
    if committed >= num_tasks:
        raise ArgumentError("num_tasks", f"more than the {committed} committed tasks of the pack", num_tasks)
    weights = lifecycle.masked_weights(packed)
    shapes = [tuple(weight.variable.shape) for weight in weights.values()]
    free = [ownership.count_uncommitted(weight.owner_map()) for weight in weights.values()]
    kept = _kept_by_tasks(shapes, free, schedule, scope, committed, names)
    if not all(map(sum, kept)) and isinstance(schedule, Shares):
        task = names[committed + [sum(counts) > 0 for counts in kept].index(False)]
        raise ArgumentError("shares", f"a larger share for task {task!r}, which would get no weight", schedule.shares)
    if not all(map(sum, kept)):
        p = schedule.final_prune
        fewer = (EqualShare(p, tasks, rounds) for tasks in range(num_tasks - 1, committed, -1))
        fits = (s.num_tasks for s in fewer if all(map(sum, _kept_by_tasks(shapes, free, s, scope, committed, names))))
        most = next(fits, committed)
        expected = f"at most {most} with final_prune={p:g}: with more tasks, some would get no weight"
        raise ArgumentError("num_tasks", expected, num_tasks)
    free = [f - sum(counts) for f, counts in zip(free, zip(*kept, strict=True), strict=True)]
    counts_are_known, outputs = PRUNE_SCOPES[scope] is not None, outputs_by_path(packed)
    layers = tuple(
        LayerPlan(
            path=path,
            shape=shape,
            outputs=outputs[path],
            kept=tuple(counts[index] for counts in kept) if counts_are_known else None,
            free=free[index] if counts_are_known else None,
        )
        for index, (path, shape) in enumerate(zip(weights, shapes, strict=True))
    )
    return CapacityPlan(
        first_task=committed + 1,
        tasks=num_tasks - committed,
        final_prune=schedule.final_prune if shares is None else sum(free) / sum(map(math.prod, shapes)),
        prune_rounds=prune_rounds if shares is None else schedule.get_config()["rounds"],
        scope=scope,
        layers=layers,
        kept=tuple(map(sum, kept)),
        free=sum(free),
        weights=sum(math.prod(shape) for shape in shapes),
        last_task=packed.task_names[committed - 1] if committed else None,
        frees=sum(task.frees for task in packed.tasks),
        **_bytes(packed, num_tasks),
    )


def _schedule(num_tasks: int | None, final_prune: float | None, prune_rounds: int, shares: Any) -> EqualShare:
    if shares is None:
        for name, value in {"num_tasks": num_tasks, "final_prune": final_prune}.items():
            if value is None:
                raise ArgumentError(name, "a number, or shares=...", value)
        assert num_tasks is not None
        assert final_prune is not None
        return EqualShare(final_prune, num_tasks, prune_rounds)
    if final_prune is not None:
        raise ArgumentError("final_prune", "None, because the shares say how much stays free", final_prune)
    schedule = shares if isinstance(shares, Shares) else Shares(shares, prune_rounds)
    if num_tasks not in (None, schedule.num_tasks):
        raise ArgumentError("num_tasks", f"{schedule.num_tasks}, as many as there are shares", num_tasks)
    return schedule


def _names(committed: list[str], schedule: EqualShare) -> list[str]:
    """Return the names of the committed and the planned tasks."""
    planned = schedule.names(committed)
    if planned is None:
        planned = [f"task_{number}" for number in range(len(committed) + 1, schedule.num_tasks + 1)]
    return [*committed, *planned]


Shapes = list[tuple[int, ...]]


def _kept_by_tasks(
    shapes: Shapes, free: list[int], schedule: EqualShare, scope: str, committed: int, names: Sequence[str]
) -> list[list[int]]:
    """Return, for each task after the `committed` ones, how many weights of each layer it keeps."""
    kept, free = [], list(free)
    weights = sum(map(math.prod, shapes))
    for task in range(committed, min(schedule.num_tasks, len(names)) if schedule.names() is None else len(names)):
        of_task = schedule.for_task(task + 1, names[: task + 1], sum(free) / weights)
        kept.append(kept_by_task(shapes, free, of_task, scope, task))
        free = [f - k for f, k in zip(free, kept[-1], strict=True)]
    return kept


def kept_by_task(shapes: Shapes, free: list[int], schedule: EqualShare, scope: str, committed: int) -> list[int]:
    """Return how many weights of each layer the next task after `committed` tasks keeps."""
    left, densities_of = list(free), PRUNE_SCOPES[scope]
    for prune_round in range(1, schedule.rounds + 1):
        fraction = schedule.kept_fraction(prune_round)
        if densities_of is None:  # only the sum is known: distribute it in proportion to the size of the layers
            left = _distributed(remaining(sum(free), fraction), free)
        else:
            left = counts_to_keep(shapes, left, free, fraction, densities_of, schedule.largest_share(committed))
    return left


def _distributed(total: int, sizes: list[int]) -> list[int]:
    """Divide `total` in proportion to `sizes` into integers (largest remainder method)."""
    whole = max(1, sum(sizes))
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: -(total * sizes[index] % whole))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


def outputs_by_path(packed: PackedModel) -> dict[str, int]:
    """Return the number of outputs that each kernel computes, by path; for convolutions, per position."""
    layers = layers_by_path(packed)
    return {
        path: _outputs(layers[path.rpartition("/")[0]], path.rpartition("/")[2], tuple(weight.variable.shape))
        for path, weight in lifecycle.masked_weights(packed).items()
    }


def _outputs(layer: keras.Layer, name: str, shape: tuple[int, ...]) -> int:
    if isinstance(layer, keras.layers.EinsumDense):
        read, rest = layer.equation.split(",")
        kernel, _ = rest.split("->")
        return math.prod(size for size, axis in zip(shape, kernel, strict=True) if axis not in read)
    transposed = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
    if isinstance(layer, transposed):
        return shape[-2]
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    if isinstance(layer, depthwise) or name == "depthwise_kernel":
        return shape[-1] * shape[-2]
    return shape[-1]


def _bytes(packed: PackedModel, num_tasks: int) -> dict[str, int]:
    """Return memory and disk space. A kernel has two float variables (trainable and frozen) and a uint8 owner map."""
    layers = lifecycle.task_layers(packed)
    kernels = sum(math.prod(w.variable.shape) for layer in layers for w in layer.masked_weights)
    base = sum(math.prod(w.base.shape) for layer in layers for w in layer.masked_weights if w.base is not None)
    unpruned = sum(math.prod(w.variable.shape) for layer in layers for w in layer.task_weights)
    committed_unpruned = sum(
        math.prod(w.variable.shape) * (num_tasks if w.policy == "per_task" else 1)
        for layer in layers
        for w in layer.task_weights
    )
    others = sum(
        math.prod(variable.shape)
        for layer in all_layers(packed)
        if not isinstance(layer, TaskLayer)
        for variable in own_variables(layer)
    )
    floats = 2 * kernels + base + 2 * unpruned + committed_unpruned + others
    pack_bytes = floats * FLOAT_BYTES + kernels
    return {
        "training_bytes": pack_bytes + (kernels + unpruned) * ADAM_BYTES,
        "pack_bytes": pack_bytes,
        "export_bytes": (kernels + unpruned + others) * FLOAT_BYTES,
    }
