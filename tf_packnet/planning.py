"""What a pack will hold, before anything is trained: weights by layer and task, memory, disk."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers import TaskLayer
from tf_packnet.packed.ownership_table import plan_table
from tf_packnet.packed_model import PackedModel
from tf_packnet.packing import pack
from tf_packnet.pruning import ownership
from tf_packnet.pruning.policies import PRUNE_SCOPES
from tf_packnet.pruning.ranking import counts_to_keep, remaining
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.structure.places import by_place

FLOAT = 4  # bytes
ADAM = 2 * FLOAT  # two moments


@dataclass(frozen=True)
class LayerPlan:
    """One kernel.

    Attributes:
        path: Its path.
        shape: Its shape.
        outputs: How many numbers it computes from an input, or a place of it.
        kept: Weights that each task to come will own; None with scope `global`, which decides by the values.
        free: Weights that are free after all of them; None likewise.
    """

    path: str
    shape: tuple[int, ...]
    outputs: int
    kept: tuple[int, ...] | None
    free: int | None


@dataclass(frozen=True)
class CapacityPlan:
    """What `plan` found; as text, a table with what to look out for.

    Attributes:
        first_task: Number (1-based) of the first task to come.
        tasks: How many tasks are to come.
        final_prune: `p`.
        prune_rounds: `N`.
        scope: How a round's count is shared between layers.
        layers: A plan a kernel.
        kept: Weights that each task to come will own.
        free: Weights that are free after all.
        weights: Weights of all kernels.
        training_bytes: Memory that the weights, their masks and Adam's moments take.
        pack_bytes: Disk that a saved pack takes, without the optimizer's state.
        export_bytes: Disk that the weights of a task's dense SavedModel take.
    """

    first_task: int
    tasks: int
    final_prune: float
    prune_rounds: int
    scope: str
    layers: tuple[LayerPlan, ...]
    kept: tuple[int, ...]
    free: int
    weights: int
    training_bytes: int
    pack_bytes: int
    export_bytes: int

    def too_few(self) -> list[tuple[str, int, int, int]]:
        """Where a task gets fewer weights than the layer has outputs: `(path, task, weights, outputs)`."""
        return [
            (layer.path, self.first_task + index, count, layer.outputs)
            for layer in self.layers
            for index, count in enumerate(layer.kept or ())
            if count < layer.outputs
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return plan_table(self)


def plan(
    model: keras.Model,
    num_tasks: int,
    final_prune: float,
    prune_rounds: int = 1,
    scope: str = "layer",
    **pack_arguments: Any,
) -> CapacityPlan:
    """What `num_tasks` tasks will get of a model's weights, exactly as the prune rounds will count.

    Args:
        model: A Keras model, or a pack, whose tasks count among `num_tasks`.
        num_tasks: `T`, how many tasks the network is to hold.
        final_prune: `p`, fraction of the weights that is still free after all of them, in (0, 1).
        prune_rounds: `N`, prune rounds a task.
        scope: How a round's count is shared between layers: `layer`, `global` or `erk`.
        **pack_arguments: As for `pack`, for a model that is none yet.

    Returns:
        The plan; print it.

    Raises:
        ArgumentError: If an argument is out of range, or there is no room for so many tasks; the message says for how
            many there is.
    """
    schedule = EqualShare(final_prune, num_tasks, prune_rounds)
    check_choice("scope", scope, PRUNE_SCOPES)
    packed = model if isinstance(model, PackedModel) else pack(model, **pack_arguments)
    done = packed.committed_tasks
    if done >= num_tasks:
        raise ArgumentError("num_tasks", f"more than the {done} tasks that the pack holds already", num_tasks)
    weights = lifecycle.masked_weights(packed)
    shapes = [weight.variable.shape for weight in weights.values()]
    free = [ownership.count_uncommitted(weight.owner_map()) for weight in weights.values()]
    kept = _kept_by_all(shapes, free, schedule, scope, done)
    if not all(map(sum, kept)):
        fewer = (EqualShare(final_prune, tasks, prune_rounds) for tasks in range(num_tasks - 1, done, -1))
        fits = (s.num_tasks for s in fewer if all(map(sum, _kept_by_all(shapes, free, s, scope, done))))
        expected = f"at most {next(fits, done)} with final_prune={final_prune:g}: of more, some would get no weight"
        raise ArgumentError("num_tasks", expected, num_tasks)
    free = [f - sum(counts) for f, counts in zip(free, zip(*kept, strict=True), strict=True)]
    # What a global ranking takes of each layer depends on the values.
    known = scope != "global"
    layers = tuple(
        LayerPlan(
            path,
            tuple(shape),
            outputs_of(packed, path),
            tuple(counts[index] for counts in kept) if known else None,
            free[index] if known else None,
        )
        for index, (path, shape) in enumerate(zip(weights, shapes, strict=True))
    )
    return CapacityPlan(
        done + 1,
        num_tasks - done,
        final_prune,
        prune_rounds,
        scope,
        layers,
        tuple(map(sum, kept)),
        sum(free),
        sum(math.prod(shape) for shape in shapes),
        **_bytes(packed, num_tasks),
    )


def _kept_by_all(shapes, free, schedule, scope, committed) -> list[list[int]]:
    """What each task to come keeps of each layer."""
    kept, free = [], list(free)
    for task in range(committed, schedule.num_tasks):
        kept.append(_kept_by_a_task(shapes, free, schedule, scope, task))
        free = [f - k for f, k in zip(free, kept[-1], strict=True)]
    return kept


def _kept_by_a_task(shapes, free, schedule, scope, committed) -> list[int]:
    left = list(free)
    for prune_round in range(1, schedule.rounds + 1):
        fraction = schedule.kept_fraction(prune_round)
        if scope == "global":  # only the sum is known; it is shared out evenly to go on counting
            left = _shared_out(remaining(sum(free), fraction), free)
        else:
            left = counts_to_keep(shapes, left, free, fraction, scope, schedule.largest_share(committed))
    return left


def _shared_out(total: int, sizes: list[int]) -> list[int]:
    """`total` in whole shares in proportion to `sizes`: none is larger than its size, the most cut get one more."""
    whole = max(1, sum(sizes))
    shares = [total * size // whole for size in sizes]
    most_cut = sorted(range(len(sizes)), key=lambda place: -(total * sizes[place] % whole))
    for place in most_cut[: total - sum(shares)]:
        shares[place] += 1
    return shares


def outputs_of(packed: PackedModel, path: str) -> int:
    """How many numbers the kernel at `path` computes from an input, or a place of it."""
    place, _, name = path.rpartition("/")
    layer = by_place(packed)[place]
    shape = getattr(layer, f"_{name}").shape
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
    """Memory and disk: a kernel lies in two variables of floats, its owners in one of bytes."""
    layers = lifecycle.task_layers(packed)
    kernels = sum(math.prod(w.variable.shape) for layer in layers for w in layer.masked_weights)
    base = sum(math.prod(w.base.shape) for layer in layers for w in layer.masked_weights if w.base is not None)
    single = sum(math.prod(w.variable.shape) for layer in layers for w in layer.task_weights)
    copies = sum(
        math.prod(w.variable.shape) * (num_tasks if w.policy == "per_task" else 1)
        for layer in layers
        for w in layer.task_weights
    )
    others = sum(
        math.prod(variable.shape)
        for layer in packed._flatten_layers()
        if not isinstance(layer, TaskLayer)
        for variable in layer._trainable_variables + layer._non_trainable_variables
    )
    at_rest = kernels * (2 * FLOAT + 1) + (base + 2 * single + copies + others) * FLOAT
    return {
        "training_bytes": at_rest + (kernels + single) * ADAM,
        "pack_bytes": at_rest,
        "export_bytes": (kernels + single + others) * FLOAT,
    }
