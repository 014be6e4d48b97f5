"""The paper's experiments: their runs, their findings, their files, and that they resume after an interruption."""

import base64
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.conftest import ROOT, launch
from tf_packnet.command_line.run_command import parse_command
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import definitions, findings, matching
from tf_packnet.experiments.definitions import EXPERIMENTS, define
from tf_packnet.experiments.worker import FinishedRun
from tf_packnet.reporting import charts, frames, report
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import ExperimentPaths

PRESETS = ROOT / "flags/presets"


def defined(experiment, preset="mnist", *flags):
    return parse_command(
        ["main.py", f"--experiment={experiment}", f"--flagfile={PRESETS / preset}.flags", *flags]
    ).experiment


class TestDefinitions:
    def test_figure_1(self):
        asked = defined("figure1")
        assert asked.axes == {"approach": ("packnet", "memory", "multinet"), "final_prune": (0.95, 0.99, 0.995)}
        assert len(asked.configs) == 9 * len(asked.seeds) == 45
        assert defined("figure1", "cifar10").axes["final_prune"] == (0.8, 0.9, 0.95)

    def test_figure_2(self):
        asked = defined("figure2")
        assert list(asked.axes["prune_rounds"]) == [1, 2, 3, 4, 6, 8, 9, 12, 18, 24, 36, 72]
        assert asked.seeds == tuple(range(10))
        assert {config.retrain_epochs for config in asked.configs} == {72}
        assert list(defined("figure2", "cifar10").axes["prune_rounds"]) == [1, 2, 3, 6]

    def test_figure_4_gives_every_round_the_whole_budget(self):
        asked = defined("figure4", "cifar10")
        assert {(config.prune_rounds, config.retrain_epochs) for config in asked.configs} == {(1, 6), (2, 12), (3, 18)}

    @pytest.mark.parametrize("name", ["figure3", "table1"])
    def test_the_matching_begins_with_packnet_on_five_seeds(self, name):
        asked = defined(name)
        assert len(asked.seeds) == 5
        assert {(config.approach, config.final_prune) for config in asked.configs} == {
            ("packnet", p) for p in (0.95, 0.99, 0.995)
        }

    def test_values_other_than_the_papers(self):
        asked = defined("figure2", "mnist", "--sweep=prune_rounds=1,72", "--seeds=4,9")
        assert asked.axes["prune_rounds"] == [1, 72]
        assert asked.axes["final_prune"] == (0.95, 0.99, 0.995)
        assert asked.seeds == (4, 9)

    @pytest.mark.parametrize("asked", [("sweep", "--sweep=prune_rounds=1,2"), ("figure2",), ("figure4",)])
    def test_the_base_value_of_a_varied_field_may_be_invalid(self, asked):
        """The preset's three rounds do not divide four epochs; no run has three."""
        experiment = defined(asked[0], "digits", *asked[1:], "--retrain_epochs=4")
        assert {config.prune_rounds for config in experiment.configs} >= {1, 2}
        assert "--prune_rounds" not in experiment.command()

    def test_the_output_directory_does_not_depend_on_the_order_of_values(self):
        for datasets in ("mnist,cifar10", "cifar10,mnist"):
            asked = defined("sweep", "digits", f"--sweep=dataset={datasets}")
            assert definitions.experiment_folder(asked).name == "digits-sweep"

    def test_fields_that_an_experiment_does_not_vary_are_refused(self):
        with pytest.raises(ArgumentError, match="final_prune or prune_rounds with --experiment=figure2"):
            defined("figure2", "mnist", "--sweep=learning_rate=1,2")
        with pytest.raises(ArgumentError, match="that names what it varies"):
            define("sweep", Config(), {})

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_the_command_in_the_report_defines_the_same_experiment(self, name):
        varies = EXPERIMENTS[name].varies or {"final_prune"}
        sweeps = ["--sweep=final_prune=0.5,0.75"] if "final_prune" in varies else []
        asked = defined(name, "smoke", *sweeps, "--freed_weights=keep", "--seeds=3,")
        flags = asked.command().replace("\\\n", " ").split()[2:]
        again = parse_command(["main.py", *flags]).experiment
        assert (again.name, again.seeds, again.configs) == (asked.name, asked.seeds, asked.configs)
        assert again.evaluations == (3 if name in ("figure3", "table1") else 10)


