"""Exports of every format compute the same as the task, work in servers, and have little overhead."""

import math
import os
import subprocess
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tf_packnet as tp
from tests.conftest import compile_model, make_convnet, make_mlp
from tf_packnet import lifecycle
from tf_packnet.export import dense_model, task
from tf_packnet.export.paths import SUFFIXES
from tf_packnet.export.shared_kernel import SharedKernel, digits_per_number, numbers_from_digits
from tf_packnet.pruning import ownership
from tf_packnet.system import extras

L = keras.layers


def pack_of(model, classes=(2, 2), density=0.5, seed=0, **kwargs):
    """Return a pack of untrained tasks `task_<k>` that together own the fraction `density` of the weights."""
    rng = np.random.default_rng(seed)
    packed = tp.pack(model, **kwargs)
    for number, units in enumerate(classes, start=1):
        packed.begin_task(num_classes=units)
        for weight in lifecycle.masked_weights(packed).values():
            candidates = ownership.candidates(weight.owner_map())
            share = density / len(classes) * weight.owner_map().size / max(1, candidates.sum())
            weight.variable.assign(rng.normal(size=candidates.shape))
            weight.prune(candidates & (rng.random(candidates.shape) < share))
        for variable in packed.trainable_variables:
            if variable.name.startswith("bias"):
                variable.assign(rng.normal(size=variable.shape))
        packed.commit_task()
        assert packed.committed_tasks == number
    return packed


def as_function(model):
    """Compile a model, as files are: a fused product may differ from separate ones in the last bit."""
    return tf.function(lambda x: model(x, training=False))


def size(path) -> int:
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size


def raw_images(shape=(8, 8, 1), examples=64, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (examples, *shape), dtype=np.uint8)


