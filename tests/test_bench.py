"""Tests that the benchmarks run and report their results. Measured times are never asserted."""

import json
import subprocess
import sys

import pytest
import tensorflow as tf

from launch.benchmarks import (
    Row,
    floors,
    image_files,
    kinds,
    median_seconds,
    processes,
    report,
    shortest_seconds,
    training,
)


def test_row_ratio_and_bound():
    row = Row("mlp", "fit", 1.2, "ms", 1.0, ("at most", 1.15))
    assert (row.ratio, row.holds) == (1.2, False)
    assert Row("mlp", "fit", 1.1, "ms", 1.0, ("at most", 1.15)).holds
    assert Row("mlp", "fit", 4.0, "ms", 1.0, ("at least", 3.5)).holds
    assert Row("start", "--help", 0.2, "s", bound=("at most", 0.5)).holds
    assert Row("mlp", "floor", 1.0, "ms").holds is None
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


@pytest.mark.parametrize(("measure", "expected"), [(shortest_seconds, 1.0), (median_seconds, 2.0)])
def test_shortest_and_median_time_per_call(measure, expected, monkeypatch):
    clock = iter([0.0, 50.0, 100.0, 105.0, 110.0, 120.0])  # five calls each: 10, 1 and 2 seconds per call
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    assert measure(lambda: calls.append(1), repeats=3, calls=5) == expected
    assert len(calls) == 1 + 3 * 5  # one warm-up call


def test_step_is_compared_with_floors_measured_around_it():
    floors = [{"all": 1.0}, {"all": 3.0}, {"all": 1.0}, {"all": 1.0}]
    stages = training.StageTimes([4.0, 3.0, 1.0], floors, compiling=1.0, bytes_per_weight=1.0)
    assert stages.step_and_floor("all") == (3.0, 2.0)  # the ratios are 2, 1.5 and 1
    assert stages.floor("all") == 1.0
    row = training.row_with_floor("mlp", "fit", stages, "all", ("at most", 1.5))
    assert (row.value, row.floor, row.holds) == (3.0, 2.0, True)


@pytest.mark.slow
def test_files_are_compared_with_resident_examples():
    (row,) = image_files.files(steps=2, rounds=1, size=32, batch_size=4, alpha=0.35)
    assert row.value > 0
    assert row.floor > 0
    assert row.bound == ("at most", 1.15)


def test_auto_is_compared_with_the_best_level():
    times = {"step": [4.0, 3.0, 6.0], "off": [3.0, 2.0, 2.5], "update": [9.0]}
    row = kinds.row("dense", times, "step")
    assert row.what == "dense (on 3, off 2, update 9): auto is on"
    assert (row.value, row.floor, row.holds) == (3.0, 2.0, False)
    assert kinds.row("dense", times, "off").ratio == 1.0


def test_levels_are_measured_in_turns_and_hopeless_ones_once(monkeypatch):
    calls = []

    class Steps:
        def __init__(self, model, level):
            self.level = level

        def milliseconds(self, steps):
            calls.append((self.level, steps))
            return {"step": 4.0, "off": 1.0, "update": 2.0}[self.level]

    monkeypatch.setattr(kinds, "Steps", Steps)
    assert kinds.step_times(lambda: None, rounds=2) == {"step": [4.0], "off": [1.0, 1.0], "update": [2.0, 2.0]}
    assert calls == [("step", 2), ("off", 2), ("update", 2), *[("off", 100), ("update", 100)] * 2]


@pytest.mark.parametrize("name", ["embedding, pooling", "small convolutions"])
def test_steps_of_a_kind(name):
    steps = kinds.Steps(kinds.kinds()[name](), "off")
    assert steps.milliseconds(3) > 0
    assert int(steps.packed.optimizer.iterations) == 2 + 3


@pytest.mark.parametrize(("every_product", "products"), [(True, 9), (False, 8)])
def test_xla_computes_every_product_of_the_floor(every_product, products):
    steps, arguments = floors.xla_products(every_product, steps=10)
    optimized = steps.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    body = next(part for part in optimized.split("\n\n") if " dot(" in part)
    assert body.count(" dot(") == products
    assert "while_body" in body.splitlines()[0]


