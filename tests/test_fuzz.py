"""Random command lines are accepted, or refused with one line: without a traceback, and without writing files."""

import contextlib
import io
import os
import string
from pathlib import Path
from random import Random

import pytest

from tests.conftest import launch
from tf_packnet.command_line.parsing import UsageError
from tf_packnet.command_line.program import run_program
from tf_packnet.command_line.run_command import parse_command
from tf_packnet.command_line.run_flags import define_flags
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import definitions
from tf_packnet.runs import config, method_options, network_options, output
from tf_packnet.runs.paths import ExperimentPaths
from tf_packnet.system.images import RESIZES
from tf_packnet.tasks.scenarios import SCENARIOS
from tf_packnet.tasks.sources import check_name

NAMES = [name for names in define_flags()[1].values() for name in names]
SPECIAL = ["flagfile", "undefok", "noexport", "nodry_run", "help_", "final_prun", ""]
CHOICES = {
    "model": network_options.MODELS, "fc8192": network_options.FC8192, "approach": method_options.APPROACHES,
    "budget": method_options.BUDGETS, "model_args": ("{}",), "weights": ("none", "w.keras"), "exclude": ("a", "a,b"),
    "freed_weights": method_options.FREED_WEIGHTS, "head": method_options.HEADS,
    "bias_policy": method_options.BIAS_POLICIES, "scenario": SCENARIOS, "class_order": ("shuffled", "3,1", "natural,1"),
    "task_order": ("shuffled", "2", "0-1,2-3"), "classes_per_task": ("all", "5", "3,2"), "resize": RESIZES,
    "prune_scope": tuple(method_options.PRUNE_SCOPES), "optimizer": config.OPTIMIZERS, "strategy": config.STRATEGIES,
    "precision": config.PRECISIONS, "jit": config.JIT, "data_residency": config.RESIDENCIES,
    "experiment": tuple(definitions.EXPERIMENTS), "export": ("true", "false"), "dry_run": ("true", "false"),
    "dataset": ("digits", "mnist", ".", "a,b"), "hidden_units": ("8", "8,8", "16,4,2"), "seeds": ("2", "3,4", "5,"),
    "final_prune": ("0.5", "0.75", "1e-9", "0.999999"), "learning_rate": ("1e-3", "1e30", "1"),
    "validation_fraction": ("0", "0.5"), "dropout": ("0", "0.9"), "output_dir": ("out", "a/b"),
    "stages_dir": ("stages",), "data_dir": ("data",), "logical_devices": ("2", "4"),
    "sweep": ("final_prune=0.5,0.7", "seed=1,2", "prune_rounds=1,3", "approach=packnet,memory", "dataset=digits,./x"),
}  # fmt: skip
JUNK = [
    "", " ", "0", "-1", "1e309", "nan", "-inf", "0.5", "1,2", ",", ",,1", "None", "true", "é", "１", "\0", "a\0b", "\n",
    "\r",
    "\x1b[2J", "\ud800", "日本語", "🎲", "9" * 90, "9" * 5000, "0x" + "f" * 5000, "-" + "9" * 101, "0x10", "1_000",
    "1e-320",
    str(10**12), str(2**31), str(2**63), f"{10**12},{10**12}", ",".join(["1"] * 500), "--x", "--flagfile=x", "a b",
    "/", "..",
    "-", "~nobody", "~nobody/x", "~", "/dev/zero", "/dev/null", "/proc/self/mem", "../../x", "x" * 300, "y/" * 3000,
    "%s%n",
    "{0}", "$(id)", "';--", "mnist:9.9.9", "mnist/none", "a:b:c", "./none", "gs://bucket/x", "seed=" + "1," * 30 + "2",
    "final_prune=0.5", "final_prune=", "=", "nothing=1", "hidden_units=1,2", "seed=0,1,2=3",
    "dataset=" + "a" * 300 + ",b",
    "prune_rounds=7", "train_epochs=" + ",".join(map(str, range(1, 300))),
]  # fmt: skip


def value_of(random: Random, name: str, junk: float) -> str:
    """A value that the flag may have, but for the share `junk`."""
    if random.random() >= junk:
        return random.choice(CHOICES.get(name, ("1", "2", "3", "6")))
    if random.random() < 0.8:
        return random.choice(JUNK)
    return "".join(random.choice(string.printable) for _ in range(random.randint(0, 40)))


def flag(random: Random, junk: float) -> list[str]:
    name = random.choice(SPECIAL if random.random() < junk / 5 else NAMES)
    value = value_of(random, name, junk)
    if random.random() > junk:
        return [f"--{name}={value}"]
    return random.choice([[f"--{name}={value}"], [f"--{name}", value], [f"-{name}={value}"], [f"--{name}"], [value]])