class FakeRuns:
    """Gives each run an accuracy that is a function of its config."""

    def __init__(self, accuracy):
        self.accuracy = accuracy

    def submit(self, config):
        future = Future()
        value = self.accuracy(config)
        results = None if value is None else {"average_accuracy": value}
        future.set_result(FinishedRun(config, results, "" if value is not None else "broke", 0.0))
        return future

    def close(self):
        pass

    def get(self, configs):
        return [self.submit(config).result() for config in configs]


class TestMatching:
    BASE = Config(model="mlp")

    def match(self, accuracy, evaluations=30):
        asked = define("table1", self.BASE, {"final_prune": [0.9]}, seeds=[0, 1], evaluations=evaluations)
        return {match.approach: match for match in matching.match_all(asked, FakeRuns(accuracy))}

    def test_it_finds_the_final_prune_at_which_accuracies_are_equal(self):
        factor = {"packnet": 1.0, "memory": 3.0, "multinet": 6.0}

        def accuracy(config):  # memory needs a third of the weights, multinet a sixth
            used = (1 - config.final_prune) * factor[config.approach]
            return 1 - 0.01 / used + 0.001 * config.seed

        found = self.match(accuracy)
        for approach in ("memory", "multinet"):
            result = found[approach].to_json()
            assert result["reached"]
            assert result["compression"] == pytest.approx(factor[approach], rel=0.05)
            assert result["matched_prune"] == pytest.approx(1 - 0.1 / result["compression"])
            assert len(result["evaluations"]) * 2 == len(found[approach].runs)

    def test_no_match_is_reported_as_not_reached(self):
        found = self.match(lambda config: 0.9 if config.approach == "packnet" else 0.95)
        result = found["memory"].to_json()
        assert not result["reached"]
        assert result["gap"] == pytest.approx(0.05)

    def test_among_equal_matches_the_smaller_network_wins(self):
        found = self.match(lambda config: 0.9, evaluations=5)
        result = found["memory"].to_json()
        assert result["compression"] == max(each["compression"] for each in result["evaluations"])

    def test_no_more_evaluations_than_asked_for(self):
        found = self.match(lambda config: config.final_prune, evaluations=4)
        assert len(found["memory"].evaluations) == 4

    def test_a_failed_run_ends_its_search_alone(self):
        found = self.match(lambda config: None if config.approach == "memory" else config.final_prune)
        assert found["memory"].best is None
        assert found["memory"].runs[0].error == "broke"
        assert found["multinet"].best is not None

    def test_no_search_without_packnets_accuracy(self):
        found = self.match(lambda config: None)
        assert [match.evaluations for match in found.values()] == [[], [], []]


def test_the_accuracies_of_the_paper():
    mnist = {"dataset": "mnist", "approach": "packnet", "prune_rounds": 1, "final_prune": 0.995}
    assert findings.paper_accuracy(mnist) == 0.970
    assert findings.paper_accuracy({**mnist, "prune_rounds": 2}) is None
    assert findings.paper_accuracy({**mnist, "approach": "memory"}) is None


def results_of(accuracies, approach="packnet", **config):
    stream = [{"number": i + 1, "name": f"{i}"} for i in range(len(accuracies))]
    rows = [list(accuracies)] if approach == "multinet" else [list(accuracies[: i + 1]) for i in range(len(accuracies))]
    return {
        "config": Config(approach=approach, **config).to_json(),
        "tasks": stream,
        "accuracy": rows,
        "validation_accuracy": [],
        "weights": {"owned": [1] * len(accuracies)},
        "free_fraction": {"overall": 0.5},
        "environment": {"threads": 1, "packages": {"keras": "3"}},
    }