def interpreter(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow says where it will move to
        return tf.lite.Interpreter(str(path))


def lite(path, **inputs):
    """Return the outputs of a LiteRT file by name."""
    return interpreter(path).get_signature_runner()(**inputs)


@pytest.fixture(scope="module")
def trained():
    """A pack that learned the digits 0-1 and 2-3, and these tasks."""
    stream = tp.tasks.load("digits", classes_per_task=2, num_tasks=2, batch_size=32)
    layers = [keras.Input(stream.input_shape, name="image"), L.Flatten(), L.Dense(32, activation="relu")]
    packed = tp.pack(keras.Sequential([*layers, L.Dense(2, name="head")]))
    compile_model(packed, keras.optimizers.Adam(1e-2))
    schedule = tp.EqualShare(final_prune=0.5, num_tasks=2, rounds=1)
    for each in stream:
        packed.begin_task(each.name)
        callbacks = [tp.PruneRoundScheduler(schedule), tp.GradientMask()]
        packed.fit(each.train, epochs=20, verbose=0, callbacks=callbacks)
        packed.commit_task()
    return packed, stream


# SavedModel


def test_a_saved_model_names_its_inputs_and_outputs_and_takes_any_number_of_examples(tmp_path):
    packed = pack_of(make_convnet(), density=0.4)
    tp.export_task(packed, 2, tmp_path / "task")
    loaded = tf.saved_model.load(str(tmp_path / "task"))
    plain = as_function(dense_model(packed, 2))
    signature = loaded.signatures["serving_default"]
    assert list(signature.structured_input_signature[1]) == ["image"]
    assert list(signature.structured_outputs) == ["head"]
    for examples in (1, 2, 7):
        x = tf.constant(raw_images(examples=examples) / np.float32(255))
        np.testing.assert_array_equal(loaded.serve(x), plain(x))
        np.testing.assert_array_equal(signature(image=x)["head"], plain(x))


def test_weights_are_written_once_with_little_overhead(tmp_path):
    packed = pack_of(make_mlp())
    tp.export_task(packed, 1, tmp_path / "task", class_names=["no", "yes"], preprocessing="uint8")
    weights = 4 * sum(math.prod(each.shape) for each in dense_model(packed, 1).weights)
    assert len(tf.saved_model.load(str(tmp_path / "task")).variables) == 6
    assert weights <= (tmp_path / "task/variables/variables.data-00000-of-00001").stat().st_size < weights + 2000
    assert size(tmp_path / "task") < weights + 40_000


def several_ends():
    """Return a model with text and numeric inputs, two heads, a vocabulary, statistics and a seed."""
    words = L.TextVectorization(output_sequence_length=4)
    words.adapt(["the cat sat", "the dog ran"])
    text, numbers_in = keras.Input((), dtype="string", name="text"), keras.Input((6,), name="numbers")
    embedded = L.GlobalAveragePooling1D()(L.Embedding(10, 4, name="words")(words(text)))
    dense = L.Dropout(0.5)(L.Dense(5, name="dense")(numbers_in))
    joined = L.BatchNormalization()(L.Concatenate()([embedded, dense]))
    outputs = {"kind": L.Dense(2, name="x")(joined), "price": L.Dense(3, name="y")(joined)}
    return keras.Model({"text": text, "numbers": numbers_in}, outputs, name="several")


def test_several_inputs_and_outputs_are_named(tmp_path):
    packed = pack_of(several_ends(), classes=({"x": 2, "y": 1}, {"x": 4, "y": 1}))
    x = {"text": tf.constant(["the cat", "a dog ran"]), "numbers": tf.constant([[1.0] * 6, [2.0] * 6])}
    raw = {**x, "numbers": tf.constant([[10] * 6, [20] * 6], tf.uint8)}
    tp.export_task(packed, 1, tmp_path / "one")
    tp.export_task(packed, 1, tmp_path / "one.keras", format="keras", preprocessing={"numbers": 0.1})
    names = {"task_2": {"kind": ["a", "b", "c", "d"]}}
    tp.export_pack(packed, tmp_path / "all", preprocessing={"numbers": 0.1}, class_names=names)
    one, both = tf.saved_model.load(str(tmp_path / "one")), tf.saved_model.load(str(tmp_path / "all"))
    expected = {number: as_function(dense_model(packed, number))(x) for number in (1, 2)}
    assert {name: value.shape[1] for name, value in expected[2].items()} == {"kind": 4, "price": 1}
    for name in ("kind", "price"):
        np.testing.assert_array_equal(one.serve(x)[name], expected[1][name])
        np.testing.assert_array_equal(one.signatures["serving_default"](**x)[name], expected[1][name])
        saved = keras.models.load_model(tmp_path / "one.keras")(raw)[name]
        np.testing.assert_allclose(saved, expected[1][name], rtol=1e-6, atol=1e-6)
        for number in (1, 2):
            np.testing.assert_allclose(both.serve[f"task_{number}"](raw)[name], expected[number][name], rtol=1e-6)
            np.testing.assert_allclose(
                both.signatures[f"task_{number}"](**raw)[name], expected[number][name], rtol=1e-6
            )
    assert [each.numpy().decode() for each in both.class_names()["task_2/kind"]] == names["task_2"]["kind"]


# Preprocessing and class names


@pytest.mark.parametrize("preprocessing", ["uint8", 1 / 16])
def test_every_format_takes_raw_bytes(preprocessing, tmp_path):
    packed = pack_of(make_convnet(), density=0.4)
    raw = raw_images()
    scale = np.float32(1 / 255 if preprocessing == "uint8" else preprocessing)
    expected = dense_model(packed, 1)(raw.astype("float32") * scale)
    options = {"preprocessing": preprocessing, "class_names": ["zero", "one"]}
    tp.export_task(packed, 1, tmp_path / "task", **options)
    tp.export_task(packed, 1, tmp_path / "task.keras", format="keras", **options)
    tp.export_task(packed, 1, tmp_path / "task.tflite", format="tflite", **options)
    loaded = tf.saved_model.load(str(tmp_path / "task"))
    found = {
        "saved_model": loaded.serve(raw),
        "keras": keras.models.load_model(tmp_path / "task.keras")(raw),
        "tflite": lite(tmp_path / "task.tflite", image=raw)["head"],
    }
    for values in found.values():
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_class_names_are_in_every_format(tmp_path):
    packed = pack_of(make_mlp(), classes=(2, 3))
    names = ["früh", "spät", "new\nline"]
    tp.export_task(packed, 2, tmp_path / "task", class_names=names)
    tp.export_pack(packed, tmp_path / "all", class_names={"task_2": names})
    one, both = tf.saved_model.load(str(tmp_path / "task")), tf.saved_model.load(str(tmp_path / "all"))
    assert [each.decode() for each in one.class_names()["head"].numpy()] == names
    assert [each.decode() for each in one.signatures["class_names"]()["head"].numpy()] == names
    assert [each.decode() for each in both.signatures["class_names"]()["task_2"].numpy()] == names
    for name, format in (("task.keras", "keras"), ("task.tflite", "tflite")):
        tp.export_task(packed, 2, tmp_path / name, format=format, class_names=names[:2] + ["late"])
        with zipfile.ZipFile(tmp_path / name) as archive:
            assert archive.read("class_names.txt").decode().splitlines() == ["früh", "spät", "late"]


# Keras and LiteRT


def test_a_keras_file_is_the_plain_model(tmp_path):
    packed = pack_of(make_convnet(), density=0.4)
    tp.export_task(packed, 2, tmp_path / "task.keras", format="keras")
    model = keras.models.load_model(tmp_path / "task.keras")
    for ours, theirs in zip(dense_model(packed, 2).weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_lite_files_compute_as_the_task_and_have_the_stated_sizes(tmp_path):
    packed = pack_of(keras.Sequential([keras.Input((64,), name="x"), L.Dense(256), L.Dense(256), L.Dense(2, name="y")]))
    x = np.random.default_rng(1).normal(size=(50, 64)).astype("float32")
    expected = dense_model(packed, 1)(x).numpy()
    sizes = {}
    for format, tolerance in (("tflite", 1e-5), ("tflite_float16", 2e-3), ("tflite_int8", 0.05)):
        path = tmp_path / f"{format}.tflite"
        tp.export_task(packed, 1, path, format=format, calibration=x if format == "tflite_int8" else None)
        found = lite(path, x=x)["y"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
        sizes[format] = size(path)
    assert sizes["tflite_float16"] < 0.55 * sizes["tflite"]
    assert sizes["tflite_int8"] < 0.3 * sizes["tflite"]


def test_int8_from_raw_bytes_is_as_accurate(trained, tmp_path):
    packed, stream = trained
    for each in stream:
        train, test = each.splits["train"], each.splits["test"]
        path = tmp_path / f"{each.name}.tflite"
        options = {"preprocessing": train.scale, "class_names": each.class_names, "calibration": train.images[:100]}
        tp.export_task(packed, each.name, path, format="tflite_int8", **options)
        plain = dense_model(packed, each.name)(test.x).numpy()
        found = lite(path, image=test.images)["head"]
        accuracy, exact = ((logits.argmax(1) == test.y).mean() for logits in (found, plain))
        assert exact > 0.9
        assert abs(accuracy - exact) <= 0.02
        # The first layer takes the bytes themselves, without preprocessing.
        (details,) = interpreter(path).get_input_details()
        assert details["dtype"] == np.uint8
        assert details["quantization"] == (pytest.approx(train.scale), 0)


# All tasks in one file


@pytest.mark.parametrize("per_task_kernels", [False, True])
@pytest.mark.parametrize(("make", "density"), [(make_mlp, 0.02), (make_convnet, 0.6)])
def test_all_tasks_in_one_file_compute_as_their_dense_models(make, density, per_task_kernels, tmp_path):
    classes = (2, 3, 2, 5)
    packed = pack_of(make(), classes=classes, density=density, bias_policy="per_task")
    x = tf.constant(np.random.default_rng(1).normal(size=(9, *packed.input_shape[1:])).astype("float32"))
    tp.export_pack(packed, tmp_path / "all", per_task_kernels=per_task_kernels)
    loaded = tf.saved_model.load(str(tmp_path / "all"))
    assert list(loaded.signatures) == [*packed.task_names, "which_task"]
    for number, (name, units) in enumerate(zip(packed.task_names, classes, strict=True), start=1):
        expected = as_function(dense_model(packed, number))(x)
        assert expected.shape == (9, units)
        np.testing.assert_array_equal(loaded.serve[name](x), expected)
        np.testing.assert_array_equal(loaded.signatures[name](x)["head"], expected)


@pytest.mark.parametrize("density", [0.005, 0.3, 1.0])
def test_five_tasks_take_little_more_than_one(density, tmp_path):
    layers = [keras.Input((512,)), L.Dense(512, activation="relu"), L.Dense(512, activation="relu"), L.Dense(2)]
    packed = pack_of(keras.Sequential(layers), classes=(2,) * 5, density=density)
    tp.export_task(packed, 5, tmp_path / "one")
    tp.export_pack(packed, tmp_path / "all")
    assert size(tmp_path / "all") < 1.2 * size(tmp_path / "one")
    if density < 0.01:
        assert size(tmp_path / "all") < 0.15 * size(tmp_path / "one")


def test_visible_pretrained_values_are_exported(tmp_path):
    packed = pack_of(make_mlp(), pretrained="task 0", prune_pretrained=False)
    x = tf.constant(np.random.default_rng(1).normal(size=(9, 6)).astype("float32"))
    tp.export_pack(packed, tmp_path / "all")
    loaded = tf.saved_model.load(str(tmp_path / "all"))
    for name in packed.task_names:
        np.testing.assert_array_equal(loaded.serve[name](x), as_function(dense_model(packed, name))(x))


def test_mixed_precision_is_kept(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    packed = pack_of(make_mlp())
    x = tf.constant(np.random.default_rng(1).normal(size=(9, 6)).astype("float32"))
    tp.export_pack(packed, tmp_path / "all", preprocessing=None)
    loaded = tf.saved_model.load(str(tmp_path / "all"))
    np.testing.assert_array_equal(loaded.serve["task_2"](x), as_function(dense_model(packed, 2))(x))


def test_an_open_task_is_left_out(tmp_path):
    packed = pack_of(make_mlp())
    packed.begin_task("open")
    tp.export_pack(packed, tmp_path / "all")
    assert list(tf.saved_model.load(str(tmp_path / "all")).signatures) == ["task_1", "task_2", "which_task"]
    assert packed.selected_task == 3


def visible(owner, values, base, task):
    """Compute the kernel of a task, entry by entry."""
    shown = [v if 1 <= o <= task else b for o, v, b in zip(owner.flat, values.flat, base.flat, strict=True)]
    return np.reshape(np.array(shown, values.dtype), owner.shape)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    tasks=st.integers(1, 254),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    with_base=st.booleans(),
    per_task=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_a_shared_kernel_gives_the_kernel_of_every_task(shape, tasks, density, with_base, per_task, seed):
    rng = np.random.default_rng(seed)
    owner = np.where(rng.random(shape) < density, rng.integers(1, tasks + 1, shape), 0).astype(np.uint8)
    values, base = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    kernel = SharedKernel(owner, values, base if with_base else None, per_task)
    of_tasks = {number: kernel.of_task(number) for number in {1, (tasks + 1) // 2, tasks}}
    for resource in kernel._tensors:
        resource._initialize()
    for number, found in of_tasks.items():
        expected = visible(owner, values, base if with_base else np.zeros_like(base), number)
        np.testing.assert_array_equal(found(), expected)


@given(base=st.integers(2, 255), count=st.integers(0, 70), seed=st.integers(0, 2**20))
def test_numbers_hold_all_digits(base, count, seed):
    digits = np.random.default_rng(seed).integers(0, base, count).astype(np.uint8)
    room = digits_per_number(base)
    assert base**room <= 2**63 < base ** (room + 1)
    found = [int(number) // base**place % base for number in numbers_from_digits(digits, base) for place in range(room)]
    assert found[:count] == digits.tolist()
    assert len(found) - count < room
    assert not any(found[count:])


def test_an_int64_holds_the_owners_of_24_weights_for_five_tasks():
    assert digits_per_number(6) == 24


# Serving


WITH_TENSORFLOW_ALONE = """
import sys
sys.modules["tf_packnet"] = sys.modules["keras"] = None  # importing them raises
import numpy as np, tensorflow as tf
folder, x, raw = sys.argv[1], np.load(sys.argv[1] + "/x.npy"), np.load(sys.argv[1] + "/raw.npy")
found = {}
one, both = (tf.saved_model.load(folder + name) for name in ("/one", "/serving/mlp/1"))
again = tf.saved_model.load(folder + "/serving/mlp/1")
found["one"] = one.signatures["serving_default"](x=tf.constant(x))["head"]
found["classes"] = one.class_names()["head"].numpy().astype(str)
for name in ("task_1", "task_2"):
    found[name] = both.serve[name](raw)
del both
found["again"] = again.serve["task_1"](raw)
# As a server loads it: a session, the variables, then the initializers.
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    graph = tf.compat.v1.saved_model.load(session, ["serve"], folder + "/serving/mlp/1")
    signature = graph.signature_def["task_2"]
    for _ in range(2):
        found["server"] = session.run(signature.outputs["head"].name, {signature.inputs["x"].name: raw})
found["lite"] = tf.lite.Interpreter(folder + "/task.tflite").get_signature_runner()(x=x)["head"]
del sys.modules["keras"]
import keras
found["keras"] = keras.models.load_model(folder + "/task.keras")(x)
np.savez(folder + "/found.npz", **{name: np.asarray(value) for name, value in found.items()})
"""


def test_tensorflow_alone_loads_and_serves_them(tmp_path):
    packed = pack_of(make_mlp(), classes=(2, 3))
    raw = raw_images((6,), examples=5)
    x = raw.astype("float32") * np.float32(1 / 255)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "raw.npy", raw)
    tp.export_task(packed, 2, tmp_path / "one", class_names=["a", "b", "c"])
    tp.export_task(packed, 2, tmp_path / "task.keras", format="keras")
    tp.export_task(packed, 2, tmp_path / "task.tflite", format="tflite")
    tp.export_for_serving(packed, tmp_path / "serving", preprocessing="uint8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", WITH_TENSORFLOW_ALONE, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz", allow_pickle=False)
    expected = {number: as_function(dense_model(packed, number))(tf.constant(x)).numpy() for number in (1, 2)}
    owners = {"one": 2, "task_1": 1, "task_2": 2, "again": 1, "server": 2, "lite": 2, "keras": 2}
    assert {*owners, "classes"} == set(found)
    for name, number in owners.items():
        np.testing.assert_allclose(found[name], expected[number], rtol=1e-5, atol=1e-6, err_msg=name)
    assert found["classes"].tolist() == ["a", "b", "c"]


def test_new_versions_of_a_served_model_keep_earlier_ones(tmp_path):
    packed = pack_of(make_mlp())
    first = tp.export_for_serving(packed, tmp_path, task="task_1", class_names=["no", "yes"])
    assert first == tmp_path / "task_1" / "1"
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert tp.export_for_serving(packed, tmp_path, task=1) == tmp_path / "task_1" / "2"
    assert tp.export_for_serving(packed, tmp_path, task=2, name="task_1", version=10).name == "10"
    assert tp.export_for_serving(packed, tmp_path, task=2, name="task_1").name == "11"
    assert tp.export_for_serving(packed, tmp_path) == tmp_path / "mlp" / "1"
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "task_1").iterdir()) == ["1", "10", "11", "2"]
    with pytest.raises(tp.ArgumentError, match=r"does not exist yet, not one of \[1, 2, 10, 11\]. Received: version=2"):
        tp.export_for_serving(packed, tmp_path, task=1, version=2)


# Refusals


REFUSED = {
    "format": (
        {"format": "pmml"},
        "one of saved_model, keras, tflite, tflite_float16, tflite_int8, onnx. Received: format='pmml'",
    ),
    "suffix": ({"format": "keras"}, r"a name that ends with .keras \(format='keras'\)"),
    "batch": ({"format": "tflite", "batch_size": 0}, "`batch_size`: expected a whole number, at least 1, or None"),
    "any batch": ({"batch_size": 2}, "`batch_size`: expected None, because this format takes any number of examples"),
    "names": ({"class_names": ["a", "b", "c"]}, "`class_names`: expected 2 names, one per unit of 'head'"),
    "no names": ({"class_names": []}, "`class_names`: expected 2 names, one per unit of 'head'"),
    "string": ({"class_names": "ab"}, "`class_names`: expected a list of strings"),
    "no strings": ({"class_names": [0, 1]}, "`class_names`: expected a list of strings"),
    "output": (
        {"class_names": {"tail": ["a", "b"]}},
        "`class_names`: expected a mapping from output names.*are 'head'",
    ),
    "scale": ({"preprocessing": "uint16"}, "`preprocessing`: expected None, 'uint8', or a number above 0"),
    "zero": ({"preprocessing": 0}, "`preprocessing`: expected None, 'uint8', or a number above 0"),
    "nan": (
        {"preprocessing": float("nan")},
        "`preprocessing`: expected None, 'uint8', or a number above 0",
    ),
    "input": (
        {"preprocessing": {"y": "uint8"}},
        "`preprocessing`: expected a mapping from input names.*are 'x'",
    ),
    "missing": ({"format": "tflite_int8"}, "`calibration`: expected a few hundred examples"),
    "useless": (
        {"calibration": np.zeros((9, 6))},
        "`calibration`: expected None, because only tflite_int8",
    ),
    "shape": (
        {"format": "tflite_int8", "calibration": np.zeros((9, 5))},
        r"an array \(examples, 6\) of at least two",
    ),
    "few": (
        {"format": "tflite_int8", "calibration": np.zeros((3, 6)), "batch_size": 4},
        "`calibration`: expected at least 4 examples, the batch size. Received: calibration='3'",
    ),
    "one": (
        {"format": "tflite_int8", "calibration": np.zeros((1, 6))},
        r"an array \(examples, 6\) of at least two",
    ),
    "bytes": (
        {"format": "tflite_int8", "calibration": np.zeros((9, 6)), "preprocessing": "uint8"},
        r"`calibration`: expected raw bytes \(uint8\), because preprocessing is given. Received: calibration='float64'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_options_are_refused_early(case, tmp_path, monkeypatch):
    packed = pack_of(make_mlp())
    options, message = REFUSED[case]
    name = "task.tflite" if "tflite" in options.get("format", "") else "task"
    monkeypatch.setattr(tf.saved_model, "save", None)
    with pytest.raises(tp.ArgumentError, match=message):
        tp.export_task(packed, 1, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_replaced(tmp_path):
    packed = pack_of(make_mlp())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("meow")
    for export in (lambda path: tp.export_task(packed, 1, path), lambda path: tp.export_pack(packed, path)):
        with pytest.raises(tp.ArgumentError, match="`path`: expected a folder .*; this is a file"):
            export(tmp_path / "file")
        with pytest.raises(tp.ArgumentError, match="`path`: expected a new folder, an empty one, or a SavedModel"):
            export(tmp_path / "photos")
    with pytest.raises(tp.ArgumentError, match="`path`: expected a file .*; this is a folder"):
        tp.export_task(packed, 1, tmp_path / "folder.keras", format="keras")
    assert (tmp_path / "photos/cat.jpg").read_text() == "meow"


def test_invalid_options_for_all_tasks(tmp_path):
    fresh = tp.pack(make_mlp())
    with pytest.raises(tp.ArgumentError, match="`packed`: expected a pack with at least one committed task"):
        tp.export_pack(fresh, tmp_path / "all")
    packed = pack_of(make_mlp())
    of_tasks = "`class_names`: expected a mapping from task names.*'task_1', 'task_2'"
    for names, expected in (
        ({"cats": ["a", "b"]}, of_tasks),
        (["a", "b"], "`class_names`: expected a mapping"),
        ([], "`class_names`: expected a mapping"),
    ):
        with pytest.raises(tp.ArgumentError, match=expected):
            tp.export_pack(packed, tmp_path / "all", class_names=names)
    with pytest.raises(tp.ArgumentError, match="`class_names`: expected 2 names, one per unit of 'head'"):
        tp.export_pack(packed, tmp_path / "all", class_names={"task_2": ["a"]})
    for options, message in (
        ({"name": "../up"}, "`name`: expected a valid folder name"),
        ({"name": ".hidden"}, "`name`"),
        ({"version": 0}, "`version`: expected an integer of at least 1"),
        ({"version": True}, "`version`"),
        ({"compact": True}, "`compact`: expected False without a task"),
        ({"task": 1, "per_task_kernels": True}, "`per_task_kernels`: expected False with a task"),
    ):
        with pytest.raises(tp.ArgumentError, match=message):
            tp.export_for_serving(packed, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_integer_inputs_take_no_preprocessing(tmp_path):
    words = keras.Input((4,), dtype="int32", name="words")
    packed = pack_of(keras.Model(words, L.Dense(2)(L.Flatten()(L.Embedding(9, 3)(words)))))
    with pytest.raises(tp.ArgumentError, match="`preprocessing`: expected None, because input 'words' takes int32"):
        tp.export_task(packed, 1, tmp_path / "task", preprocessing="uint8")


def test_networks_unsupported_by_lite_are_refused_in_one_line(tmp_path):
    packed = pack_of(several_ends(), classes=(None, None))
    message = "^Invalid `format`: expected a format that .* this network; LiteRT cannot: 'tf.StringLower' op is [^\n]*$"
    with pytest.raises(tp.ArgumentError, match=message):
        tp.export_task(packed, 1, tmp_path / "task.tflite", format="tflite")
    assert list(tmp_path.iterdir()) == []


RECURRENT = {
    "lstm": lambda: [L.LSTM(8, return_sequences=True), L.LSTM(6)],
    "gru": lambda: [L.Bidirectional(L.GRU(6))],
    "rnn": lambda: [L.SimpleRNN(6, go_backwards=True)],
    "cells": lambda: [L.RNN([L.GRUCell(6), L.LSTMCell(5)])],
    "convolution": lambda: [L.Reshape((4, 5, 1)), L.ConvLSTM1D(3, 2), L.Flatten()],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_in_lite_files_of_a_fixed_number_of_examples(kind, tmp_path):
    packed = pack_of(keras.Sequential([keras.Input((4, 5), name="x"), *RECURRENT[kind](), L.Dense(2, name="y")]))
    path, x = tmp_path / "task.tflite", np.random.default_rng(0).normal(size=(3, 4, 5)).astype("float32")
    with pytest.raises(tp.ArgumentError, match=r"^Invalid `format`: [^\n]*, such as batch_size=1\. Received[^\n]*$"):
        tp.export_task(packed, 1, path)
    for compact in (False, True):
        tp.export_task(packed, 1, path, batch_size=3, compact=compact)
        expected = tp.dense_model(packed, 1)(x)
        np.testing.assert_allclose(lite(path, x=x)["y"], expected, rtol=1e-5, atol=1e-5)
    tp.export_task(packed, 1, path, format="tflite_float16", batch_size=3)
    np.testing.assert_allclose(lite(path, x=x)["y"], expected, atol=1e-2)
    with pytest.raises(tp.ArgumentError, match="`format`: expected tflite or tflite_float16 for networks with loops"):
        tp.export_task(packed, 1, path, format="tflite_int8", batch_size=3, calibration=x)


def onnx_outputs(path, **inputs):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def transformer():
    words = keras.Input((6,), dtype="int32", name="words")
    x = L.Embedding(9, 8)(words)
    x = L.LayerNormalization()(L.Add()([x, L.MultiHeadAttention(2, 4)(x, x)]))
    x = L.Dense(8, activation="gelu")(x)
    return keras.Model(words, L.Dense(2, name="y")(L.GlobalAveragePooling1D()(x)))


class TestOnnx:
    @pytest.fixture(autouse=True)
    def _converter(self):
        pytest.importorskip("tf2onnx", reason="ONNX files need the extra onnx")

    def test_files_take_raw_bytes_and_any_number_of_examples(self, tmp_path):
        packed = pack_of(make_convnet())
        raw = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype("uint8")
        for compact in (False, True):
            names = ["cat", "dog"]
            tp.export_task(packed, 1, tmp_path / "a.onnx", preprocessing="uint8", class_names=names, compact=compact)
            for count in (1, 3):
                found = onnx_outputs(tmp_path / "a.onnx", image=raw[:count])["head"]
                expected = tp.dense_model(packed, 1)(raw[:count] / np.float32(255))
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        import onnx

        (names,) = onnx.load(tmp_path / "a.onnx").metadata_props
        assert (names.key, names.value) == ("class_names", "cat\ndog")

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["transformer", "lstm", "gru"])
    def test_other_networks(self, kind, tmp_path):
        rng = np.random.default_rng(0)
        if kind == "transformer":
            model, inputs = transformer(), {"words": rng.integers(0, 9, (3, 6)).astype("int32")}
        else:
            model = keras.Sequential([keras.Input((4, 5), name="x"), *RECURRENT[kind](), L.Dense(2, name="y")])
            inputs = {"x": rng.normal(size=(3, 4, 5)).astype("float32")}
        packed = pack_of(model)
        tp.export_task(packed, 1, tmp_path / "a.onnx")
        expected = tp.dense_model(packed, 1)(*inputs.values())
        np.testing.assert_allclose(onnx_outputs(tmp_path / "a.onnx", **inputs)["y"], expected, rtol=1e-5, atol=1e-5)

    def test_unknown_operations_are_refused_in_one_line(self, tmp_path):
        packed = pack_of(several_ends(), classes=(None, None))
        with pytest.raises(tp.ArgumentError, match=r"^Invalid `format`: [^\n]*; ONNX cannot: [^\n]*$"):
            tp.export_task(packed, 1, tmp_path / "a.onnx")
        assert list(tmp_path.iterdir()) == []

    def test_keras_exports_the_plain_models(self, tmp_path):
        packed = pack_of(make_mlp())
        x = np.ones((3, 6), "float32")
        for model in (tp.dense_model(packed, 1), tp.compact_model(tp.dense_model(packed, 1))):
            model.export(tmp_path / "a.onnx", format="onnx", verbose=False)
            (found,) = onnx_outputs(tmp_path / "a.onnx", x=x).values()
            np.testing.assert_allclose(found, tp.dense_model(packed, 1)(x), rtol=1e-5, atol=1e-5)


def test_without_its_extra_no_onnx_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(extras.MissingExtraError, match=r"pip install 'tf_packnet\[onnx\]'"):
        tp.export_task(pack_of(make_mlp()), 1, tmp_path / "a.onnx")


@pytest.mark.parametrize("mode", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("compact", [pytest.param(False, marks=pytest.mark.slow), True])
def test_plain_models_can_be_quantized_by_keras(mode, compact, tmp_path):
    model = tp.dense_model(pack_of(make_mlp()), 1)
    model = tp.compact_model(model) if compact else model
    x = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    expected = model(x)
    model.quantize(mode)
    quantized = model(x)
    model.save(tmp_path / "a.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "a.keras")(x), quantized)
    assert 0 < np.abs(quantized - expected).max() < {"int8": 0.05, "int4": 0.5}[mode] * np.abs(expected).max()


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("a", "a.keras")), "a.tflite"]
)
def test_plain_and_sparsified_models_are_exported_too(name, tmp_path):
    model = make_mlp()
    sparse = tp.sparsify(model)
    for weight in lifecycle.masked_weights(sparse).values():
        weight.prune(np.abs(weight.values()) > np.median(np.abs(weight.values())))
    x = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    for each, compact in ((model, False), (sparse, True)):
        tp.export_model(each, tmp_path / name, compact=compact)
        path = tmp_path / name
        assert path.is_file() == ("." in name)
        if name == "a.tflite":
            found = lite(path, x=x)["head"]
        else:
            loaded = keras.models.load_model(path) if name == "a.keras" else tf.saved_model.load(path)
            found = loaded(x) if name == "a.keras" else loaded.serve(x)
        np.testing.assert_allclose(found, each(x), rtol=1e-5, atol=1e-5)


def test_models_that_cannot_be_exported(tmp_path):
    with pytest.raises(tp.ArgumentError, match="`model`: expected a built Sequential or functional model"):
        tp.export_model(keras.Sequential([L.Dense(2)]), tmp_path / "a")
    for model in (L.Dense(2), None):
        with pytest.raises(tp.ArgumentError, match="`model`: expected a Keras model"):
            tp.export_model(model, tmp_path / "a")


@pytest.mark.parametrize("name", ["task", "all"])
def test_a_failed_export_keeps_the_earlier_one(name, tmp_path, monkeypatch):
    packed = pack_of(make_mlp())

    def export():
        if name == "task":
            tp.export_task(packed, 1, tmp_path / name)
        else:
            tp.export_pack(packed, tmp_path / name)

    export()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    save = tf.saved_model.save

    def fails(*args, **kwargs):
        save(*args, **kwargs)
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        export()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_compact_models_are_exported_with_the_names_of_the_task(tmp_path, monkeypatch):
    """The endpoint of a compact model has the input and output names of the task."""
    packed = pack_of(make_mlp())
    asked = []

    def smaller(model, sparse):
        asked.append(model)
        return make_mlp()

    monkeypatch.setattr(task, "compact_model", smaller)
    tp.export_task(packed, 1, tmp_path / "task", compact=True, preprocessing="uint8", class_names=["a", "b"])
    (model,) = asked
    assert not np.array_equal(model.get_layer("dense_1").kernel, 0)
    assert list(tf.saved_model.load(str(tmp_path / "task")).signatures) == ["serving_default", "class_names"]


@pytest.mark.parametrize("format", ["saved_model", "keras", "tflite", "tflite_float16", "tflite_int8"])
@pytest.mark.parametrize("density", [0.03, 0.4])
def test_compact_files_compute_as_the_task(format, density, tmp_path):
    layers = [keras.Input((16, 16, 1), name="x"), L.Flatten(), L.Dense(128, activation="relu"), L.Dense(64)]
    packed = pack_of(keras.Sequential([*layers, L.Dense(2, name="y")]), density=density)
    path = tmp_path / f"task{SUFFIXES[format]}"
    raw = raw_images((16, 16, 1))
    calibration = raw if format == "tflite_int8" else None
    tp.export_task(packed, 1, path, format=format, compact=True, preprocessing="uint8", calibration=calibration)
    if format == "saved_model":
        loaded = tf.saved_model.load(str(path))
        found = loaded.serve(raw)
    else:
        found = keras.models.load_model(path)(raw) if format == "keras" else lite(path, x=raw)["y"]
    expected = dense_model(packed, 1)(raw / np.float32(255)).numpy()
    tolerance = {"tflite_float16": 2e-3, "tflite_int8": 0.1}.get(format, 1e-5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
