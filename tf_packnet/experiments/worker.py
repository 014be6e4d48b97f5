"""Runs of an experiment, one after another, in a process of its own: `python -m tf_packnet.experiments.worker`.

It reads a job a line from standard input, `{"config": {...}, "stages_dir": "..."}`, and writes lines to standard
output: `{"epochs": n}` as it goes on, `{"said": "..."}` for a person, and at last `{"results": {...}}` or
`{"error": "..."}`, with `"refused"` if the config cannot be. It ends when its input does, in the middle of a run too:
whoever gave the jobs is gone.
"""

import gc
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_PACKNET_LAZY"] = "1"

from tf_packnet.errors import ArgumentError, StoppedError
from tf_packnet.runs import corruption
from tf_packnet.runs.config import Config


def main() -> None:
    """Does every job that comes."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print shall not be taken for replies
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    while True:
        job = jobs.get()
        try:
            reply = {"results": _do(Config.from_json(job["config"]), Path(job["stages_dir"]), replies)}
        except ArgumentError as error:
            reply = {"error": str(error), "refused": [error.argument, error.expected, str(error.received)]}
        except StoppedError as error:
            reply = {"error": str(error)}
        except Exception as error:  # the other runs shall go on, and this one say what it died of
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        _say(replies, reply)


def _do(config: Config, stages_dir: Path, replies: TextIO) -> dict[str, Any]:
    import keras

    from tf_packnet.runs.learning import learn_only

    keras.backend.clear_session()
    gc.collect()

    class Report(keras.callbacks.Callback):
        def resumed(self, history):
            _say(replies, {"epochs": len(history["loss"])})

        def on_epoch_end(self, epoch, logs=None):
            _say(replies, {"epochs": 1})

    damaged = corruption.handler(config.on_corruption, lambda line: _say(replies, {"said": line}))
    return learn_only(config, stages_dir, lambda task, stage: [Report()], damaged).to_json()


def _read(jobs: queue.Queue) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)


def _say(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
