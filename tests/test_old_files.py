"""Files of earlier versions can be loaded. `tests/fixtures` has a pack of format 1 and the predictions of its tasks."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import ROOT, blobs, compile_model
from tf_packnet import lifecycle

FILES = ROOT / "tests/fixtures"


@pytest.mark.parametrize("name", ["format_1.keras", "format_1.packnet"])
def test_a_pack_of_format_1(name):
    load = keras.models.load_model if name.endswith(".keras") else tp.load_pack
    packed = load(FILES / name)
    with np.load(FILES / "format_1.npz", allow_pickle=False) as recorded:
        recorded = dict(recorded)
    assert packed.task_names == ["first", "second"]
    for task in packed.task_names:
        packed.select_task(task)
        np.testing.assert_allclose(packed.predict(recorded["x"], verbose=0), recorded[task], rtol=1e-5, atol=1e-6)
    assert sorted(lifecycle.records(packed).witnesses) == [1, 2]  # recorded when the file is loaded
    packed.freed_weights = "zero"
    packed.begin_task("third", num_classes=2)
    compile_model(packed).fit(*blobs(0), verbose=0)
    weight = lifecycle.masked_weights(packed)["hidden/kernel"]
    weight.frozen.assign(weight.frozen + 1)
    with pytest.raises(tp.FreezeError, match="'first'.*'hidden/kernel'"):
        packed.fit(*blobs(0), verbose=0)


def test_a_compact_model_of_version_0_1(tmp_path):
    x, expected = np.arange(144, dtype="float32").reshape(2, 6, 6, 2) / 100, np.load(FILES / "compact_0.1.npy")
    model = keras.models.load_model(FILES / "compact_0.1.keras")
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5)
    model.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
