"""Bad input ends with one line on stderr that names the flag and exit code 2, before any training or writing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.conftest import ROOT, launch
from tf_packnet.command_line import program, reference
from tf_packnet.command_line.parsing import UsageError
from tf_packnet.command_line.program import SUBCOMMANDS
from tf_packnet.command_line.run_command import parse_config
from tf_packnet.errors import ArgumentError
from tf_packnet.runs import output
from tf_packnet.runs.config import Config, default
from tf_packnet.runs.corruption import Manifest, checksums
from tf_packnet.runs.results import Results
from tf_packnet.system import files
from tf_packnet.tasks.sources import check_name
from tf_packnet.version import __version__

BAD_FLAGS = [
    ("--final_prune=0", "--final_prune=0.0: expected a fraction between 0 and 1, both exclusive"),
    ("--final_prune=1", "both exclusive"),
    ("--final_prune=1.5", "both exclusive"),
    ("--final_prune=-0.1", "both exclusive"),
    ("--final_prune=nan", "both exclusive"),
    ("--final_prune=half", "--final_prune=half: expected a number"),
    ("--prune_rounds=7", "--prune_rounds=7: expected a divisor of --retrain_epochs=30 (1, 2, 3, 5, 6, 10, 15, 30)"),
    ("--round_epochs=1,2", "--prune_rounds=3: expected 2, as many as in --round_epochs"),
    ("--round_epochs=1,2,5", "--retrain_epochs=30: expected 8, the sum of --round_epochs"),
    ("--round_epochs=0,1,2/1,1", "--retrain_epochs=30: expected 3, the largest sum of --round_epochs"),
    ("--shares=0.5,0.2 --final_prune=0.9", "--final_prune=0.9: expected no value with --shares"),
    ("--final_prune 0.75 --shares=0.5,0.2", "--final_prune=0.75: expected no value with --shares"),
    ("--sweep=shares=0.5+0.2,0.4+0.2 --final_prune=0.9", "--final_prune=0.9: expected no value with --shares"),
    ("--sweep=final_prune=0.5,0.9 --shares=0.5,0.2", "--sweep=final_prune=...: expected no such axis with --shares"),
    ("--experiment=figure1 --shares=0.5,0.2", "--shares=0.5,0.2: expected equal with --experiment=figure1"),
    ("--retrain_time=8h --retrain_epochs=72", "--retrain_epochs=72: expected no value with --retrain_time"),
    ("--retrain_time=8h --retrain_epochs=30", "--retrain_epochs=30: expected no value with --retrain_time"),
    ("--deadline=07:00 --retrain_epochs=1", "--retrain_epochs=1: expected no value with --deadline"),
    ("--retrain_time=8h --round_epochs=1,2,5", "--round_epochs=1,2,5: expected uniform, growing, shrinking with --ret"),
    ("--retrain_time=2h/task --retrain_rate=cosine", "--retrain_rate=cosine: expected constant with --retrain_time"),
    ("--retrain_time=2h/tasks", "--retrain_time=2h/tasks: expected a time such as 90s"),
    ("--retrain_time=8h --sweep=prune_rounds=1,2", "--retrain_time=8h: expected no value for an experiment"),
    ("--deadline=07:00 --experiment=figure2", "--deadline=07:00: expected no value for an experiment, whose runs"),
    ("--sweep=retrain_time=1h,2h", "--sweep=retrain_time: expected NAME=VALUE,VALUE with a NAME among"),
    *(
        (f"--shares={shares}", f"--shares={shares}: expected equal, or the share")
        for shares in ("1.2.3", "", "0", "nan")
    ),
    ("--prune_rounds=0", "--prune_rounds=0: expected at least 1"),
    ("--prune_rounds=two", "--prune_rounds=two: expected an integer, or auto"),
    ("--train_epochs=0", "--train_epochs=0: expected at least 1"),
    ("--retrain_epochs=-3", "--retrain_epochs=-3: expected at least 1"),
    (
        "--dataset=mnits",
        "--dataset=mnits: expected digits, or the name of a TFDS image classification set; did you mean",
    ),
    ("--dataset=", "--dataset=: expected digits"),
    ("--model=resnet", "--model=resnet: expected one of mlp, conv"),
    ("--optimizer=adm", "--optimizer=adm: expected one of adam"),
    ("--approach=ewc", "--approach=ewc: expected one of packnet"),
    ("--freed_weights=drop", "expected one of zero, keep, reinit"),
    ("--head=none", "expected one of per_task, shared"),
    ("--bias_policy=none", "expected one of first_task, per_task"),
    ("--prune_scope=none", "expected one of layer, global, erk"),
    ("--fc8192=none", "expected one of flatten, dense"),
    ("--strategy=none2", "expected one of auto, none, mirrored"),
    ("--precision=int8", "expected one of float32, mixed_bfloat16, mixed_float16"),
    ("--jit=maybe", "expected one of auto, on, off"),
    ("--learning_rate=0", "--learning_rate=0.0: expected a positive number"),
    ("--learning_rate=inf", "expected a positive number"),
    ("--batch_size=0", "--batch_size=0: expected at least 1"),
    ("--classes_per_task=1", "--classes_per_task=1: expected at least 2"),
    ("--num_tasks=0", "--num_tasks=0: expected 1 to 254 tasks"),
    ("--num_tasks=255", "--num_tasks=255: expected 1 to 254 tasks"),
    ("--hidden_units=12,x", "--hidden_units=12,x: expected comma-separated integers"),
    ("--hidden_units=0", "expected one or more layer sizes of at least 1"),
    ("--validation_fraction=1", "expected a fraction from 0 up to, but not including, 1"),
    ("--dropout=1", "expected a fraction from 0 up to"),
    ("--seed=-1", "--seed=-1: expected 0 to 2147483647"),
    ("--noexport=perhaps", "--noexport=perhaps does not take an argument"),
    ("--output_dir=a\0b", "expected a path"),
    ("--export=perhaps", "--export=perhaps: expected true or false"),
    ("--logical_devices=2", "--logical_devices=2: expected no value without --strategy=mirrored"),
    ("--final_prun=0.5", "Did you mean: final_prune"),
    ("--flagfile=nowhere.flags", "--flagfile=nowhere.flags: expected a readable file of flags (No such"),
    ("--seed", "Missing value for flag --seed"),
    ("digits", "'digits' is not a flag"),
]


def refusal(*arguments) -> str:
    """Return the line that the launcher would print for a bad command line."""
    with pytest.raises((UsageError, ArgumentError)) as caught:
        output.check(parse_config(["main.py", *arguments]))
    error = caught.value
    return (
        str(error)
        if isinstance(error, UsageError)
        else f"--{error.argument}={error.received}: expected {error.expected}"
    )


@pytest.mark.parametrize(("flag", "message"), [bad for bad in BAD_FLAGS if not bad[0].startswith("--dataset=mnits")])
def test_bad_flags_are_named_with_what_was_expected(flag, message):
    line = refusal(*flag.split(" "))
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "flag", ["--final_prune=2", "--dataset=mnits", "--prune_rounds=7", "--frobnicate", "--num_tasks=6"]
)
def test_the_launcher_refuses_in_one_line_with_exit_code_2(flag, tmp_path):
    done = launch(flag, f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("main.py: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--final_prune=2"], ["--dataset=mnits"], ["--version"]])
def test_help_and_refusals_do_not_start_tensorflow(arguments, tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['main.py', *{arguments!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'launch/main.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code)\n"
        "assert not {'tensorflow', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules), 'started'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


def test_help_lists_every_flag_with_its_default():
    page = launch("--help")
    assert page.returncode == 0
    for field in Config.__dataclass_fields__:
        assert f"--{field}" in page.stdout or f"--[no]{field}" in page.stdout
    assert f"--final_prune={default('final_prune')}" in page.stdout
    assert max(map(len, page.stdout.splitlines())) <= 100


def test_the_flag_reference_is_generated():
    assert (ROOT / "flags/REFERENCE.md").read_text() == reference.render(), "run `make flag-reference`"


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_every_subcommand_has_help_and_takes_no_unknown_flag(subcommand, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tf-packnet", subcommand, "--help"])
    assert program.main() == 0
    page = capsys.readouterr().out
    assert f"usage: tf-packnet {subcommand} " in page
    assert max(map(len, page.splitlines())) <= 100
    monkeypatch.setattr("sys.argv", ["tf-packnet", subcommand, "--frobnicate"])
    assert program.main() == 2
    assert capsys.readouterr().err == f"tf-packnet {subcommand}: Unknown command line flag 'frobnicate'\n"


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["--help"], 0, "usage: tf-packnet SUBCOMMAND", ""),
        (["--version"], 0, f"tf_packnet {__version__}", ""),
        ([], 2, "", "tf-packnet: expected a subcommand, one of run, experiment, plan, inspect, predict"),
        (["learn"], 2, "", "tf-packnet: 'learn': expected a subcommand, one of run"),
        (["run", "--seeds=2"], 2, "", "--seeds: not a flag of tf-packnet run; expected tf-packnet experiment"),
        (["run", "--dry_run"], 2, "", "--dry_run: not a flag of tf-packnet run; expected tf-packnet plan"),
        (["plan", "--flagfile=smoke"], 2, "", "--seeds: not a flag of tf-packnet plan"),
        (["plan", "--stages_dir=x"], 2, "", "--stages_dir: not a flag of tf-packnet plan"),
        (["experiment", "--flagfile=digits"], 2, "", "--experiment: expected an experiment, a --sweep or --seeds"),
        (["run", "--flagfile=digit"], 2, "", "or a preset: cifar10, digits, fine_grained, mnist, permuted_mnist"),
    ],
)
def test_the_command(arguments, code, out, err, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tf-packnet", *arguments])
    assert program.main() == code
    printed = capsys.readouterr()
    assert out in printed.out
    assert err in printed.err


def test_a_file_precedes_a_preset_of_that_name_and_may_include_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.flags").write_text("--flagfile=mnist\n--seed=7\n")
    assert parse_config(["main.py", "--flagfile=mine.flags"]) == parse_config(["", "--flagfile=mnist", "--seed=7"])
    (tmp_path / "mnist").write_text("--seed=8\n")
    assert parse_config(["main.py", "--flagfile", "mnist"]) == Config(seed=8)


def test_flags_default_to_the_config():
    assert parse_config(["main.py"]) == Config()


@pytest.mark.parametrize("preset", sorted(path.name for path in (ROOT / "flags/presets").iterdir()))
def test_presets_parse_and_flags_after_them_win(preset):
    path = ROOT / "flags/presets" / preset
    config = parse_config(["main.py", f"--flagfile={path}", "--seed=11", "--final_prune=0.123"])
    assert (config.seed, config.final_prune) == (11, 0.123)
    assert f"--flagfile={path.stem}" in path.read_text()
    assert config == parse_config(["main.py", f"--flagfile={path.stem}", "--seed=11", "--final_prune=0.123"])


def test_the_papers_table_2():
    mnist = parse_config(["main.py", f"--flagfile={ROOT / 'flags/presets/mnist.flags'}"])
    assert (mnist.hidden_units, mnist.optimizer, mnist.learning_rate, mnist.batch_size) == (
        (256, 256),
        "adam",
        1e-3,
        128,
    )
    assert (mnist.train_epochs, mnist.retrain_epochs) == (72, 72)
    cifar = parse_config(["main.py", f"--flagfile={ROOT / 'flags/presets/cifar10.flags'}"])
    assert (cifar.model, cifar.optimizer, cifar.learning_rate, cifar.batch_size) == ("conv", "adam", 1e-4, 32)
    assert (cifar.train_epochs, cifar.retrain_epochs, cifar.dropout) == (12, 6, 0.1)


def test_config_round_trips_through_json():
    config = parse_config(["main.py", "--hidden_units=3,4", "--num_tasks=2", "--noexport", "--prune_rounds=5"])
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def results_of(config, complete=True):
    """Return the results of a run of one task."""
    return Results(
        config,
        tasks=[{"number": 1, "name": "0-1", "class_names": ["0", "1"], "examples": {"train": 9}}],
        accuracy=[[0.5]],
        free_fraction=[{"overall": 0.5, "layers": {"dense/kernel": 0.5}}],
        weights={"prunable": 8, "owned": [4]},
        environment={"packages": {}},
        complete=complete,
    ).to_json()


def leave(root, results):
    """Write the results and the manifest of a run, without its other files."""
    files.write_json(root / "results.json", results)
    sums = checksums(root, [root / "results.json"]) if results["complete"] else {}
    Manifest(results["config"], sums).write(root / "checksums.json")


VALUES = ["0", "1", "-1", "2", "1e309", "nan", "inf", "", "abc", "0.5", "1,2", "None", "true", "é", "１", "\0", "\n"]
VALUES += ["9" * 400, "--x", "a b", "/", "..", "-", "1e-320", "0x10", "mnist", "mlp", "mirrored", "on"]


def random_line(random) -> list[str]:
    names = [*Config.__dataclass_fields__, "noexport", "flagfile", "undefok", "nothing"]
    line = []
    for _ in range(random.randint(1, 4)):
        name, value = random.choice(names), random.choice(VALUES)
        line += random.choice(
            [[f"--{name}={value}"], [f"--{name}", value], [f"-{name}={value}"], [value], [f"--{name}"]]
        )
    return line


def test_random_command_lines_are_accepted_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = Random(0)
    taken = 0
    for _ in range(3000):
        line = random_line(random)
        try:
            config = parse_config(["main.py", *line])
            check_name(config.dataset, config.data_dir)
            output.check(config)
            taken += 1
        except (UsageError, ArgumentError):
            pass
        except Exception as error:
            raise AssertionError(f"not refused but failed: {line}") from error
    assert 0 < taken < 3000
    assert list(tmp_path.iterdir()) == []


def test_values_of_another_type_are_refused_too():
    for field, value in [("final_prune", "half"), ("num_tasks", "two"), ("hidden_units", 3), ("seed", None)]:
        with pytest.raises(ArgumentError, match=f"Invalid `{field}`"):
            Config(**{field: value})


class TestOutputDirectory:
    def config(self, path, **kwargs):
        return Config(output_dir=str(path), **kwargs)

    def test_new_and_empty_directories_are_accepted(self, tmp_path):
        assert output.check(self.config(tmp_path)) is None
        assert output.check(self.config(tmp_path / "a/b/c")) is None
        assert list(tmp_path.iterdir()) == []

    def test_other_files_are_refused(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(ArgumentError, match="a new or empty folder, or that of the same run"):
            output.check(self.config(tmp_path))

    def test_another_run_is_refused(self, tmp_path):
        theirs = results_of(self.config(tmp_path, seed=1))
        (tmp_path / "results.json").write_text(json.dumps(theirs))
        with pytest.raises(ArgumentError, match="has another run, with --seed=1"):
            output.check(self.config(tmp_path, seed=2))

    def test_the_same_run_is_complete_or_restarted(self, tmp_path):
        for complete in (True, False):
            theirs = results_of(self.config(tmp_path), complete)
            leave(tmp_path, theirs)
            assert output.check(self.config(tmp_path)) == (theirs if complete else None)

    def test_a_results_file_with_other_content(self, tmp_path):
        for text in ("", "[]", "3", "{}", '{"config":'):
            (tmp_path / "results.json").write_text(text)
            with pytest.raises(ArgumentError, match="a new or empty folder"):
                output.check(self.config(tmp_path))

    def test_a_file_instead_of_a_directory(self, tmp_path):
        (tmp_path / "file").touch()
        for path in ("file", "file/below"):
            with pytest.raises(ArgumentError, match="file is a file"):
                output.check(self.config(tmp_path / path))

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no files")
    def test_a_file_system_without_files(self):
        with pytest.raises(ArgumentError, match="a folder that can be written"):
            output.check(self.config("/proc/self/run"))

    def test_a_read_only_directory(self, tmp_path):
        locked = tmp_path / "locked"
        locked.mkdir()
        locked.chmod(0o555)  # refused for the superuser too, who could write there
        with pytest.raises(ArgumentError, match="a folder that can be written"):
            output.check(self.config(locked / "run"))
        assert list(locked.iterdir()) == []

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be someone else")
    def test_a_directory_of_another_user(self, tmp_path):
        hidden = tmp_path / "hidden"
        hidden.mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(ArgumentError, match="a folder that can be written"):
                output.check(self.config(hidden / "run"))
        finally:
            os.seteuid(0)
