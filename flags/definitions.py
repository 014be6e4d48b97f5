"""Every flag of the launcher, by theme, with its help. Defaults and validators come from `Config`."""

from collections.abc import Callable
from typing import Any

from absl import flags

from flags.parsers import BooleanParser, FloatParser, IntegerListParser, IntegerParser, SeedsParser
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import definitions
from tf_packnet.runs import config

Define = Callable[..., None]

# Processes, threads or evaluations: more than any machine has use for.
MANY = 1000


def define_flags() -> tuple[flags.FlagValues, dict[str, list[str]]]:
    """Declares all flags on a fresh `FlagValues`.

    Returns:
        The flags, not parsed yet, and their names by theme.
    """
    values = flags.FlagValues()
    themes: dict[str, list[str]] = {}
    for theme, declare in _THEMES.items():
        names = themes[theme] = []

        def define(name: str, help_text: str, parser: flags.ArgumentParser = _STRING, names=names) -> None:
            serializer = (
                flags.ListSerializer(",") if isinstance(parser, IntegerListParser) else flags.ArgumentSerializer()
            )
            names.append(name)
            default = config.default(name)
            if isinstance(parser, BooleanParser):
                flags.DEFINE_flag(_boolean_flag(name, default, help_text, parser), values)
            else:
                flags.DEFINE(parser, name, default, help_text, values, serializer)
            if name in config.CHECKS:
                flags.register_validator(name, _validator(name), flag_values=values)

        declare(define)
    dry_run = "Print what each task will get of each layer, and what it takes in memory and on disk; train nothing."
    flags.DEFINE_flag(_boolean_flag("dry_run", False, dry_run, _BOOLEAN), values)
    themes["Output"].append("dry_run")
    themes["Experiments"] = _experiments(values)
    return values, themes


def _experiments(values: flags.FlagValues) -> list[str]:
    """What makes several runs of one; no fields of a `Config`."""

    def define(name: str, default: Any, help_text: str, parser: flags.ArgumentParser = _STRING) -> None:
        flags.DEFINE(parser, name, default, help_text, values, flags.ArgumentSerializer())

    flags.DEFINE_enum(
        "experiment",
        None,
        definitions.EXPERIMENTS,
        "The paper's figures and table, with the paper's values: figure1 accuracy against p for the three approaches; "
        "figure2 against N on a fixed budget; figure3 and table1 the pruning at which the bounds are as accurate as "
        "packnet; figure4 against N without a budget. sweep: what --sweep names.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "NAME=VALUE,VALUE: one run for each value of that flag. Given again for another flag: one for every "
        "combination. With --experiment: other values than the paper's for what it varies.",
        flag_values=values,
    )
    define(
        "seeds",
        None,
        "How many seeds to run every setting with, from --seed on; or the seeds themselves, such as 3,5,8 (one: 3,). "
        "Default: 10 for figure2 and figure4, 5 for figure1, figure3 and table1, 1 for a sweep.",
        SeedsParser(),
    )
    define("evaluations", 10, "Prunings that figure3 and table1 may try for each bound and p.", _INTEGER)
    define(
        "workers", None, "Runs of an experiment that go on at once. Default: as many as the cores can feed.", _INTEGER
    )
    define(
        "threads",
        1,
        "Threads of each. One is fastest where there are runs for all cores, and its results do not depend on how many "
        "cores there are.",
        _INTEGER,
    )
    define(
        "stages_dir",
        None,
        "Where the outcomes of stages lie, to share them between experiments and runs. Default: stages/ in "
        "--output_dir.",
    )
    for name in ("evaluations", "workers", "threads"):
        flags.register_validator(name, _from_one_to_many, flag_values=values)
    flags.register_validator("stages_dir", _validator("output_dir"), flag_values=values)
    return ["experiment", "sweep", "seeds", "evaluations", "workers", "threads", "stages_dir"]


def _from_one_to_many(value: int | None) -> bool:
    if value is not None and not 1 <= value <= MANY:
        raise flags.ValidationError(f"expected at least 1 and at most {MANY:,}")
    return True


def _boolean_flag(name: str, default: bool, help_text: str, parser: BooleanParser) -> flags.BooleanFlag:
    flag = flags.BooleanFlag(name, default, help_text)
    flag.parser = parser
    return flag


def _validator(name: str) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        try:
            config.check_field(name, value)
        except ArgumentError as error:
            raise flags.ValidationError(f"expected {error.expected}") from error
        return True

    return holds


_STRING, _INTEGER, _FLOAT = flags.ArgumentParser(), IntegerParser(), FloatParser()
_INTEGERS, _BOOLEAN = IntegerListParser(), BooleanParser()


