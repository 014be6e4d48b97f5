"""Stored results are refused if the data have changed since."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_launcher import leave, results_of
from tf_packnet import tasks
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import definitions, suite
from tf_packnet.runs import learning, setup, single_run
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import ExperimentPaths


@pytest.fixture
def config(tmp_path):
    """A run on a folder of images."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / "pets" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 255, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "pets" / name / f"{number}.png")
    return Config(dataset=str(tmp_path / "data"), batch_size=4, output_dir=str(tmp_path / "out"))


def fingerprint(config):
    return tasks.load(config.dataset, validation_fraction=0.1, batch_size=4).fingerprint()


def write_complete(path, config, data_fingerprint):
    leave(path.parent, {**results_of(config), "data_fingerprint": data_fingerprint})
    (path.parent / "results.json").rename(path)


def change_one_pixel(config):
    path = next(iter(sorted((tasks_folder(config) / "cat").iterdir())))
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def tasks_folder(config):
    return Path(config.dataset) / "pets"


class TestRun:
    def test_unchanged_data_shows_the_results(self, config, tmp_path, capsys):
        write_complete(tmp_path / "out/results.json", config, fingerprint(config))
        single_run.main(config)
        printed = capsys.readouterr()
        assert "nothing to compute" in printed.err
        assert "0.5000" in printed.out

    def test_changed_data_is_refused(self, config, tmp_path, capsys):
        write_complete(tmp_path / "out/results.json", config, fingerprint(config))
        change_one_pixel(config)
        with pytest.raises(
            ArgumentError, match="`output_dir`: expected a new folder .the data of .* has changed since"
        ):
            single_run.main(config)
        assert capsys.readouterr().out == ""

    def test_results_of_an_earlier_version_have_no_fingerprint(self, config, tmp_path, capsys):
        write_complete(tmp_path / "out/results.json", config, None)
        change_one_pixel(config)
        single_run.main(config)
        assert "0.5000" in capsys.readouterr().out

    def test_unreadable_data_prints_a_line_and_the_results(self, config, tmp_path, capsys):
        write_complete(tmp_path / "out/results.json", config, fingerprint(config))
        for path in (tasks_folder(config) / "dog").iterdir():
            path.unlink()
        single_run.main(config)
        printed = capsys.readouterr()
        assert "cannot check whether --dataset=" in printed.err
        assert "0.5000" in printed.out


def test_an_experiment_checks_the_data_of_its_first_complete_run(config, tmp_path):
    experiment = definitions.define("sweep", config, {"final_prune": [0.5, 0.7]})
    paths = ExperimentPaths(definitions.experiment_folder(experiment))
    suite.check_data(experiment, paths)
    write_complete(paths.run("final_prune=0.7,seed=0"), experiment.configs[1], fingerprint(config))
    suite.check_data(experiment, paths)
    change_one_pixel(config)
    with pytest.raises(ArgumentError, match="has changed since"):
        suite.check_data(experiment, paths)


def test_a_run_records_the_fingerprint_of_its_data(config, monkeypatch):
    monkeypatch.setattr(setup, "make_deterministic", lambda *_: None)
    assert learning.Run.prepare(config).results.to_json()["data_fingerprint"] == fingerprint(config)
