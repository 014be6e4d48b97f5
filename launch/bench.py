"""Measures what training costs on CPU beside what it could cost: `python -m launch.bench`, or `make bench`.

`--only=xla` measures how much of a step XLA should compile, on a GPU where there is one.

Every section runs in a process of its own, one after another; the machine should do nothing else meanwhile. What was
measured is written after each.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

from absl import app, flags

from launch import benchmarks

SECTIONS = ("start", "mlp", "conv", "prune", "checks", "run", "sweep")
AVALANCHE, XLA = "avalanche", "xla"
OTHERS = (AVALANCHE, XLA)

FLAGS = flags.FLAGS
flags.DEFINE_list("only", ",".join(SECTIONS), f"Sections to measure, of {', '.join(SECTIONS + OTHERS)}.")
flags.DEFINE_string("output_dir", "out/bench", "Where bench.json and run.png go.")
flags.DEFINE_integer("epochs", 72, "Epochs of a stage of the MLP and of the whole run.", lower_bound=2)
flags.DEFINE_string("rows", None, "Used between processes: write the rows of one section there.")
flags.DEFINE_string("avalanche_python", None, f"A Python that imports avalanche-lib, for --only={AVALANCHE}.")
flags.register_validator(
    "only",
    lambda only: set(only) <= {*SECTIONS, *OTHERS},
    f"expected some of {', '.join(SECTIONS + OTHERS)}",
)
flags.register_multi_flags_validator(
    ["only", "avalanche_python"],
    lambda values: AVALANCHE not in values["only"] or values["avalanche_python"],
    f"--only={AVALANCHE} needs --avalanche_python",
)


def measure(section: str) -> list[benchmarks.Row]:
    """The rows of one section, measured in this process."""
    from launch.benchmarks import processes
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    from launch.benchmarks import checks, rounds, side_by_side, training

    return {
        "start": processes.start,
        "mlp": lambda: training.mlp(FLAGS.epochs),
        "conv": lambda: training.conv(epochs=6),
        "prune": rounds.prune,
        "checks": lambda: checks.checks(FLAGS.epochs),
        "run": lambda: processes.run(FLAGS.epochs),
        "sweep": lambda: processes.sweep(max(1, FLAGS.epochs // 3)),
        AVALANCHE: lambda: side_by_side.avalanche(FLAGS.avalanche_python, max(1, FLAGS.epochs // 3)),
        XLA: lambda: training.choices_of_xla(max(2, FLAGS.epochs // 9)),
    }[section]()


def measure_apart(section: str) -> list[benchmarks.Row]:
    """The rows of one section, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        section_flags = [f"--only={section}", f"--epochs={FLAGS.epochs}", f"--rows={rows}"]
        command = [sys.executable, "-m", "launch.bench", *section_flags]
        if FLAGS.avalanche_python:
            command.append(f"--avalanche_python={FLAGS.avalanche_python}")
        # All floors are a CPU's; what XLA is good for is asked of any device.
        environment = os.environ if section == XLA else {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        return [benchmarks.Row.from_json(row) for row in json.loads(rows.read_text())]


def check_avalanche(python: str) -> None:
    """Ends with one line unless `python` can import avalanche: before minutes of measuring."""
    try:
        tried = subprocess.run([python, "-c", "import avalanche"], capture_output=True, text=True)
    except OSError as error:
        reason = str(error)
    else:
        if not tried.returncode:
            return
        reason = (tried.stderr.strip() or "it does not say why not").splitlines()[-1]
    sys.exit(f"bench.py: --avalanche_python: expected a Python with avalanche-lib ({reason}). Received: {python}")


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    del argv
    if FLAGS.rows:
        rows = [row for section in FLAGS.only for row in measure(section)]
        Path(FLAGS.rows).write_text(json.dumps([row.to_json() for row in rows]))
        return
    from launch.benchmarks import report

    if AVALANCHE in FLAGS.only:
        check_avalanche(FLAGS.avalanche_python)
    rows = []
    for section in FLAGS.only:
        print(f"measuring {section} ...", file=sys.stderr)
        try:
            rows += measure_apart(section)
        except subprocess.CalledProcessError as error:
            sys.exit(f"bench.py: {section} failed:\n{error.stderr.decode()}")
        report.write_json(rows, Path(FLAGS.output_dir) / "bench.json")  # half an hour may lie before the last
    report.print_table(rows)
    if "conv" in FLAGS.only and not report.machine()["bfloat16"]:
        print("bfloat16 was not measured: this CPU has no instructions for it")
    report.draw_run(rows, Path(FLAGS.output_dir) / "run.png")
    print(f"Written to {FLAGS.output_dir}/bench.json")


if __name__ == "__main__":
    app.run(main)
