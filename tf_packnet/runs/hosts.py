"""The hosts of a run with `--strategy=multiworker`, from its flags or from `TF_CONFIG`."""

import json
import os
from dataclasses import dataclass
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.runs.config import Config
from tf_packnet.runs.options import MAX_HOSTS, is_address

VARIABLE = "TF_CONFIG"


@dataclass(frozen=True)
class Hosts:
    """All workers of a run.

    Attributes:
        addresses: `host:port` of each. The first worker writes all files.
        index: Which of them this process is, from 0.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def tf_config(self) -> str:
        """What TensorFlow expects in the environment variable `TF_CONFIG`."""
        return json.dumps({"cluster": {"worker": self.addresses}, "task": {"type": "worker", "index": self.index}})


def find(config: Config) -> Hosts | None:
    """Return the hosts of a run; None if it has one process.

    Raises:
        ArgumentError: If neither the flags nor `TF_CONFIG` name them, they contradict each other, or `TF_CONFIG` is
            invalid.
    """
    if config.strategy != "multiworker":
        return None
    flags = None if config.host_index is None else Hosts(tuple(config.hosts), config.host_index)
    text = os.environ.get(VARIABLE, "")
    if not text and flags is None:
        raise ArgumentError("hosts", f"the HOST:PORT of every worker, or {VARIABLE} in the environment", None)
    environment = _parse(text) if text else None
    if flags and environment and flags != environment:
        expected = f"the same workers as in {VARIABLE} ({environment.tf_config}); or unset {VARIABLE}"
        raise ArgumentError("hosts", expected, ",".join(config.hosts))
    return flags or environment


def _parse(text: str) -> Hosts:
    """Return the hosts in a `TF_CONFIG`. Its chief, if it has one, is the first worker."""
    try:
        value = json.loads(text)
        groups = {name: list(_texts(value["cluster"][name])) for name in value["cluster"]}
        kind, index = str(value["task"]["type"]), value["task"]["index"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _invalid('an object like {"cluster": {"worker": ["a:1", "b:1"]}, "task": ...}', text) from error
    unknown = sorted(groups.keys() - {"chief", "worker"})
    if unknown:
        raise _invalid("workers and a chief only", f"cluster {unknown[0]}")
    chiefs = groups.get("chief", [])
    if len(chiefs) > 1:
        raise _invalid("one chief", chiefs)
    if isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 10:
        index = int(index)  # some schedulers write it as text
    if kind not in groups or type(index) is not int or not 0 <= index < len(groups[kind]):
        raise _invalid("a task that is in its cluster", f"task {kind} {index}")
    addresses = (*chiefs, *groups.get("worker", []))
    if not 2 <= len(addresses) <= MAX_HOSTS:
        raise _invalid(f"2 to {MAX_HOSTS} workers", f"{len(addresses)}")
    invalid = [each for each in addresses if not is_address(each) or addresses.count(each) > 1]
    if invalid:
        raise _invalid("a different HOST:PORT for each worker", invalid[0])
    return Hosts(addresses, index + (len(chiefs) if kind == "worker" else 0))


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError
    return value


def _invalid(expected: str, received: Any) -> ArgumentError:
    shown = str(received)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
    return ArgumentError("strategy", f"{VARIABLE} to have {expected} (it has {shown})", "multiworker")