class TestTables:
    def test_one_row_per_run_and_task(self):
        frame = frames.tidy([results_of([0.5, 0.75], seed=3), results_of([0.25, 1.0], "multinet")], ["approach"])
        assert list(frame["accuracy"]) == [0.5, 0.75, 0.25, 1.0]
        assert list(frame["accuracy_when_learned"]) == [0.5, 0.75, 0.25, 1.0]
        assert list(frame["task"]) == [1, 2, 1, 2]
        assert list(frame["seed"]) == [3, 3, 0, 0]

    def test_the_measures_of_continual_learning(self):
        matrix = [[0.5, 0.25], [0.75, 0.5], [0.5, 1.0]]
        known = {**results_of([0.5, 1.0]), "accuracy": [[0.75], [0.5, 1.0]], "accuracy_matrix": matrix}
        frame = frames.tidy([known, results_of([0.5, 1.0], seed=1), results_of([0.5, 1.0], "multinet")], ["approach"])
        assert list(frame["accuracy_untrained"][:2]) == [0.5, 0.25]
        assert list(frame["accuracy_before"][:2]) == [0.5, 0.5]
        assert list(frame["forgetting"][:2]) == [0.25, 0.25]
        assert frame["accuracy_before"][2:].isna().all()
        packnet, multinet = frames.measures_by_setting(frame, ["approach"]).to_dict("records")
        assert packnet["forgetting"] == 0.125
        assert packnet["backward_transfer"] == -0.125
        assert packnet["learning_accuracy"] == 0.8125
        assert np.isnan(packnet["forward_transfer"])  # one seed lacks it, which is not 0
        known = {"approach": "multinet", "average_accuracy": 0.75, "capacity_used": 0.5}
        assert {name: value for name, value in multinet.items() if not pd.isna(value)} == known
        shown = report.readable(frames.measures_by_setting(frame, ["approach"]))
        assert list(shown["forward transfer"]) == ["", ""]
        assert list(shown["backward transfer"]) == ["-0.1250", ""]

    def test_means_and_standard_errors_are_over_the_seeds(self):
        rng = np.random.default_rng(0)
        values = {(p, seed): rng.random(5) for p in (0.5, 0.9) for seed in range(4)}
        runs = [results_of(list(value), final_prune=p, seed=seed) for (p, seed), value in values.items()]
        summary = frames.by_setting(frames.tidy(runs, ["final_prune"]), ["final_prune"])
        for row, p in zip(summary.to_dict("records"), (0.5, 0.9), strict=True):
            averages = [np.mean(values[p, seed]) for seed in range(4)]
            assert row["accuracy"] == pytest.approx(np.mean(averages))
            assert row["error"] == pytest.approx(1 - np.mean(averages))
            assert row["standard_error"] == pytest.approx(np.std(averages, ddof=1) / 2)
            assert row["standard_error"] == pytest.approx(stats.sem(averages))
            assert row["n"] == 4

    def test_one_seed_has_no_standard_error(self):
        summary = frames.by_setting(frames.tidy([results_of([0.5, 1.0])], []), ["approach"])
        assert np.isnan(summary["standard_error"][0])


def test_a_matching_with_failed_runs_reports_the_others(tmp_path, capsys):
    asked = define("table1", Config(), {"final_prune": [0.9, 0.95]}, seeds=[0])

    def finished(p, value, approach="packnet"):
        config = dataclasses.replace(Config(), approach=approach, final_prune=p)
        results = None if value is None else results_of([value, value], approach, final_prune=p)
        return FinishedRun(config, results, "" if value else "broke", 0.0)

    found = matching.Match(
        0.9, "memory", [0.75], [], [finished(0.92, 0.8125, "memory"), finished(0.96, 0.75, "memory")]
    )
    for each in found.runs:
        p = each.config.final_prune
        ratio = matching.compression(0.9, p)
        accuracy = each.results["accuracy"][-1][0]
        found.evaluations.append({"final_prune": p, "compression": ratio, "accuracy": accuracy, "by_seed": [accuracy]})
    matches = [
        matching.Match(0.9, "packnet", [0.75], [], [finished(0.9, 0.75)]),
        found,
        matching.Match(0.95, "packnet", None, [], [finished(0.95, None)]),
        matching.Match(0.95, "memory", None, [], []),
    ]
    runs = [run for match in matches for run in match.runs]
    findings.write_report(asked, ExperimentPaths(tmp_path), runs, matches)
    printed = capsys.readouterr().out
    assert "p = 0.9, memory: as accurate as PackNet with 2.50 times fewer weights" in printed
    assert "the fitted curve is above PackNet's accuracy from 1.25 to 2.50 times" in printed
    missing = "1 of 4 runs failed (approach=packnet,final_prune=0.95,seed=0). They are missing here; the same command"
    assert missing in printed
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [match["matched_prune"] for match in summary["matches"]] == [0.96]
    assert missing in (tmp_path / "summary.md").read_text()
    assert set(pd.read_csv(tmp_path / "results.csv")["final_prune"]) == {0.9, 0.92, 0.96}


