"""Shares finished stages and results between hosts without a shared disk: objects in a bucket or a folder.

Unfinished work, locks and backups stay in a local store. A finished stage is published in two steps: first its state,
in an object named by its checksum; then its record, which is written once and names the state.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.runs import corruption, stage_folder
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace
from tf_packnet.runs.results import read_results
from tf_packnet.runs.stage_folder import RECORDS, STATES, StageFolder
from tf_packnet.runs.stages import Stage
from tf_packnet.runs.store import StageStore
from tf_packnet.system import files, objects
from tf_packnet.system.objects import Found, Objects


def open_store(
    place: StorePlace,
    on_damaged: corruption.OnDamaged | None = None,
    log: Callable[[str], None] = corruption.print_line,
) -> StageStore:
    """Return the store of stages at a place. Arguments as for `StageStore`."""
    if place.stages is None:
        return StageStore(place.folder, on_damaged, log)
    return SharedStore(place.folder, objects.open_url("stages_dir", place.stages), on_damaged, log)


def open_results(place: StorePlace, on_damaged: corruption.OnDamaged | None = None) -> "SharedResults | None":
    """Return the shared results of a place; None if it shares none. Arguments as for `StageStore`."""
    if place.results is None:
        return None
    shared: Objects = objects.Folder(Path(place.results))
    if objects.is_url(place.results):
        shared = objects.open_url("stages_dir", place.results)
    return SharedResults(shared, on_damaged or corruption.handler(corruption.RECOMPUTE))


class SharedStore(StageStore):
    """A local store that publishes its stages, and fetches published stages that it does not have.

    Args:
        root: The local folder.
        shared: Where stages are published.
        on_damaged: As for `StageStore`; also called with the URL of a damaged object, which is then written again.
        log: As for `StageStore`.
    """

    def __init__(
        self,
        root: Path,
        shared: Objects,
        on_damaged: corruption.OnDamaged | None = None,
        log: Callable[[str], None] = corruption.print_line,
    ):
        super().__init__(root, on_damaged, log)
        self._shared = shared
        self._reported: set[str] = set()

    def has_state(self, stage: Stage) -> bool:
        return self._entry(stage) is not None and (super().has_state(stage) or self._fetch_state(stage))

    def put(self, stage: Stage, record: dict[str, Any], state: dict[str, np.ndarray], own: Path | None = None) -> bool:
        return self.folder(stage).write(record, state, own, lambda new: self._publish(stage, new))

    def drop_state(self, stage: Stage) -> None:
        folder = self.folder(stage)
        entry = folder.entry()
        if entry is not None and folder.has_state():
            self._shared.delete(_state_name(stage, entry))
        super().drop_state(stage)

    def _entry(self, stage: Stage) -> dict[str, Any] | None:
        entry = super()._entry(stage)
        if entry is None and self._fetch_record(stage):
            entry = super()._entry(stage)
        return entry

    def _fetch_record(self, stage: Stage) -> bool:
        """Copy the published record of a stage into the local folder. Return whether there is an intact one."""
        with stage_folder.own_folder(self.root) as own:
            new = StageFolder(own / stage.key)
            new.path.mkdir()
            found = self._download_record(stage, new)
            if found is Found.WHOLE:
                shutil.copyfile(new.path / RECORDS[0], new.path / RECORDS[1])
                self.folder(stage).place(new)
        return found is Found.WHOLE

    def _download_record(self, stage: Stage, new: StageFolder) -> Found:
        name = _record_name(stage)
        found = self._shared.download(name, new.path / RECORDS[0], lambda: new.entry() is not None)
        if found is Found.DAMAGED:
            self._report(name)
        return found

    def _report(self, name: str) -> None:
        if name not in self._reported:  # report once: it stays damaged until it is written again
            self._reported.add(name)
            self.on_damaged(f"{self._shared.url}/{name}")

    def _fetch_state(self, stage: Stage) -> bool:
        """Copy the published state after a stage into the local folder. Return whether there is an intact one."""
        entry = self.folder(stage).entry()
        assert entry is not None
        name = _state_name(stage, entry)
        with stage_folder.own_folder(self.root) as own:
            path = own / STATES[0]
            found = self._shared.download(name, path, lambda: files.sha256(path) == entry["sha256"])
            if found is Found.WHOLE:
                self.folder(stage).add_state(path, own)
        if found is Found.DAMAGED:
            self._report(name)
        return found is Found.WHOLE

    def _publish(self, stage: Stage, new: StageFolder) -> bool:
        """Publish a complete folder; returns False if another result of the stage is published."""
        ours = new.entry()
        assert ours is not None
        name, record = _state_name(stage, ours), new.path / RECORDS[0]
        self._shared.upload(new.state_path, name)
        if self._shared.upload(record, _record_name(stage), once=True):
            return True
        with stage_folder.own_folder(self.root) as own:
            published = StageFolder(own / stage.key)
            published.path.mkdir()
            found = self._download_record(stage, published)
            theirs = published.entry() if found is Found.WHOLE else None
        if theirs is None:  # damaged
            self._shared.upload(record, _record_name(stage))
        elif theirs["sha256"] != ours["sha256"]:
            self._shared.delete(name)
            self.log(f"{self._shared.url}/{stage.key}: another host has stored another result, which is kept")
            return False
        return True


class SharedResults:
    """The results of finished runs, which hosts of any platform share; see `stages.results_key`.

    Args:
        shared: Where they are published.
        on_damaged: Called with the URL of a damaged object, which is then written again.
    """

    def __init__(self, shared: Objects, on_damaged: corruption.OnDamaged):
        self._shared, self._on_damaged = shared, on_damaged

    def read(self, key: str, config: Config) -> dict[str, Any] | None:
        """Return the results of a run as those of `config`, with all stages marked as reused; None without any."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "results.json")
            found = self._shared.download(_results_name(key), path, lambda: _is_whole(path))
            results = _read(path) if found is Found.WHOLE else None
        if found is Found.DAMAGED:
            self._on_damaged(f"{self._shared.url}/{_results_name(key)}")
        if results is None:
            return None
        seconds = [{**stage, "reused": True} for stage in results["seconds"]]
        return {**results, "config": config.to_json(), "seconds": seconds}

    def write(self, key: str, results: dict[str, Any]) -> None:
        """Publish the results of a run, unless intact ones are already published."""
        with tempfile.TemporaryDirectory() as folder:
            path, theirs = Path(folder, "results.json"), Path(folder, "theirs.json")
            files.write_json(path, results)
            name = _results_name(key)
            if self._shared.upload(path, name, once=True):
                return
            if self._shared.download(name, theirs, lambda: _is_whole(theirs)) is Found.DAMAGED:
                self._shared.upload(path, name)


def _read(path: Path) -> dict[str, Any] | None:
    """Return the results in a file; None if it is damaged, or a newer version of this library wrote it."""
    try:
        results = read_results(path, "stages_dir", corruption.ignore)
    except ArgumentError:
        return None
    return results if results and results["complete"] else None


def _is_whole(path: Path) -> bool:
    try:
        return read_results(path, "stages_dir", corruption.ignore) is not None
    except ArgumentError:  # written by a newer version
        return True


def _record_name(stage: Stage) -> str:
    return f"{stage.key}/{RECORDS[0]}"


def _state_name(stage: Stage, entry: dict[str, Any]) -> str:
    return f"{stage.key}/{entry['sha256']}.npz"


def _results_name(key: str) -> str:
    return f"results/{key}.json"