def test_floor_of_convolutions_has_every_product():
    step, arguments = floors.convolution_step("float32")
    operations = [operation.type for operation in step.get_concrete_function(*arguments).graph.get_operations()]
    assert operations.count("Conv2D") == operations.count("Conv2DBackpropFilter") == 4
    assert operations.count("Conv2DBackpropInput") == 3  # training does not need the gradient of the images
    assert operations.count("MatMul") == 6
    outputs = step(*arguments)
    assert len(outputs) == 17  # all are returned, so that TensorFlow prunes none
    assert all(tf.reduce_all(tf.math.is_finite(output)) for output in outputs)


@pytest.mark.slow
def test_benchmark_from_command_line(tmp_path):
    command = [sys.executable, "-m", "launch.bench", "--only=mlp", "--epochs=2", f"--output_dir={tmp_path}"]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    written = json.loads((tmp_path / "bench.json").read_text())
    assert {row["section"] for row in written["rows"]} == {"mlp"}
    measured = {row["what"]: row for row in written["rows"]}
    assert measured["fit, all callbacks"]["value"] > 0
    assert measured["owner maps"]["value"] == 1.0
    assert "fit, all callbacks" in completed.stdout
    assert written["machine"]["cores"] >= 1


FAILING_BENCHMARK = """
import subprocess, sys
from absl import app
from launch import bench, benchmarks

def measure_in_subprocess(section):
    if section == "prune":
        raise subprocess.CalledProcessError(1, "prune", stderr=b"no memory")
    return [benchmarks.Row(section, "--help", 0.1, "s")]

bench.measure_in_subprocess = measure_in_subprocess
app.run(bench.main)
"""


def test_results_are_kept_when_a_later_section_fails(tmp_path):
    command = [sys.executable, "-c", FAILING_BENCHMARK, "--only=start,prune,run", f"--output_dir={tmp_path}"]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 1
    assert "bench.py: prune failed:\nno memory" in completed.stderr
    assert [row["section"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]] == ["start"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--only=mlpp",
            "expected some of start, mlp, conv, kinds, devices, prune, checks, run, sweep, avalanche, xla",
        ),
        ("--only=avalanche", "--only=avalanche needs --avalanche_python"),
        (
            "--only=avalanche --avalanche_python=no/python",
            "expected a Python with avalanche-lib ([Errno 2]",
        ),
        ("--only=avalanche --avalanche_python=false", "Received: false"),
    ],
)
def test_invalid_flags_end_with_one_line(arguments, message):
    command = [sys.executable, "-m", "launch.bench", *arguments.split()]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode != 0
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr


def test_cpu_time_includes_child_processes():
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    script = f"import subprocess, sys\nfor _ in range(2): subprocess.run([sys.executable, '-c', {busy!r}])"
    _, cpu_seconds = processes.time_command([sys.executable, "-c", script])
    assert cpu_seconds >= 1.0  # two processes with 0.5 s each


def test_chart_shows_every_part_of_the_run(tmp_path):
    rows = [
        Row("mlp", "fit, all callbacks", 0.9, "ms/step", 1.0),
        Row("mlp", "fit, all callbacks, compared with the products it needs", 0.9, "ms/step", 0.7),
        Row("mlp", "fit, all callbacks, validation after each epoch", 1.0, "ms/step", 1.0),
        Row("mlp", "compilation, once per run", 1.0, "s"),
        Row("run", "MNIST", 90.0, "s", 60.0),
        Row("run", "stages", 81.0, "s"),
        *(Row("run", name, 1.0, "s") for name in ("load", "store", "evaluate", "save")),
        Row("run", "startup and other", 5.0, "s"),
    ]
    parts = report.seconds_by_part(rows)
    assert sum(parts.values()) == pytest.approx(90.0)
    assert list(parts.values()) == pytest.approx([56.0, 16.0, 8.0, 1.0, 1.0, 1.0, 2.0, 5.0])
    report.draw_run(rows, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    report.draw_run(rows[:3], tmp_path / "none.png")  # the whole run was not measured
    assert not (tmp_path / "none.png").exists()
