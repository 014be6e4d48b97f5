"""Measures how much smaller and faster compact exports are: `python -m launch.benchmarks.exports`.

Pass `--pack=out/mnist/pack.keras` to export a trained pack. The default is the paper's convolutional network with
random weights and random owners.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

from absl import app, flags, logging

PACK = flags.DEFINE_string("pack", None, "Pack to export. Default: a convolutional network with random weights.")
FINAL_PRUNE = flags.DEFINE_float("final_prune", 0.95, "Prune proportion p after five tasks, without --pack.", 0, 1)
FOLDER = flags.DEFINE_string("folder", None, "Directory to keep the SavedModels and report.json in. Default: none.")


def main(argv: list[str]) -> None:
    """Export every task, compare each with its dense SavedModel, and print the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    import keras

    from tf_packnet.export import export_report, export_task
    from tf_packnet.reporting.exports import print_exports

    packed = keras.models.load_model(PACK.value) if PACK.value else random_convnet(FINAL_PRUNE.value)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(FOLDER.value or temporary)
        for number in range(1, packed.committed_tasks + 1):
            export_task(packed, number, folder / f"task_{number}", compact=True)
        print_exports(export_report(packed, folder))


def random_convnet(final_prune: float, num_tasks: int = 5) -> Any:
    """Build the paper's convolutional network. Each task keeps a random share of the free weights, see `fill`."""
    import tf_packnet as tp
    from tf_packnet.approaches.networks import conv

    return fill(tp.pack(conv((32, 32, 3), 2)), final_prune, num_tasks)


def fill(packed: Any, final_prune: float, num_tasks: int) -> Any:
    """Commit tasks that each keep a random subset of the free weights, with the shares of Algorithm 2.

    Returns:
        `packed`.
    """
    import numpy as np

    from tf_packnet import lifecycle

    rng = np.random.default_rng(0)
    for _ in range(num_tasks):
        lifecycle.begin_task(packed, freed_weights="reinit")
        for weight in lifecycle.masked_weights(packed).values():
            weight.prune(rng.random(weight.owner_map().shape) < 1 - final_prune ** (1 / num_tasks))
        lifecycle.commit_task(packed)
    return packed


if __name__ == "__main__":
    app.run(main)
