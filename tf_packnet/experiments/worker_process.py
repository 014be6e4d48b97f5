"""A worker process, which executes runs one after another. `worker.Worker` starts it.

It reads one job per line from standard input: `{"config": {...}, "place": [...], "network": {...}}`. It replies with
JSON lines on standard output: first `{"ready": number of GPUs}`; then, for each run, `{"epochs": n}` for newly
finished epochs, `{"log": "..."}` for a line to show, and finally one of

- `{"results": {...}}`;
- `{"error": "..."}`, with `"refused"` if config, data or machine do not allow the run;
- `{"machine": "..."}` or `{"folder": [errno, message, path]}` for a fault of the machine or of the store, see `faults`.

The process exits when its input ends, even during a run, because the launcher is gone. If it is stopped (SIGSTOP) at
that time, Linux kills it; otherwise it would keep the lock of its stage.
"""

import ctypes
import errno
import functools
import gc
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_PACKNET_LAZY"] = "1"

from tf_packnet.errors import ArgumentError, StoppedError
from tf_packnet.experiments import faults
from tf_packnet.runs import corruption
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace
from tf_packnet.system.storage import is_storage_fault

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


# Sends a reply.
Send = Callable[[dict[str, Any]], None]


def main() -> None:
    """Do all jobs from standard input, one after another."""
    import keras

    jobs, send = start()
    while True:
        job = jobs.get()
        keras.backend.clear_session()
        gc.collect()
        send(reply_to(job, send))


def start() -> tuple["queue.Queue[dict[str, Any]]", Send]:
    """Start TensorFlow and report that the process is ready.

    Return the queue of jobs, and a function that sends replies.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # sent when the thread that started this process ends
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that the output of libraries is not taken for replies
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    send = functools.partial(_send, replies)
    send({"ready": len(tf.config.list_physical_devices("GPU"))})
    return jobs, send


def reply_to(job: dict[str, Any], send: Send) -> dict[str, Any]:
    """Do a job, and return the last reply to it; `send` sends the others."""
    try:
        return {"results": _do(job, send)}
    except ArgumentError as error:
        return {"error": str(error), "refused": [error.argument, error.expected, str(error.received)]}
    except StoppedError as error:
        return {"error": str(error)}
    except Exception as error:  # reported, so that the next runs go on
        return _fault(error)


def _fault(error: Exception) -> dict[str, Any]:
    if is_storage_fault(error):
        if isinstance(error, OSError) and error.errno:
            return {"folder": [error.errno, error.strerror, error.filename and str(error.filename)]}
        return {"folder": [errno.EIO, faults.describe(error), None]}
    return {"machine" if faults.is_machine_fault(error) else "error": faults.describe(error)}


def _do(job: dict[str, Any], send: Send) -> dict[str, Any]:
    import keras

    from tf_packnet.runs.learning import learn_only

    class ReportEpochs(keras.callbacks.Callback):
        def resumed(self, history: dict[str, list[float]]) -> None:
            send({"epochs": len(history["loss"])})

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            send({"epochs": 1})

    def log(line: str) -> None:
        send({"log": line})

    config, place = Config.from_json(job["config"]), StorePlace.from_json(job["place"])
    on_damaged = corruption.handler(config.on_corruption, log)
    return learn_only(config, place, lambda task, stage: [ReportEpochs()], on_damaged, job["network"], log)


def _read(jobs: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)


def _send(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