def test_an_experiment_without_a_complete_run_writes_no_report(tmp_path):
    asked = define("figure1", Config(), {"final_prune": [0.9], "approach": ["packnet"]}, seeds=[0])
    findings.write_report(asked, ExperimentPaths(tmp_path), [FinishedRun(Config(), None, "broke", 0.0)], [])
    assert list(tmp_path.iterdir()) == []


FILES = {
    ".lock",
    "checksums.json",
    "experiment.json",
    "results.csv",
    "report.html",
    "tensorboard",
    "runs",
    "stages",
    "summary.json",
    "summary.md",
}


@pytest.mark.parametrize(
    "name", ["figure2", "table1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("figure1", "figure4"))]
)
def test_every_experiment_in_miniature(name, tmp_path):
    more = ["--sweep=final_prune=0.9,0.95" if name in ("figure1", "figure2") else "--sweep=final_prune=0.95"]
    done = launch(f"--experiment={name}", f"--flagfile={PRESETS}/smoke.flags", *more, f"--output_dir={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    root = tmp_path / "out"
    figures = {name} | ({"matching"} if name == "table1" else set())
    assert {path.name for path in root.iterdir()} == FILES | {f"{f}.{end}" for f in figures for end in ("png", "pdf")}
    frame = pd.read_csv(root / "results.csv")
    assert set(frame["seed"]) == {0, 1}
    summary = json.loads((root / "summary.json").read_text())
    for row in summary["settings"]:
        chosen = frame
        for axis in set(row) & {"approach", "final_prune", "prune_rounds"}:
            chosen = chosen[chosen[axis] == row[axis]]
        averages = chosen.groupby("seed")["accuracy"].mean()
        assert row["n"] == len(averages) == 2
        assert row["accuracy"] == pytest.approx(averages.mean())
        assert row["standard_error"] == pytest.approx(averages.sem())
    page = (root / "report.html").read_text()
    assert not re.search("(src|href)=.?http|@import|url\\(", page)  # self-contained
    inlined = {base64.b64decode(encoded) for encoded in re.findall('data:image/png;base64,([^"]+)', page)}
    assert inlined == {(root / f"{figure}.png").read_bytes() for figure in figures}
    assert "--experiment=" + name in page
    assert "epochs computed" in done.stdout
    if name == "figure2":
        assert len(frame) == 2 * 3 * 2 * 2  # p, N, seeds, tasks
        stages = [s for run in (root / "runs").iterdir() for s in json.loads(run.read_text())["seconds"]]
        first_train_stages = [s for s in stages if s["task"] == 1 and s["stage"] == "train"]
        assert sum(not stage["reused"] for stage in first_train_stages) == 2  # one per seed, for every p and N
    if name == "table1":
        for match in summary["matches"]:
            assert len(match["evaluations"]) == 3
            ratio = (1 - match["final_prune"]) / (1 - match["matched_prune"])
            assert match["compression"] == pytest.approx(ratio)
        figure_3_reuses_all_stages_of_table_1(root, tmp_path)


def figure_3_reuses_all_stages_of_table_1(table, tmp_path):
    flags = (f"--flagfile={PRESETS}/smoke.flags", "--sweep=final_prune=0.95", f"--stages_dir={table}/stages")
    figure = launch("--experiment=figure3", *flags, f"--output_dir={tmp_path}/figure")
    assert figure.returncode == 0, figure.stderr
    assert " 0 epochs computed" in figure.stdout
    assert (table / "results.csv").read_bytes() == (tmp_path / "figure/results.csv").read_bytes()
    assert (tmp_path / "figure/figure3.png").stat().st_size > 10_000


def test_a_killed_experiment_resumes_and_gives_the_same_results(tmp_path):
    flags = ["--experiment=figure2", f"--flagfile={PRESETS}/smoke.flags", "--sweep=final_prune=0.95", "--seeds=1"]
    through = launch(*flags, f"--output_dir={tmp_path}/through", "--workers=1")
    assert through.returncode == 0, through.stderr
    command = [sys.executable, str(ROOT / "launch/main.py"), *flags, f"--output_dir={tmp_path}/killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("runs/*.json"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = launch(*flags, f"--output_dir={tmp_path}/killed")
    assert done.returncode == 0, done.stderr
    assert "3 runs done" not in done.stdout
    for name in ("results.csv", "summary.json", "summary.md", "report.html", "figure2.png", "figure2.pdf"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "through" / name).read_bytes(), name
    for name in ("runs", "experiment.json"):  # another machine needs no more
        (tmp_path / "moved").mkdir(exist_ok=True)
        shutil.move(tmp_path / "killed" / name, tmp_path / "moved" / name)
    again = launch(*flags, f"--output_dir={tmp_path}/moved")
    assert "0 runs done: 0 epochs computed, 0 reused; 3 runs were complete before" in again.stdout
    assert (tmp_path / "moved/results.csv").read_bytes() == (tmp_path / "through/results.csv").read_bytes()


@pytest.mark.slow
def test_seeds_can_be_added_later(tmp_path):
    flags = [f"--flagfile={PRESETS}/smoke.flags", "--sweep=final_prune=0.9", f"--output_dir={tmp_path}/out"]
    assert launch(*flags, "--seeds=1").returncode == 0
    done = launch(*flags, "--seeds=2")
    assert done.returncode == 0, done.stderr
    assert "1 runs done: " in done.stdout
    assert set(pd.read_csv(tmp_path / "out/results.csv")["seed"]) == {0, 1}


def test_another_experiments_folder_is_refused(tmp_path):
    (tmp_path / "experiment.json").write_text(
        json.dumps({"experiment": "figure1", "varies": [], "config": Config().to_json()})
    )
    done = launch("--experiment=figure2", f"--output_dir={tmp_path}", "--train_epochs=7")
    assert done.returncode == 2
    assert "this one has another experiment, with " in done.stderr
    assert "--train_epochs=30" in done.stderr
    (tmp_path / "experiment.json").write_text("x")
    done = launch("--experiment=figure2", f"--output_dir={tmp_path}")
    assert "expected a new or empty folder, or that of the same --experiment=figure2" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.json"]


@pytest.mark.parametrize("approaches", [("packnet",), ("packnet", "memory"), ("packnet", "memory", "multinet")])
def test_the_bars_of_a_task_are_centred_on_its_name(approaches):
    rows = [(approach, name, 0.9, 0.01) for approach in approaches for name in ("0-1", "2-3")]
    frame = pd.DataFrame(rows, columns=["approach", "task_name", "accuracy", "standard_error"])
    panel = charts.task_bars({0.5: frame}, "title", "note").axes[0]
    middles = np.array([bar.get_x() + bar.get_width() / 2 for bar in panel.patches]).reshape(len(approaches), 2)
    np.testing.assert_allclose(middles.mean(0), panel.get_xticks(), atol=1e-12)
    assert np.all(np.diff(middles, axis=0) > 0.25)  # side by side


@pytest.mark.parametrize("errors", [(0.109, 0.1178), (0.05, 0.051), (0.0097, 0.03), (0.5, 0.9), (1e-4, 0.9)])
def test_an_axis_of_errors_has_two_labels_or_more(errors):
    ticks = charts._round_ticks(errors)
    assert sum(errors[0] <= tick <= errors[1] for tick in ticks) >= 2
    assert len({f"{tick:.4g}" for tick in ticks}) == len(ticks)
    assert charts._round_ticks([0.1134, 0.1134]) == [0.1134]
