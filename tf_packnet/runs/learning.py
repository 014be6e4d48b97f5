"""Learns a stream of tasks with Algorithm 1 of the paper, stage by stage."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.approaches import Approach
from tf_packnet.approaches.base import Observers
from tf_packnet.callbacks import EpochBackup
from tf_packnet.errors import ArgumentError
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning.policies import PRUNE_RETRAIN, TRAIN
from tf_packnet.reporting import summary
from tf_packnet.runs import corruption, network_files, networks, platforms, setup
from tf_packnet.runs.config import Config
from tf_packnet.runs.corruption import OnDamaged
from tf_packnet.runs.data import load_stream
from tf_packnet.runs.paths import StorePlace
from tf_packnet.runs.results import Results, environment
from tf_packnet.runs.shared_store import open_results, open_store
from tf_packnet.runs.stages import Plans, Stage, chain, results_key
from tf_packnet.runs.store import StageStore, StoredPlans, StoredStages
from tf_packnet.runs.time_shares import StageBudget, TimeShares
from tf_packnet.runs.workers import Workers
from tf_packnet.tasks import Task, TaskStream
from tf_packnet.training import acceleration, fleet, freeze_guard, replicas


@dataclass(frozen=True)
class Run:
    """A run that is ready to learn.

    Attributes:
        config: Its config.
        stream: Its tasks.
        strategy: Its distribution strategy.
        network: Its packed network, not compiled.
        execution: Execution settings: what XLA compiles, where the data is, device, replicas, threads.
        results: Its results so far.
        platform: Properties of the machine that change numerical results, see `platforms.platform`.
        workers: The workers that learn together, of which this process is one.
    """

    config: Config
    stream: TaskStream
    strategy: tf.distribute.Strategy
    network: PackedModel
    execution: dict[str, Any]
    results: Results
    platform: dict[str, Any]
    workers: Workers

    @classmethod
    def prepare(
        cls, config: Config, network_files_before: dict[str, str] | None = None, workers: Workers | None = None
    ) -> "Run":
        """Load the data, build the network and choose the execution settings.

        Args:
            config: The run.
            network_files_before: The fingerprint that the files of the network must have; None accepts any.
            workers: The workers that learn together; None for this process alone.

        Raises:
            ArgumentError: If data, machine or network do not allow the run.
        """
        workers = workers or Workers()
        strategy = setup.choose_strategy(config, workers)
        results = Results(config)
        results.network = network_files.fingerprint(config)
        if network_files_before not in (None, results.network):
            expected = "a network whose files do not change during the experiment"
            raise ArgumentError("model", expected, config.model)
        networks.builder(config)  # raises errors before the data is loaded
        keras.utils.set_random_seed(config.seed)
        with results.timed("load"):
            stream = load_stream(config)
        keras.utils.set_random_seed(config.seed)  # loading may have drawn random numbers
        with strategy.scope():
            network = setup.build_model(config, stream)
        setup.check_validation(config, stream)
        setup.check_tasks(config, stream, network)
        xla = setup.choose_xla(config, network)
        setup.make_deterministic(xla)
        execution = {
            "xla": xla,
            "data_residency": "device" if setup.choose_residency(config, stream) else "stream",
            "device": setup.device(config),
            "replicas": strategy.num_replicas_in_sync,
            "threads": setup.threads(),
            **({"random_numbers": "threefry"} if acceleration.draws_with_threefry(network, xla) else {}),
            **({"workers": workers.count} if workers.count > 1 else {}),
            **({"fleet": "stacked"} if xla == acceleration.STEP and fleet.stacks_steps() else {}),
        }
        results.tasks = [describe(task) for task in stream]
        results.data_fingerprint = stream.fingerprint()
        results.environment = {**environment(), **execution}
        platform = platforms.platform(workers)
        results.computed_on = {"host": platforms.host(), **platform}
        return cls(config, stream, strategy, network, execution, results, platform, workers)

    def stages(self, approach: Approach, plans: Plans = lambda request: None) -> list[Stage]:
        """List the stages of the run, in order; see `chain`."""
        task_numbers = approach.training_task_numbers(len(self.stream))
        data, network = self.results.data_fingerprint, self.results.network
        return chain(self.config, task_numbers, data, self.execution, network, self.platform, plans)

    def build_approach(self, masks_dir: Path | None, observers: Observers) -> Approach:
        """Compile the network and give it to the approach of the config, ready for the first task."""
        resident = self.execution["data_residency"] == "device"
        with self.strategy.scope():
            return setup.build_approach(
                self.network, self.config, self.stream, self.execution["xla"], resident, masks_dir, observers
            )


def learn(
    run: Run,
    approach: Approach,
    store: StageStore,
    with_state: bool,
    on_reused: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Iterator[int]:
    """Learn all tasks: Algorithm 1 of the paper. Stages that are in the store are not computed again.

    Args:
        run: The run; its results grow with every stage.
        approach: Its approach, before the first task.
        store: The store of stages.
        with_state: Whether the network of `approach` is needed when a task is yielded. If not, stored records suffice.
        on_reused: Called with the record of each stage that was in the store.

    Yields:
        The number (1-based) of each task, once it is committed.
    """
    stages = RunStages(run, approach, store, with_state, on_reused)
    for task in stages.task_numbers:
        stages.finish(TRAIN, task)  # train the free weights for E epochs
        stages.finish(PRUNE_RETRAIN, task)  # N rounds: prune, retrain for B/N epochs; then freeze what is kept
        yield task


def learn_only(
    config: Config,
    place: StorePlace,
    observers: Observers,
    on_damaged: OnDamaged | None = None,
    network_files_before: dict[str, str] | None = None,
    log: Callable[[str], None] = corruption.print_line,
) -> dict[str, Any]:
    """Run `config` for its results only, without writing a pack or exports.

    Args:
        config: The run.
        place: Where stages and results are stored.
        observers: Gives further Keras callbacks for every stage.
        on_damaged: Called with every damaged file of the store.
        network_files_before: As for `Run.prepare`.
        log: Shows a line.

    Returns:
        The content of `results.json`. If results are shared, another host may have computed them.

    Raises:
        ArgumentError: Before any training, if data, machine or network do not allow the run.
    """
    run = Run.prepare(config, network_files_before)
    shared = open_results(place, on_damaged)
    key = results_key(config, run.results.data_fingerprint, run.results.network)
    if shared is not None and (finished := shared.read(key, config)) is not None:
        return finished
    approach = run.build_approach(None, observers)
    for _ in learn(run, approach, open_store(place, on_damaged, log), with_state=False):
        pass
    run.results.complete = True
    if shared is not None:
        shared.write(key, run.results.to_json())
    return run.results.to_json()


class RunStages:
    """Finishes the stages of a run one by one, from the store or by training, and adds them to its results.

    Args: As for `learn`.

    Attributes:
        task_numbers: Numbers (1-based) of the tasks to learn. For `multinet`, which learns all tasks together, only the
            last one.
    """

    def __init__(
        self,
        run: Run,
        approach: Approach,
        store: StageStore,
        with_state: bool,
        on_reused: Callable[[dict[str, Any]], None],
    ):
        self.task_numbers = approach.training_task_numbers(len(run.stream))
        plans = StoredPlans(store, run.workers)
        chain = functools.partial(run.stages, approach, plans)
        stages = chain()
        data = {"examples": run.results.data_fingerprint, "network files": run.results.network}
        run.workers.check_equal("the settings", {**run.execution, **data})
        run.workers.check_equal("the stages", {stage.key: stage.task for stage in stages})
        self._run, self._approach, self._on_reused, self._plans = run, approach, on_reused, plans
        self._shares = TimeShares(run.config, len(self.task_numbers), run.workers)
        timed = functools.partial(run.results.timed, "store")
        self._stored = StoredStages(store, stages, approach, with_state, timed, run.workers, chain, plans)
        self._committed: dict[str, str] = {}
        # Cached for both stages of a task, and built only on demand: the baselines concatenate data for it.
        self._training_task = functools.lru_cache(maxsize=1)(functools.partial(approach.training_task, run.stream))

    def finish(self, name: str, task: int) -> None:
        """Finish the next stage: `train` or `prune+retrain` of a task."""
        stage = self._stored.next_stage
        assert (stage.name, stage.task) == (name, task)
        if name == TRAIN:
            self._shares.task_begins()
        finished = self._stored.finish(stage, lambda backup: self._compute(self._stored.next_stage, backup))
        self._committed = finished.record.get("committed", {})  # earlier versions did not record it
        if finished.reused:
            self._on_reused(finished.record)
        timing = self._plans.record(stage.request)
        self._shares.stage_ends(finished.record, timing)
        self._run.results.add_stage(finished.record, finished.reused, timing)

    def _compute(self, stage: Stage, backup: EpochBackup) -> dict[str, Any]:
        budget = self._shares.next_budget() if stage.is_open else None
        task = self._training_task(stage.task)
        record = compute_stage(self._run, self._approach, stage, task, self._committed, backup, budget)
        if budget is not None:
            self._plans.records[stage.request] = budget.report(stage.task)
        return record


def compute_stage(
    run: Run,
    approach: Approach,
    stage: Stage,
    task: Task,
    committed: dict[str, str],
    backup: EpochBackup,
    budget: StageBudget | None = None,
) -> dict[str, Any]:
    """Train one stage, or the rest of it after a backup, and evaluate the network after `prune+retrain`.

    Args:
        run: The run.
        approach: Its approach, in the state after the stage before.
        stage: The stage.
        task: The training examples; of several tasks if they are learned together.
        committed: Checksum of the frozen values of each committed task after the stage before.
        backup: Backs up every epoch.
        budget: The time budget of the stage; None if epochs limit it.

    Returns:
        The record of the stage: JSON values.

    Raises:
        DivergedError: If the loss or a weight is NaN or infinite after an epoch.
        FreezeError: If a frozen value of a committed task has changed.
        ReplicaError: If the replicas of a distribution strategy have different values.
    """
    untrained = None
    if stage.name == TRAIN and stage.task == 1:
        with run.results.timed("evaluate"):
            untrained = approach.unseen_accuracy(run.stream)
    began = time.perf_counter()
    history = approach.run_stage(task, stage.name, backup, stage.round_epochs, budget)
    now_committed = freeze_guard.by_task(approach.packed)
    freeze_guard.check(committed, now_committed)
    replicas.check_equal(approach.packed)
    record = {
        "task": stage.task,
        "stage": stage.name,
        "epochs": stage.epochs if budget is None else sum(budget.round_epochs),
        "seconds": round(time.perf_counter() - began, 3),
        "history": history,
        "committed": now_committed,
        "untrained": untrained,
        "learned": None,
        "environment": run.results.environment,
    }
    if stage.name == PRUNE_RETRAIN:
        with run.results.timed("evaluate"):
            record["learned"] = evaluate(approach, run.stream[: stage.task], run.stream[stage.task :])
    return record


def evaluate(approach: Approach, tasks: Sequence[Task], unseen: Sequence[Task]) -> dict[str, Any]:
    """Measure accuracy on the learned and the unseen tasks, free weights, and weights owned by each learned task."""
    has_validation = all(len(task.splits["validation"]) for task in tasks)
    maps = approach.owner_maps()
    return {
        "accuracy": [approach.accuracy(task) for task in tasks],
        "unseen_accuracy": approach.unseen_accuracy(unseen),
        "validation_accuracy": [approach.accuracy(task, "validation") for task in tasks] if has_validation else [],
        "free_fraction": summary.free_fraction(maps),
        "weights": summary.count_weights(maps, len(tasks)),
    }


def describe(task: Task) -> dict[str, Any]:
    """Describe a task for `results.json`."""
    examples = {split: len(data) for split, data in task.splits.items()}
    return {"number": task.number, "name": task.name, "class_names": list(task.class_names), "examples": examples}