def line(random: Random, folder: os.PathLike) -> list[str]:
    """A command line, some with a file of flags: of text or of bytes, with itself in it or a folder."""
    if random.random() < 0.5:  # all is well but for one flag
        flags = [part for junk in [0.0] * random.randint(0, 3) + [1.0] for part in flag(random, junk)]
    else:
        flags = [part for _ in range(random.randint(1, 5)) for part in flag(random, 0.2)]
    if random.random() < 0.25:
        path = os.path.join(folder, f"{random.randrange(8)}.flags")
        kind = random.random()
        if not os.path.isdir(path):
            with open(path, "wb") as file:
                if kind < 0.6:
                    inside = [part for _ in range(random.randint(0, 4)) for part in flag(random, 0.2)]
                    file.write("\n".join(["# junk", *inside]).encode(errors="surrogatepass"))
                elif kind < 0.8:
                    file.write(f"--flagfile={folder}/{random.randrange(9)}.flags\n--seed=1".encode())
                else:
                    file.write(random.randbytes(random.randrange(3000)))
        flags.insert(random.randrange(len(flags) + 1), f"--flagfile={random.choice([path, str(folder)])}")
    return flags


def looked_at(arguments: list[str]) -> None:
    """All that the launcher looks at before it starts TensorFlow."""
    asked = parse_command(["main.py", *arguments])
    output.check_stages_dir(asked.stages_dir, Path("stages"))
    if asked.experiment is None:
        check_name(asked.config.dataset, asked.config.data_dir)
        output.check(asked.config)
    else:
        for each in asked.experiment.configs[:5]:
            check_name(each.dataset, each.data_dir)
        definitions.check_experiment(asked.experiment, ExperimentPaths(definitions.experiment_folder(asked.experiment)))


def fuzz(lines: int, seed: int, folder, monkeypatch) -> int:
    """Look at many random lines; return how many were accepted."""
    work, files = folder / "work", folder / "files"
    work.mkdir()
    files.mkdir()
    monkeypatch.chdir(work)
    random, taken = Random(seed), 0
    for _ in range(lines):
        arguments = line(random, files)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                looked_at(arguments)
            taken += 1
        except (UsageError, ArgumentError):
            pass
        except SystemExit:  # --help and --version
            pass
        except Exception as error:
            raise AssertionError(f"not refused but failed: {arguments}") from error
        assert list(work.iterdir()) == [], arguments
    return taken


def test_random_lines_are_accepted_or_refused(tmp_path, monkeypatch):
    assert 60 < fuzz(1000, 0, tmp_path, monkeypatch) < 900


@pytest.mark.slow
def test_many_random_lines(tmp_path, monkeypatch):
    assert 300 < fuzz(5000, 1, tmp_path, monkeypatch) < 4500


def test_dry_runs_of_accepted_lines_end_with_0_or_2(tmp_path, monkeypatch, capsys):
    """The whole launcher, in this process."""
    codes = [dry_run(arguments, tmp_path, monkeypatch, capsys) for arguments in valid_lines(60)]
    assert set(codes) == {0, 2}
    assert codes.count(0) > 10


@pytest.mark.parametrize("lines", [slice(2), pytest.param(slice(2, 26), marks=pytest.mark.slow)])
def test_dry_runs_in_processes_of_their_own(lines, tmp_path):
    for arguments in valid_lines(26)[lines]:
        done = launch(*arguments, "--dry_run", f"--output_dir={tmp_path / 'out'}", cwd=tmp_path)
        assert done.returncode in (0, 2), (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert (done.stdout == "") == (done.returncode == 2)
        assert list(tmp_path.iterdir()) == []


# What a dry run does not read, or what takes long for what it tells.
NOT_DRY = ("output_dir", "stages_dir", "data_dir", "logical_devices", "strategy", "dry_run", "dataset", "model")


def valid_lines(lines: int) -> list[list[str]]:
    """Lines of values that are possible each by itself."""
    random = Random(2)
    names = [name for name in CHOICES if name in config.Config.__dataclass_fields__ and name not in NOT_DRY]
    names += ["num_tasks", "classes_per_task", "train_epochs", "batch_size", "seed"]
    return [
        ["--hidden_units=8,8", *(f"--{name}={value_of(random, name, 0.05)}" for name in random.sample(names, 4))]
        for _ in range(lines)
    ]


def dry_run(arguments, folder, monkeypatch, capsys) -> int:
    monkeypatch.chdir(folder)
    code = run_program("launch", ["main.py", *arguments, "--dry_run"])
    said = capsys.readouterr()
    assert (said.out == "") == (code == 2), arguments
    assert said.err.count("\n") == (code == 2), said.err
    assert list(folder.iterdir()) == []
    return code
