"""Algorithm 1, stage by stage: what was computed before, by this run or another one, is not computed again."""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.approaches import Approach
from tf_packnet.approaches.base import Observers
from tf_packnet.pruning.policies import PRUNE_RETRAIN
from tf_packnet.reporting import summary
from tf_packnet.runs import setup
from tf_packnet.runs.config import Config
from tf_packnet.runs.corruption import Damaged
from tf_packnet.runs.data import load_stream
from tf_packnet.runs.results import Results, environment
from tf_packnet.runs.stages import Stage, chain
from tf_packnet.runs.store import StageStore
from tf_packnet.tasks import Task, TaskStream
from tf_packnet.training import freeze_guard


@dataclass(frozen=True)
class Run:
    """A config with its tasks and what was chosen for it on this machine."""

    config: Config
    stream: TaskStream
    strategy: tf.distribute.Strategy
    choice: dict[str, Any]
    results: Results

    @classmethod
    def prepared(cls, config: Config) -> "Run":
        """Loads the data and chooses; raises ArgumentError if something in `config` cannot be had."""
        strategy = setup.choose_strategy(config)
        xla = setup.choose_xla(config, strategy)
        setup.make_deterministic(config, xla)
        results = Results(config)
        with results.timed("load"):
            stream = load_stream(config)
        setup.check_can_begin(config, stream)
        choice = {
            "xla": xla,
            "data_residency": "device" if setup.choose_residency(config, strategy, stream) else "stream",
            "device": setup.device(config),
            "replicas": strategy.num_replicas_in_sync,
            "threads": setup.threads(),
        }
        results.tasks = [describe(task) for task in stream]
        results.data_fingerprint = stream.fingerprint()
        results.environment = {**environment(), **choice}
        return cls(config, stream, strategy, choice, results)

    def approach(self, masks_dir: Path | None, observers: Observers) -> Approach:
        """The approach, before its first lesson. Call it in the strategy's scope."""
        keras.utils.set_random_seed(self.config.seed)
        resident = self.choice["data_residency"] == "device"
        return setup.build_approach(self.config, self.stream, self.choice["xla"], resident, masks_dir, observers)


@dataclass(frozen=True)
class Outcome:
    """What came of a stage.

    Attributes:
        record: As the store has it: stage, task, epochs, seconds, history, and what the network can do by then.
        reused: Whether it was found, not computed.
    """

    record: dict[str, Any]
    reused: bool


def learn(
    run: Run,
    approach: Approach,
    store: StageStore,
    with_state: bool,
    found: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Iterator[int]:
    """Algorithm 1, stage by stage; what the store has is not computed again. `run.results` grows with every lesson.

    Args:
        run: The run.
        approach: Its approach, before the first lesson.
        store: Where the outcomes of stages lie.
        with_state: Whether the approach shall know all of a lesson when that is given, or the results suffice.
        found: Called with the record of each stage that is not computed, when its turn comes.

    Yields:
        After each lesson its number (1-based).
    """
    numbers = approach.training_task_numbers(len(run.stream))
    plan = chain(run.config, numbers, run.results.data_fingerprint, run.choice)
    first = store.first_to_compute(plan, with_state)
    if first > 0 and (with_state or first < len(plan)):
        approach.restore(store.state(plan[first - 1]))
    committed: dict[str, str] = {}
    lesson_of = functools.lru_cache(maxsize=1)(functools.partial(approach.training_task, run.stream))
    for index, stage in enumerate(plan):
        if index < first:
            outcome = Outcome(store.record(stage), reused=True)
        else:
            with store.lock(stage):
                outcome = do_stage(run, approach, store, stage, lesson_of(stage.lesson), committed)
        if index > 1 and not plan[index - 2].shared:  # the last but one stays, should the last one be damaged
            store.drop_state(plan[index - 2])
        committed = outcome.record.get("committed", {})  # which earlier versions did not write
        if outcome.reused:
            found(outcome.record)
        run.results.add_stage(outcome.record, outcome.reused)
        if stage.name == PRUNE_RETRAIN:
            yield stage.lesson
    if not with_state:
        for stage in plan[-2:]:
            if not stage.shared:
                store.drop_state(stage)


def learn_only(config: Config, stages_dir: Path, observers: Observers, damaged: Damaged | None = None) -> Results:
    """Runs `config` for its results alone.

    Args:
        config: The run.
        stages_dir: The store of stages.
        observers: What watches every stage.
        damaged: Called with every damaged file of the store.

    Raises:
        ArgumentError: Before any work, if something in `config` cannot be had.
    """
    run = Run.prepared(config)
    with run.strategy.scope():
        approach = run.approach(None, observers)
    for _ in learn(run, approach, StageStore(stages_dir, damaged), with_state=False):
        pass
    run.results.complete = True
    return run.results


def do_stage(
    run: Run, approach: Approach, store: StageStore, stage: Stage, lesson: Task, committed: dict[str, str]
) -> Outcome:
    """Computes a stage, or the rest of it, and stores it, unless another process has done so by now.

    Args:
        run: The run.
        approach: Its approach, as the stage before left it.
        store: Where the outcome goes.
        stage: The stage.
        lesson: Its lesson.
        committed: Checksums of what each task had committed when the stage before ended.

    Raises:
        DivergedError: If the loss or a weight is not finite after an epoch.
        FreezeError: If a value that a task had committed has changed.
    """
    if store.has_state(stage):
        approach.restore(store.state(stage))
        return Outcome(store.record(stage), reused=True)
    began = time.perf_counter()
    backup = store.backup(stage)
    history = approach.run_stage(lesson, stage.name, backup)
    now_committed = freeze_guard.by_task(approach.packed)
    freeze_guard.check(committed, now_committed)
    record = {
        "task": stage.lesson,
        "stage": stage.name,
        "epochs": stage.epochs,
        "seconds": round(time.perf_counter() - began, 3),
        "history": history,
        "committed": now_committed,
        "learned": None,
        "environment": run.results.environment,
    }
    if stage.name == PRUNE_RETRAIN:
        with run.results.timed("evaluate"):
            record["learned"] = evaluate(approach, run.stream[: stage.lesson])
    with run.results.timed("store"):
        store.put(stage, record, approach.state())
        backup.remove()
    return Outcome(record, reused=False)


def describe(task: Task) -> dict[str, Any]:
    """What `results.json` says of a task."""
    examples = {split: len(data) for split, data in task.splits.items()}
    return {"number": task.number, "name": task.name, "class_names": list(task.class_names), "examples": examples}


def evaluate(approach: Approach, learned: list[Task]) -> dict[str, Any]:
    """What the network can do, and what room it has, after learning these tasks."""
    validated = all(len(task.splits["validation"]) for task in learned)
    maps = approach.owner_maps()
    return {
        "accuracy": [approach.accuracy(task) for task in learned],
        "validation_accuracy": [approach.accuracy(task, "validation") for task in learned] if validated else [],
        "free_fraction": summary.free_fraction(maps),
        "weights": summary.count_weights(maps, len(learned)),
    }
