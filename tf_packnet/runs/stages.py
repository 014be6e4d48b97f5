"""Stages named by content: the key of a stage is a hash of everything that its result depends on.

Two runs that agree on everything up to a stage have the same key there and share its result. For example, all values
of `N` and `p` of one seed share the first task's training.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tf_packnet.pruning.policies import PRUNE_RETRAIN, TRAIN
from tf_packnet.pruning.shares import UNIFORM
from tf_packnet.runs.config import OPTIONS, Config, fields_in
from tf_packnet.runs.method_options import MAX_EPOCHS
from tf_packnet.runs.options import StageKey

# Version of stage keys. Increase it when a code change alters what a stage computes.
SCHEMA = 2

# The config fields by their declared `StageKey`.
NETWORK = fields_in(StageKey.NETWORK)
TRAINING = fields_in(StageKey.TRAINING)
TRAIN_STAGE = fields_in(StageKey.TRAIN_STAGE)
LATER_TRAIN_STAGES = fields_in(StageKey.LATER_TRAIN_STAGES)
PRUNE_RETRAIN_STAGE = fields_in(StageKey.PRUNE_RETRAIN_STAGE)
BASELINES = fields_in(StageKey.BASELINES)
COVERED_BY_DATA = fields_in(StageKey.COVERED_BY_DATA)
COVERED_BY_EXECUTION = fields_in(StageKey.COVERED_BY_EXECUTION)
NO_EFFECT = fields_in(StageKey.NO_EFFECT)


@dataclass(frozen=True)
class Stage:
    """The unit of work and of resume: one `fit` of a run.

    Attributes:
        key: Hash of everything that the result depends on.
        name: `train` or `prune+retrain`.
        task: Number (1-based) of the task that is learned; of tasks learned together, the last one.
        epochs: Epochs of the `fit`.
        shared: Whether runs with another `p` or `N` start with this stage too.
        round_epochs: For `prune+retrain`: the epochs after each prune round, as `EqualShare` takes them.
        request: For a retraining with a time budget: hash of everything that it depends on besides the time it took.
            Under this key the store has its plan: the epochs after each prune round that fitted into the time. `key` is
            then that of a retraining with these epochs.
    """

    key: str
    name: str
    task: int
    epochs: int
    shared: bool
    round_epochs: str | tuple[int, ...] = UNIFORM
    request: str = ""

    @property
    def is_open(self) -> bool:
        """Whether its plan is not known yet. Its key, and those of the stages after it, are then provisional."""
        return self.key == self.request


# Returns the plan under the key of a request; None if there is none yet.
Plans = Callable[[str], Sequence[int] | None]


def chain(
    config: Config,
    task_numbers: Sequence[int],
    data: str,
    execution: dict[str, Any],
    network: Mapping[str, str] = MappingProxyType({}),
    platform: Mapping[str, Any] = MappingProxyType({}),
    plans: Plans = lambda request: None,
) -> list[Stage]:
    """List the stages of a run, in order.

    Args:
        config: The run.
        task_numbers: Numbers of the tasks that get a `train` and a `prune+retrain` stage each.
        data: Fingerprint of the examples.
        execution: Execution settings, such as how much XLA compiles.
        network: `network_files.fingerprint` of the config. It replaces or complements the paths of files.
        platform: Properties of the machine that change numerical results, see `platforms.platform`.
        plans: Looks up the plans of retrainings with a time budget.
    """
    fields = [*NETWORK, *TRAINING, *([] if config.approach == "packnet" else BASELINES)]
    # The words of these inputs are part of every stored key: never rename them.
    machine = {"choice": execution, **({"platform": dict(platform)} if platform else {})}
    parent = _digest({"schema": SCHEMA, "data": data, **machine, **_values(config, fields), **network})
    stages: list[Stage] = []
    for position, task in enumerate(task_numbers):
        fields = [*TRAIN_STAGE, *(LATER_TRAIN_STAGES if position else [])]
        parent = _digest({"parent": parent, "stage": TRAIN, "lesson": task, **_values(config, fields)})
        stages.append(Stage(parent, TRAIN, task, config.train_epochs, shared=not stages))

        inputs = {"parent": parent, "stage": PRUNE_RETRAIN, "lesson": task}
        settings, request = config, ""
        listed = config.lengths_by_task()
        if len(listed) > 1:
            settings = planned(config, [int(length) for length in listed[position]])
        if config.is_timed:
            until = {"deadline": True} if config.deadline else {}  # a run may continue with a later one
            request = _digest({**inputs, **until, **_values(config, PRUNE_RETRAIN_STAGE)})
            plan = plans(request)
            settings = config if plan is None else planned(config, plan)
        parent = request if settings.is_timed else _digest({**inputs, **_values(settings, PRUNE_RETRAIN_STAGE)})
        lengths = settings.lengths_by_task()[0]
        epochs = MAX_EPOCHS if settings.is_timed else settings.retrain_epochs
        stages.append(Stage(parent, PRUNE_RETRAIN, task, epochs, False, lengths, request))
    return stages


def planned(config: Config, lengths: Sequence[int]) -> Config:
    """Return the config with a number of epochs after each prune round instead of a time budget."""
    listed = ",".join(map(str, lengths))
    return dataclasses.replace(
        config, retrain_time=None, deadline=None, retrain_epochs=sum(lengths), round_epochs=listed
    )


def results_key(config: Config, data: str, network: Mapping[str, str]) -> str:
    """Return the key of the results of a run. It is the same on all machines, unlike the keys of its stages.

    Arguments as for `chain`.
    """
    fields = [*NETWORK, *TRAINING, *TRAIN_STAGE, *LATER_TRAIN_STAGES, *PRUNE_RETRAIN_STAGE, *COVERED_BY_EXECUTION]
    fields += [] if config.approach == "packnet" else BASELINES
    return _digest({"schema": SCHEMA, "data": data, "results": _values(config, fields), **network})


def shared_beginning(config: Config) -> str:
    """Return text that is equal for configs whose runs start with the same stage.

    It needs neither the data nor the machine, so that the runs of an experiment can be scheduled by it.
    """
    fields = [*NETWORK, *TRAINING, *TRAIN_STAGE, *COVERED_BY_DATA, *COVERED_BY_EXECUTION]
    fields += [] if config.approach == "packnet" else BASELINES
    return json.dumps(_values(config, fields), sort_keys=True)


def _values(config: Config, fields: Sequence[str]) -> dict[str, Any]:
    """Return the values of `fields` for a key. Omits fields at their neutral value, see `Option`."""
    values = config.to_json()
    return {name: values[name] for name in fields if values[name] != OPTIONS[name].neutral}


def _digest(inputs: dict[str, Any]) -> str:
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
