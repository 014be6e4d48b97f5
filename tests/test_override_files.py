"""Packs of a user's model class keep that class in files, copies and other processes."""

import copy
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs
from tests.test_overrides import (
    Counted,
    OldLoss,
    TemperedStep,
    Tracked,
    VariationalStep,
    called,
    compiled,
    graph,
    learn,
    sequential,
)

ALL = {
    "functional": lambda: Tracked(*graph()),
    "sequential": lambda: sequential(OldLoss),
    "subclassed": lambda: called(VariationalStep()),
    "call": lambda: called(TemperedStep()),
}


@pytest.mark.parametrize("kind", ALL)
def test_the_class_survives_every_way_to_copy_and_save_it(kind, tmp_path):
    model = ALL[kind]()
    packed = compiled(tp.pack(model))
    names = set(learn(packed, 1))
    packed.save(tmp_path / "pack.keras")
    packed.save_weights(tmp_path / "pack.weights.h5")
    tp.save_pack(packed, tmp_path / "pack.packnet")
    made = tp.PackedModel.from_config(packed.get_config())
    made.load_weights(tmp_path / "pack.weights.h5")
    ways = {
        "keras": keras.models.load_model(tmp_path / "pack.keras"),
        "file": tp.load_pack(tmp_path / "pack.packnet"),
        "pickle": pickle.loads(pickle.dumps(packed)),
        "deepcopy": copy.deepcopy(packed),
        "config": made,
    }
    x = blobs(1)[0]
    for way, again in ways.items():
        assert type(again) is type(packed), way
        assert isinstance(again, type(model))
        np.testing.assert_array_equal(again(x), packed(x), err_msg=way)
        assert again.get_config()["model"] == packed.get_config()["model"]
        if way in ("keras", "file"):
            assert set(learn(compiled(again), 2)) == names


def test_an_unregistered_class(tmp_path):
    class Nowhere(Counted):
        pass

    packed = compiled(tp.pack(Nowhere(*graph())))
    learn(packed, 1)
    packed.save(tmp_path / "pack.keras")
    with pytest.raises(tp.ArgumentError, match="the class of the packed model, 'Nowhere': import a class registered"):
        keras.models.load_model(tmp_path / "pack.keras")
    again = keras.models.load_model(tmp_path / "pack.keras", custom_objects={"Nowhere": Nowhere})
    assert isinstance(again, Nowhere)
    again = tp.PackedModel.from_config(packed.get_config(), custom_objects={"Nowhere": Nowhere})
    assert isinstance(again, Nowhere)
    assert isinstance(copy.deepcopy(packed), Nowhere)
    with pytest.raises(tp.ArgumentError, match="Nowhere.* registered"):
        tp.save_pack(packed, tmp_path / "pack.packnet")


def test_a_model_that_cannot_be_rebuilt_is_packed_but_not_saved(tmp_path):
    class Closed(Counted):
        def __init__(self, inputs, outputs, function):
            super().__init__(inputs, outputs)
            self.function = function

        def train_step(self, data):
            return {**super().train_step(data), "extra": self.function(2.0)}

    packed = compiled(tp.pack(Closed(*graph(), lambda x: x + 1)))
    assert learn(packed, 1)["extra"] == [3.0, 3.0]
    with pytest.raises(tp.ArgumentError, match=r"get_config\(\)"):
        packed.save(tmp_path / "pack.keras")


FRESH = """
import sys
import keras, numpy as np
import tf_packnet as tp
import tests.test_overrides as t
packed = keras.models.load_model(sys.argv[1])
x = t.blobs(1)[0]
assert isinstance(packed, t.Tracked)
assert np.array_equal(packed(x), np.load(sys.argv[2]))
history = t.learn(packed, 2)
assert {"mine", "hits", "sparsity"} <= set(history), history
packed.select_task(1)
assert np.array_equal(packed(x), np.load(sys.argv[2]))
assert np.allclose(packed.predict(x, verbose=0).sum(axis=1), 1)
"""


def test_a_new_process_that_has_imported_the_class(tmp_path):
    packed = compiled(tp.pack(Tracked(*graph(), weight=3.0)))
    learn(packed, 1)
    packed.save(tmp_path / "pack.keras")
    np.save(tmp_path / "seen.npy", packed(blobs(1)[0]))
    command = [sys.executable, "-c", FRESH, tmp_path / "pack.keras", tmp_path / "seen.npy"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
