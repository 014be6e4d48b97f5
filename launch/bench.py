"""Compares training time on CPU with the time of its matrix products: `python -m launch.bench`, or `make bench`.

`--only=xla` measures gradient steps with each level of XLA compilation, on a GPU if there is one. `--only=files`
compares steps on images in JPEG files with those on resident examples.

Sections run one after another, each in its own process. Nothing else should run on the machine at the same time. The
results are written after each section.
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

SECTIONS = ("start", "mlp", "conv", "kinds", "devices", "prune", "checks", "run", "sweep")
AVALANCHE, XLA, FILES = "avalanche", "xla", "files"
OPTIONAL_SECTIONS = (AVALANCHE, XLA, FILES)

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "only",
    ",".join(SECTIONS),
    f"Sections to measure, of {', '.join(SECTIONS + OPTIONAL_SECTIONS)}.",
)
flags.DEFINE_string("output_dir", "out/bench", "Directory for bench.json and run.png.")
flags.DEFINE_integer("epochs", 72, "Epochs per stage, for the MLP and the whole run.", lower_bound=2)
flags.DEFINE_string("rows", None, "Internal: file to which a subprocess writes its rows.")
flags.DEFINE_string("avalanche_python", None, f"Python interpreter with avalanche-lib, for --only={AVALANCHE}.")
flags.register_validator(
    "only",
    lambda only: set(only) <= {*SECTIONS, *OPTIONAL_SECTIONS},
    f"expected some of {', '.join(SECTIONS + OPTIONAL_SECTIONS)}",
)
flags.register_multi_flags_validator(
    ["only", "avalanche_python"],
    lambda values: AVALANCHE not in values["only"] or values["avalanche_python"],
    f"--only={AVALANCHE} needs --avalanche_python",
)


def measure(section: str) -> list[benchmarks.Row]:
    """Measure one section in this process and return its rows."""
    from launch.benchmarks import processes
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    from launch.benchmarks import checks, devices, image_files, kinds, rounds, side_by_side, training

    return {
        "start": processes.start,
        "mlp": lambda: training.mlp(FLAGS.epochs),
        "conv": lambda: training.conv(epochs=6),
        "kinds": kinds.measure,
        "devices": lambda: devices.devices(max(1, FLAGS.epochs // 9)),
        "prune": rounds.prune,
        "checks": lambda: checks.checks(FLAGS.epochs),
        "run": lambda: processes.run(FLAGS.epochs),
        "sweep": lambda: processes.sweep(max(1, FLAGS.epochs // 3)),
        AVALANCHE: lambda: side_by_side.avalanche(FLAGS.avalanche_python, max(1, FLAGS.epochs // 3)),
        FILES: image_files.files,
        XLA: lambda: training.xla_levels(max(2, FLAGS.epochs // 9)),
    }[section]()


def measure_in_subprocess(section: str) -> list[benchmarks.Row]:
    """Measure one section in its own process and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        section_flags = [f"--only={section}", f"--epochs={FLAGS.epochs}", f"--rows={rows}"]
        command = [sys.executable, "-m", "launch.bench", *section_flags]
        if FLAGS.avalanche_python:
            command.append(f"--avalanche_python={FLAGS.avalanche_python}")
        # All floors are measured on CPU. Only the XLA section may use a GPU.
        environment = os.environ if section == XLA else {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        return [benchmarks.Row.from_json(row) for row in json.loads(rows.read_text())]


def check_avalanche(python: str) -> None:
    """Exit with a one-line message if `python` cannot import avalanche, before anything is measured."""
    try:
        completed = subprocess.run([python, "-c", "import avalanche"], capture_output=True, text=True)
    except OSError as error:
        reason = str(error)
    else:
        if not completed.returncode:
            return
        reason = (completed.stderr.strip() or "no error message").splitlines()[-1]
    sys.exit(f"bench.py: --avalanche_python: expected a Python with avalanche-lib ({reason}). Received: {python}")


def main(argv: list[str]) -> None:
    """Measure all selected sections, print the table, and write bench.json and run.png."""
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
            rows += measure_in_subprocess(section)
        except subprocess.CalledProcessError as error:
            sys.exit(f"bench.py: {section} failed:\n{error.stderr.decode()}")
        report.write_json(rows, Path(FLAGS.output_dir) / "bench.json")  # keep results if a later section fails
    report.print_table(rows)
    if "conv" in FLAGS.only and not report.machine()["bfloat16"]:
        print("bfloat16 was not measured: this CPU has no instructions for it")
    report.draw_run(rows, Path(FLAGS.output_dir) / "run.png")
    print(f"Written to {FLAGS.output_dir}/bench.json")


if __name__ == "__main__":
    app.run(main)
