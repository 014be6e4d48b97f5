"""Stages by their content: the key of a stage says all that its outcome depends on.

Two runs that agree on everything up to a stage agree on its key, and share its outcome: the first task's training for
every `N` and `p` of a seed, all of it for runs that are the same.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tf_packnet.pruning.policies import PRUNE_RETRAIN, TRAIN
from tf_packnet.runs.config import Config, fields_in
from tf_packnet.runs.options import StageKey

# To be raised when a change of the code changes what a stage computes.
SCHEMA = 2

# The config fields by where stage keys contain them; the fields declare it.
NETWORK = fields_in(StageKey.NETWORK)
TRAINING = fields_in(StageKey.TRAINING)
DAY = fields_in(StageKey.TRAIN_STAGE)
LATER_DAYS = fields_in(StageKey.LATER_TRAIN_STAGES)
NIGHT = fields_in(StageKey.PRUNE_RETRAIN_STAGE)
JOINT = fields_in(StageKey.BASELINES)
IN_THE_DATA = fields_in(StageKey.COVERED_BY_DATA)
IN_THE_CHOICE = fields_in(StageKey.COVERED_BY_EXECUTION)
NOWHERE = fields_in(StageKey.NO_EFFECT)


@dataclass(frozen=True)
class Stage:
    """A unit of work and of resume: the training of one lesson, or its night.

    Attributes:
        key: Names the stage by all that it depends on.
        name: `train` or `prune+retrain`.
        lesson: Number of the lesson, that of its last task (1-based).
        epochs: How many epochs it takes.
        shared: Whether runs with another `p` or `N` begin with it too.
    """

    key: str
    name: str
    lesson: int
    epochs: int
    shared: bool


def chain(config: Config, lessons: Sequence[int], data: str, choice: dict[str, Any]) -> list[Stage]:
    """The stages of a run, in order.

    Args:
        config: The run.
        lessons: Numbers of its lessons.
        data: Fingerprint of the examples.
        choice: What was chosen automatically on this machine, such as what XLA compiles.
    """
    values = config.to_json()

    def pick(names: Sequence[str]) -> dict[str, Any]:
        return {name: values[name] for name in names}

    joint = [] if config.approach == "packnet" else JOINT
    parent = _digest({"schema": SCHEMA, "data": data, "choice": choice, **pick([*NETWORK, *TRAINING, *joint])})
    stages = []
    for position, lesson in enumerate(lessons):
        for name, epochs, fields in (
            (TRAIN, config.train_epochs, [*DAY, *(LATER_DAYS if position else [])]),
            (PRUNE_RETRAIN, config.retrain_epochs, NIGHT),
        ):
            parent = _digest({"parent": parent, "stage": name, "lesson": lesson, **pick(fields)})
            stages.append(Stage(parent, name, lesson, epochs, shared=not stages))
    return stages


def shared_beginning(config: Config) -> str:
    """The same for runs that begin with the same stage, as far as can be told before data and machine are known."""
    values = config.to_json()
    decisive = [
        *NETWORK,
        *TRAINING,
        *DAY,
        *IN_THE_DATA,
        *IN_THE_CHOICE,
        *([] if config.approach == "packnet" else JOINT),
    ]
    return json.dumps({name: values[name] for name in decisive}, sort_keys=True)


def _digest(inputs: dict[str, Any]) -> str:
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
