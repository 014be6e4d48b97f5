import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_convnet, make_mlp
from tests.test_freeze import learn
from tf_packnet.export import dense_model

LOAD_WITHOUT_THE_LIBRARY = """
import sys
import numpy as np, tensorflow as tf
sys.modules["tf_packnet"] = None  # importing it would raise
loaded = tf.saved_model.load(sys.argv[1])
np.save(sys.argv[3], loaded.serve(np.load(sys.argv[2])))
kernels = {v.path if hasattr(v, "path") else v.name: v.numpy() for v in loaded.variables}
np.savez(sys.argv[4], **{name.replace("/", "|"): value for name, value in kernels.items()})
"""


def pack_of(make, num_tasks=2, **kwargs):
    packed = compile_model(tp.pack(make(), **kwargs), "adam")
    for number in range(1, num_tasks + 1):
        learn(packed, number, blobs(number, packed.input_shape[1:]), num_tasks)
    return packed


@pytest.mark.parametrize("make", [make_mlp, make_convnet])
@pytest.mark.parametrize("head", ["per_task", "shared"])
@pytest.mark.parametrize("bias_policy", ["first_task", "per_task"])
def test_the_plain_model_has_the_logits_of_the_pack(make, head, bias_policy):
    packed = pack_of(make, head=head, bias_policy=bias_policy)
    x = blobs(5, packed.input_shape[1:])[0]
    for task in (1, 2):
        plain = dense_model(packed, task)
        assert not any(type(layer).__module__.startswith("tf_packnet") for layer in plain._flatten_layers())
        packed.select_task(task)
        np.testing.assert_allclose(plain.predict(x, verbose=0), packed.predict(x, verbose=0), rtol=1e-5, atol=1e-7)


def test_what_is_not_the_tasks_is_0_and_the_rest_is_its_own():
    packed = pack_of(make_mlp)
    for task in (1, 2):
        kernel = dense_model(packed, task).get_layer("dense_1").kernel
        owner = packed.owner_maps()["dense_1/kernel"]
        visible = (owner > 0) & (owner <= task)
        np.testing.assert_array_equal(np.array(kernel)[~visible], 0)
        assert (np.array(kernel)[visible] != 0).all()


def test_a_process_without_the_library_serves_a_saved_model(tmp_path):
    packed = pack_of(make_convnet)
    x = blobs(5, (8, 8, 1), examples=7)[0]
    np.save(tmp_path / "x.npy", x)
    for task in (1, 2):
        tp.export_task(packed, task, tmp_path / f"task_{task}")
        arguments = [tmp_path / name for name in (f"task_{task}", "x.npy", "y.npy", "weights.npz")]
        subprocess.run([sys.executable, "-c", LOAD_WITHOUT_THE_LIBRARY, *map(str, arguments)], check=True, cwd=tmp_path)
        packed.select_task(task)
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), packed.predict(x, verbose=0), rtol=1e-5, atol=1e-7)
        weights = dict(np.load(tmp_path / "weights.npz"))
        owner = packed.owner_maps()["conv_1/kernel"]
        kernel = next(value for value in weights.values() if value.shape == owner.shape)
        np.testing.assert_array_equal(kernel != 0, (owner > 0) & (owner <= task))


def test_mixed_precision_packs_export_too(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    packed = pack_of(make_mlp)
    x = blobs(5)[0]
    tp.export_task(packed, "task_1", tmp_path / "task_1")
    import tensorflow as tf

    packed.select_task(1)
    loaded = tf.saved_model.load(str(tmp_path / "task_1"))
    np.testing.assert_allclose(loaded.serve(x), packed.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_export_selects_nothing_and_replaces_what_was_there(tmp_path):
    packed = pack_of(make_mlp)
    packed.select_task(2)
    for _ in range(2):
        tp.export_task(packed, 1, tmp_path / "task_1")
    assert packed.selected_task == 2
    assert [p.name for p in tmp_path.iterdir()] == ["task_1"]


def test_tasks_that_cannot_be_exported(tmp_path):
    packed = pack_of(make_mlp)
    packed.begin_task("open")
    with pytest.raises(RuntimeError, match="'open' is still being learned"):
        tp.export_task(packed, "open", tmp_path / "x")
    with pytest.raises(tp.ArgumentError, match="'open', or its number. Received: task='cats'"):
        tp.export_task(packed, "cats", tmp_path / "x")
    with pytest.raises(tp.ArgumentError, match="`task`"):
        tp.export_task(packed, 9, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
