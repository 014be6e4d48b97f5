"""A worker process that trains several runs side by side, in a `Fleet`. `fleet_worker` starts it.

It reads the same jobs and sends the same replies as `worker_process`. Each has the number of its job as `"job"`.
"""

import functools
import gc
import queue
import sys
from typing import Any

from tf_packnet.experiments.worker_process import Send, reply_to, start


def main() -> None:
    """Do all jobs from standard input, as many at a time as the first argument says."""
    jobs, send = start()
    from tf_packnet.training.fleet import Fleet

    fleet = Fleet(int(sys.argv[1]))
    while True:
        while fleet.size < fleet.slots and (job := _next(jobs, wait=not fleet.size)):
            fleet.start(functools.partial(_do, job, send))
        size = fleet.size
        fleet.advance()
        if fleet.size < size:
            gc.collect()


def _next(jobs: "queue.Queue[dict[str, Any]]", wait: bool) -> dict[str, Any] | None:
    try:
        return jobs.get(block=wait)
    except queue.Empty:
        return None


def _do(job: dict[str, Any], send: Send) -> None:
    def send_with_number(reply: dict[str, Any]) -> None:
        send({**reply, "job": job["job"]})

    send_with_number(reply_to(job, send_with_number))


if __name__ == "__main__":
    main()