def _data(define: Define) -> None:
    define(
        "dataset",
        "digits (embedded, no network); a TFDS image classification set such as mnist or cifar10; or a folder of your "
        "own such as ./data, with a folder a task, in that a folder a class, in that images.",
    )
    define("data_dir", "Where TFDS keeps its data sets. Default: TFDS's own, $TFDS_DATA_DIR or ~/tensorflow_datasets.")
    define("classes_per_task", "Classes of each task, in the data set's order.", _INTEGER)
    define("num_tasks", "T, how many tasks to learn. Default: as many as the classes give.", _INTEGER)
    define(
        "validation_fraction", "Share of the training examples to hold out for choices; test is for reporting.", _FLOAT
    )


def _network(define: Define) -> None:
    define("model", f"{_or(config.MODELS)}: the paper's fully connected or convolutional network.")
    define("hidden_units", "Sizes of the hidden layers of --model=mlp.", _INTEGERS)
    define(
        "fc8192",
        f"{_or(config.FC8192)}: how --model=conv reads 'fc8192' in the paper's table: as the 8,192 flattened features, "
        "or as one more dense layer of 8,192 units.",
    )
    define("dropout", "Dropout before and between the dense layers of --model=conv.", _FLOAT)


def _method(define: Define) -> None:
    define(
        "approach",
        f"{_or(config.APPROACHES)}: task by task with frozen weights; or the paper's bounds, which freeze nothing: "
        "task i on the data of tasks 1 to i with one growing mask, or all tasks at once.",
    )
    define("train_epochs", "E, epochs that each task trains on the free weights: the day.", _INTEGER)
    define("retrain_epochs", "B, the budget of epochs to retrain in after pruning: the night.", _INTEGER)
    define("prune_rounds", "N, prune rounds a task; each is followed by B/N epochs, so N divides B.", _INTEGER)
    define("final_prune", "p, fraction of the prunable weights that is still free after all tasks.", _FLOAT)
    define(
        "budget",
        f"{_or(config.BUDGETS)}: what memory and multinet spend, as many gradient steps as packnet, or as many epochs "
        "of their larger data.",
    )
    define(
        "freed_weights",
        f"{_or(config.FREED_WEIGHTS)}: how weights that a task gives back start the next one: at zero, as they were "
        "when pruned, or from a fresh draw.",
    )
    define(
        "head", f"{_or(config.HEADS)}: an unpruned output layer a task, or one for all that is pruned like the rest."
    )
    define(
        "bias_policy",
        f"{_or(config.BIAS_POLICIES)}: biases are trained by task 1 and frozen, or each task has its own.",
    )
    define(
        "prune_scope",
        f"{_or(config.PRUNE_SCOPES)}: weights compete within their layer, over all layers, or within "
        "Erdos-Renyi-Kernel layer shares.",
    )


def _training(define: Define) -> None:
    define("optimizer", f"{_or(config.OPTIMIZERS)}. momentum is SGD with momentum 0.9.")
    define("learning_rate", "Learning rate of the optimizer.", _FLOAT)
    define("batch_size", "Examples a gradient step, over all replicas.", _INTEGER)
    define("seed", "Fixes every draw: on CPU the same seed gives the same bits.", _INTEGER)


def _machine(define: Define) -> None:
    define("strategy", f"{_or(config.STRATEGIES)}: auto and mirrored use all GPUs, when there are two or more.")
    define("logical_devices", "With --strategy=mirrored: run on that many logical CPU devices.", _INTEGER)
    define(
        "precision",
        f"{_or(config.PRECISIONS)}: what the network computes in; weights are float32 in any case. On a CPU "
        "mixed_bfloat16 pays where it has AVX512-BF16 or AMX.",
    )
    define(
        "jit",
        f"{_or(config.JIT)}: compile with XLA. auto compiles whole gradient steps; for convolutions on CPU the masks "
        "and the optimizer only; on replicas nothing.",
    )
    define(
        "data_residency",
        f"{_or(config.RESIDENCIES)}: keep the training examples in the device's memory and shuffle them there, or "
        "stream them through tf.data; the order is the same. auto keeps what takes up to 1 GiB, but streams to "
        "replicas.",
    )


def _output(define: Define) -> None:
    define("output_dir", "Where everything goes that comes of it. Default: out/<dataset>[-<experiment>].")
    define("export", "Write one SavedModel a task.", _BOOLEAN)
    define("compact", "Leave out of the SavedModels what their task does not use.", _BOOLEAN)
    define(
        "on_corruption",
        f"{_or(config.ON_CORRUPTION)}: what to do about a file of --output_dir that is not as it was written: say so "
        "and make it again, or stop.",
    )


def _or(choices: tuple[str, ...]) -> str:
    return ", ".join(choices[:-1]) + f" or {choices[-1]}" if len(choices) > 1 else choices[0]


_THEMES = {
    "Data": _data,
    "Network": _network,
    "Method": _method,
    "Training": _training,
    "Machine": _machine,
    "Output": _output,
}
