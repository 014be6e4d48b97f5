"""Runs of the user's own networks: functions in Python files, Keras applications, and weights from files."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import sys

import h5py
import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import ROOT, forked
from tests.test_launcher import leave, results_of
from tf_packnet import lifecycle, tasks
from tf_packnet.approaches import mlp
from tf_packnet.command_line.parsing import UsageError
from tf_packnet.command_line.run_command import parse_command
from tf_packnet.errors import ArgumentError, StoppedError
from tf_packnet.experiments import definitions, suite
from tf_packnet.experiments.worker import settings_of
from tf_packnet.packfile.saving import save_pack
from tf_packnet.reporting import summary
from tf_packnet.runs import applications, learning, network_files, networks, setup, single_run
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import ExperimentPaths, StorePlace
from tf_packnet.runs.stages import chain
from tf_packnet.system import python_files

NETS = """
import keras
from keras import layers as L

from blocks import Scale


def small(input_shape, num_classes, width=16, *, depth=1):
    body = [L.Dense(width, activation="relu") for _ in range(depth)]
    return keras.Sequential([keras.Input(input_shape), L.Flatten(), *body, Scale(), L.Dense(num_classes)])


@keras.saving.register_keras_serializable("test_own_networks")
class Net(keras.Model):
    def __init__(self, num_classes, **more):
        super().__init__(**more)
        self.body, self.top = L.Dense(8, name="body"), L.Dense(num_classes, name="top")

    def get_config(self):
        return {**super().get_config(), "num_classes": self.top.units}

    def call(self, x):
        return self.top(self.body(keras.ops.reshape(x, (-1, 64))))


def subclassed(input_shape, num_classes):
    model = Net(num_classes)
    model.build((None, *input_shape))
    return model


def pixels(input_shape, num_classes):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, L.Dense(num_classes)(L.Conv2D(4, 3)(inputs)))


def two(input_shape, num_classes, inputs=1, named=False):
    xs = [keras.Input(input_shape) for _ in range(inputs)]
    x = L.Flatten()(xs[0] if inputs == 1 else L.Add()(xs))
    y = L.Dense(num_classes)(L.Dense(4)(x))
    return keras.Model(xs if inputs > 1 else xs[0], {"logits": y} if named else [y, y])


def integers(input_shape, num_classes):
    inputs = keras.Input(input_shape, dtype="int32")
    return keras.Model(inputs, L.Dense(num_classes)(L.Dense(4)(L.Flatten()(inputs))))


def activated(input_shape, num_classes, **arguments):
    inputs = keras.Input(input_shape)
    x = L.Dense(num_classes, **arguments)(L.Dense(4)(L.Flatten()(inputs)))
    return keras.Model(inputs, x)


def softmax(input_shape, num_classes):
    inputs = keras.Input(input_shape)
    x = L.Dense(num_classes)(L.Dense(4)(L.Flatten()(inputs)))
    return keras.Model(inputs, keras.ops.softmax(x))


def only_head(input_shape, num_classes):
    return keras.Sequential([keras.Input(input_shape), L.Flatten(), L.Dense(num_classes)])


def unbuilt(input_shape, num_classes):
    return keras.Sequential([L.Flatten(), L.Dense(num_classes)])


def fails(input_shape, num_classes):
    raise RuntimeError("no network")


def other_shape(input_shape, num_classes):
    return small((7,), num_classes)


def other_outputs(input_shape, num_classes):
    return small(input_shape, num_classes + 1)


def nothing(input_shape, num_classes):
    pass


def untrainable(input_shape):
    pass


def needs(input_shape, num_classes, *, units):
    pass


class Unregistered(L.Layer):
    def call(self, x):
        return 2 * x


def unregistered(input_shape, num_classes):
    return keras.Sequential([small(input_shape, 4), Unregistered(), L.Dense(num_classes)])


def unsaved(input_shape, num_classes):
    return keras.Sequential([small(input_shape, 4), L.Lambda(lambda x: 2 * x), L.Dense(num_classes)])


NUMBER = 3
"""
BLOCKS = """
import keras


@keras.saving.register_keras_serializable("test_own_networks")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")

    def call(self, x):
        return x * self.gain
"""
STREAM = tasks.load("digits", num_tasks=2, batch_size=32)
SHORT = {"num_tasks": 2, "train_epochs": 2, "retrain_epochs": 2, "prune_rounds": 2, "final_prune": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(NETS)
    (folder / "blocks.py").write_text(BLOCKS)
    yield folder
    for name in ("nets", "blocks"):
        sys.modules.pop(name, None)
    while str(folder) in sys.path:
        sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def built(model="nets.py:small", stream=STREAM, **fields):
    keras.utils.set_random_seed(0)
    return setup.build_model(Config(model=model, **fields), stream)


def refusal(model, **fields):
    with pytest.raises(ArgumentError) as caught:
        built(model, **fields)
    error = caught.value
    assert "\n" not in error.expected
    return f"--{error.argument}={error.received}: expected {error.expected}"


FUNCTIONS = [
    ("none.py:f", "a Python file and a function in it (No such file"),
    ("nets.py:smal", "a function that the file defines (its functions are small, "),
    ("nets.py:NUMBER", "a function that the file defines"),
    ("nets.py:fails", "returns a built Keras model (line 70: RuntimeError: no network)"),
    ("nets.py:nothing", "returns a built Keras model, not None"),
    ("nets.py:unbuilt", "returns a built Keras model; this one was not built"),
    ("nets.py:Net", "returns a built Keras model (too many positional arguments)"),
    ("nets.py:untrainable", "returns a built Keras model (too many positional arguments)"),
    ("nets.py:other_shape", "one input of shape ('batch', 8, 8, 1), not ('batch', 7)"),
    ("nets.py:other_outputs", "one output of shape ('batch', 2), not ('batch', 3)"),
    ("nets.py:pixels", "one output of shape ('batch', 2), not ('batch', 6, 6, 2)"),
    ("nets.py:two", "one output of shape ('batch', 2), not several or named ones"),
    ("nets.py:integers", "and a float type, not int32"),
    ("nets.py:softmax", "logits, without an activation (softmax)"),
    ("nets.py:only_head", "at least one masked kernel to prune"),
    ("nets.py:unregistered", "its pack has a nets.Unregistered, which is neither registered with keras.saving."),
    ("nets.py:unsaved", "a network that can be saved; its pack has a keras.layers.Lambda"),
    ("keras.applications:MobilNet", "the name of a network in keras.applications (did you mean MobileNet"),
    ("keras.applications:imagenet_utils", "the name of a network in keras.applications"),
    ("keras.applications:ResNet50", "images of another size, not 8x8 (Input size must be at least 32x32)"),
]


@pytest.mark.parametrize(("model", "message"), FUNCTIONS, ids=[model for model, _ in FUNCTIONS])
def test_models_that_are_refused(model, message):
    text = refusal(model)
    assert text.startswith(f"--model={model}: expected ")
    assert message in text


ARGUMENTS = [
    (
        "nets.py:small",
        '{"widht":3}',
        '--model_args={"widht":3}: expected arguments of nets.py:small, among width, depth',
    ),
    ("nets.py:small", '{"input_shape":3}', "among width, depth (not input_shape)"),
    ("nets.py:activated", '{"num_classes":3}', "(not num_classes)"),
    ("nets.py:nothing", '{"a":3}', "expected {}: it takes no arguments (not a)"),
    ("nets.py:needs", "{}", "--model_args={}: expected arguments for all parameters without a default"),
    ("nets.py:small", '{"width":-1}', "--model=nets.py:small: expected a function"),
    ("nets.py:two", '{"inputs":2}', "one input of shape ('batch', 8, 8, 1), not 2 inputs"),
    ("nets.py:two", '{"named":true}', "one output of shape ('batch', 2), not several or named ones"),
    ("nets.py:activated", '{"activation":"softmax"}', "logits, without an activation (softmax)"),
    ("nets.py:activated", '{"activation":"sigmoid"}', "logits, without an activation (sigmoid)"),
    ("keras.applications:VGG16", '{"include_top":true}', "among input_shape, pooling (not include_top)"),
    ("keras.applications:VGG16", '{"input_shape":[32,32]}', "an input_shape such as [96, 96, 3]"),
    ("keras.applications:VGG16", '{"input_shape":[32,32,1]}', "an input_shape such as [96, 96, 3]"),
    ("keras.applications:MobileNetV2", '{"input_shape":[32,32,3],"alpha":"x"}', "--model_args="),
]


@pytest.mark.parametrize(("model", "arguments", "message"), ARGUMENTS)
def test_arguments_that_are_refused(model, arguments, message):
    assert message in refusal(model, model_args=arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exclude": ("x",)}, "--exclude=x: expected names of layers of the model"),
        ({"exclude": ("dense",)}, "at least one masked kernel to prune"),
        ({"head_layers": ("x",)}, "--head_layers=x: expected names of layers of the model"),
    ],
)
def test_layers_that_are_refused(fields, message):
    assert message in refusal(**{"model": "nets.py:small", **fields})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model=nets.py"],
            "--model=nets.py: expected one of mlp, conv, text, keras.applications:NAME and FILE.py:FUNCTION",
        ),
        (["--model=nets.py:a b"], "expected one of mlp, conv"),
        (["--model=keras.applications:"], "expected one of mlp, conv"),
        (["--model=nets.py:small", "--model_args=[1]"], "expected a JSON object"),
        (["--model=nets.py:small", "--model_args={"], "expected a JSON object"),
        (["--model=nets.py:small", '--model_args={"a":NaN}'], "expected a JSON object"),
        (["--model=nets.py:small", "--model_args=" + '{"a":' * 600], "expected a JSON object"),
        (['--model_args={"a":1}'], "no value with --model=mlp, whose arguments are --hidden_units"),
        (["--weights=imagenet"], "none or a file with --model=mlp"),
        (["--weights=imagenet", "--model=nets.py:small"], "none or a file with --model=nets.py:small"),
        (["--pretrained"], "--pretrained=true: expected --weights with it"),
        (["--head_layers=head", "--head=shared"], "no value with --head=shared"),
        (["--sweep=exclude=a,b"], "NAME=VALUE,VALUE with a NAME among"),
    ],
)
def test_flags_that_are_refused_before_any_work(flags, message):
    with pytest.raises((ArgumentError, UsageError)) as caught:
        parse_command(["main.py", *flags])
    error = caught.value
    text = (
        f"--{error.argument}={error.received}: expected {error.expected}" if hasattr(error, "expected") else str(error)
    )
    assert message in text
    assert "\n" not in text


def test_a_missing_file_is_refused_before_the_data_is_loaded(monkeypatch):
    monkeypatch.setattr(learning, "load_stream", None)
    for fields in ({"model": "nets.py:smal"}, {"model": "nets.py:untrainable"}, {"weights": "x.keras"}):
        with pytest.raises(ArgumentError):
            learning.Run.prepare(Config(**fields))
        with pytest.raises(ArgumentError):
            single_run.show_plan(Config(**fields))


class TestArguments:
    def test_they_reach_the_function(self):
        packed = built(model_args='{"depth": 2, "width": 5}')
        assert [tuple(each.variable.shape) for each in lifecycle.masked_weights(packed).values()] == [
            (64, 5),
            (5, 5),
        ]

    def test_equal_arguments_are_the_same_run(self):
        texts = ('{"a": 1, "b": [2.50]}', ' {"b":[2.5],"a":1}')
        assert len({Config(model="nets.py:small", model_args=text).model_args for text in texts}) == 1

    def test_a_sweep_over_objects(self):
        flags = ["--model=nets.py:small", '--sweep=model_args={"width":4,"depth":2},{},{"width":8}']
        experiment = parse_command(["main.py", *flags, "--seeds=2"]).experiment
        assert experiment.axes == {"model_args": ['{"width":4,"depth":2}', "{}", '{"width":8}']}
        assert len(experiment.configs) == 6
        again = shlex.split(experiment.command().replace("\\\n", " "))[2:]
        assert parse_command(["main.py", *again]).experiment.configs == experiment.configs

    def test_sweeps_over_models_and_weights(self):
        flags = ["--sweep=model=mlp,nets.py:small,keras.applications:VGG16", "--sweep=weights=none,w.keras"]
        configs = parse_command(["main.py", *flags]).experiment.configs
        assert len({(config.model, config.weights) for config in configs}) == 6
        assert len({settings_of(config) for config in configs}) == 3
        assert definitions.run_name(configs[2], ("model",)) == "model=nets.py:small,seed=0"

    def test_the_names_of_layers_do_not_depend_on_earlier_networks(self):
        assert [layer.name for layer in built().layers] == [layer.name for layer in built().layers]

    @pytest.mark.parametrize("model", ["nets.py:subclassed", "nets.py:small"])
    def test_excluded_layers_and_heads_by_name(self, model):
        inner, top = ("body", "top") if model.endswith("subclassed") else ("scale", "dense_1")
        packed = built(model, head_layers=(top,), exclude=() if inner == "body" else (inner,))
        assert [weight for weight in packed.owner_maps() if top in weight] == []


class TestFiles:
    """The files of a network are part of the identity of stages and results."""

    config = Config(model="nets.py:small", **SHORT)

    def keys(self, config, folder="."):
        path = f"{folder}/nets.py:small"
        config = dataclasses.replace(config, model=path)
        return [stage.key for stage in chain(config, (1, 2), "data", {}, network_files.fingerprint(config))]

    def test_keys_depend_on_the_content_and_not_on_the_path(self, tmp_path):
        before = self.keys(self.config)
        shutil.copytree(".", tmp_path, dirs_exist_ok=True)
        assert self.keys(self.config, tmp_path) == before
        (tmp_path / "blocks.py").write_text(BLOCKS.replace("ones", "zeros"))
        assert not set(self.keys(self.config, tmp_path)) & set(before)

    def test_keys_depend_on_every_setting(self, tmp_path):
        changes = [{"model_args": '{"width":3}'}, {"pretrained": True}, {"exclude": ("a",)}, {"head_layers": ("a",)}]
        for content in (b"1", b"2"):
            (tmp_path / f"{content.hex()}.keras").write_bytes(content)
            changes.append({"weights": f"{tmp_path}/{content.hex()}.keras"})
        keys = [self.keys(dataclasses.replace(self.config, **change))[0] for change in [{}, *changes]]
        assert len(set(keys)) == len(keys)
        shutil.copy(tmp_path / "31.keras", tmp_path / "copy.keras")
        assert self.keys(dataclasses.replace(self.config, weights=f"{tmp_path}/copy.keras"))[0] == keys[-2]

    def test_the_paper_s_networks_have_no_files(self):
        assert network_files.fingerprint(Config()) == {}

    def test_complete_results_of_changed_files_are_refused(self, tmp_path, capsys):
        shutil.copytree(".", tmp_path, dirs_exist_ok=True)
        mlp((8, 8, 1), 2).save(tmp_path / "w.keras")
        config = Config(
            model=f"{tmp_path}/nets.py:small", weights=f"{tmp_path}/w.keras", output_dir=str(tmp_path / "out")
        )
        results = {**results_of(config), "network": network_files.fingerprint(config), "data_fingerprint": None}
        leave(tmp_path / "out", results)
        single_run.main(config)
        assert "nothing to compute" in capsys.readouterr().err
        experiment = definitions.define("sweep", config, {"final_prune": [0.5, 0.7]})
        paths = ExperimentPaths(definitions.experiment_folder(experiment))
        leave(paths.root / "x", {**results, "config": experiment.configs[1].to_json()})
        paths.runs.mkdir()
        (paths.root / "x/results.json").rename(paths.run("final_prune=0.7,seed=0"))
        suite.check_data(experiment, paths)
        (tmp_path / "w.keras").write_bytes(b"other")
        with pytest.raises(ArgumentError, match=r"the file of --weights=\S+w.keras has changed since"):
            single_run.main(config)
        with pytest.raises(ArgumentError, match="has changed since the results there were computed"):
            suite.check_data(experiment, paths)
        (tmp_path / "nets.py").write_text(NETS + "\nX = 1\n")
        with pytest.raises(ArgumentError, match=r"--model=\S+nets.py:small and --weights=\S+w.keras has changed since"):
            single_run.main(config)

    def test_a_worker_refuses_a_file_that_has_changed_during_an_experiment(self):
        before = {**network_files.fingerprint(self.config), "model_source": "other"}
        with pytest.raises(ArgumentError, match="whose files do not change during the experiment"):
            learning.Run.prepare(self.config, before)

    def test_the_printed_table_names_the_network(self):
        text = summary._table(results_of(self.config))
        assert text.title == "digits, nets.py:small: packnet, p = 0.5, N = 2"


def values(model):
    return {"/".join(weight.path.split("/")[-2:]): np.asarray(weight) for weight in model.weights}


@pytest.fixture(scope="module")
def trained(folder):
    """Files of networks with 10 outputs, and with 2."""
    make = python_files.load(folder / "nets.py").small
    for outputs in (10, 2):
        with networks.fresh_names():
            model = make((8, 8, 1), outputs)
        model.compile("adam", "mse")
        model.fit(np.ones((4, 8, 8, 1)), np.ones((4, outputs)), verbose=0)
        for kind in ("keras", "weights.h5"):
            model.save(f"{folder}/{outputs}.{kind}") if kind == "keras" else model.save_weights(
                f"{folder}/{outputs}.{kind}"
            )
    return model


class TestWeights:
    @pytest.mark.parametrize("kind", ["keras", "weights.h5"])
    def test_all_weights_are_loaded(self, trained, kind):
        model = networks.build(Config(model="nets.py:small", weights=f"2.{kind}"), (8, 8, 1), 2)
        wanted, found = values(trained), values(model)
        assert len(found) == 5
        assert [np.array_equal(found[path], wanted[path]) for path in found] == [True] * 5

    @pytest.mark.parametrize("kind", ["keras", "weights.h5"])
    def test_heads_of_another_number_of_outputs_start_randomly(self, trained, kind):
        keras.utils.set_random_seed(3)
        fresh = values(networks.build(Config(model="nets.py:small"), (8, 8, 1), 2))
        keras.utils.set_random_seed(3)
        found = values(networks.build(Config(model="nets.py:small", weights=f"10.{kind}"), (8, 8, 1), 2))
        ten = values(keras.saving.load_model("10.keras"))
        for path, value in found.items():
            assert np.array_equal(value, (fresh if "dense_1" in path else ten)[path]), path

    def test_every_task_starts_from_pretrained_weights(self, trained):
        packed = built(weights="2.keras", pretrained=True)
        assert packed.roles.pretrained == "prunable"
        kernel = values(trained)["dense/kernel"]
        weight = lifecycle.masked_weights(packed)["dense/kernel"]
        assert np.array_equal(np.asarray(weight.base), kernel)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("width", "in it layers/dense/vars/0 has the shape (64, 5), not (64, 16)"),
            ("depth", "the network lacks layers/dense_2/vars/0"),
            ("nan", "in it layers/dense/vars/0 is not finite"),
            ("pack", "it lacks layers/dense/vars/0"),
            ("text", "that can be read (Unable"),
            ("zip", "that can be read (File is not a zip file)"),
            ("empty zip", "that can be read (\"There is no item named 'model.weights.h5'"),
            ("cut", "that can be read ("),
        ],
    )
    def test_weights_of_another_network_are_refused(self, trained, content, message, tmp_path):
        path = tmp_path / ("x.keras" if content in ("zip", "empty zip", "pack", "cut") else "x.weights.h5")
        make = python_files.load(python_files.Path("nets.py")).small
        if content in ("width", "depth"):
            make((8, 8, 1), 2, **{content: 5 if content == "width" else 2}).save_weights(path)
        elif content == "nan":
            shutil.copy("2.weights.h5", path)
            with h5py.File(path, "r+") as file:
                file["layers/dense/vars/0"][3, 4] = np.nan
        elif content == "pack":
            built().save(path)
        elif content == "empty zip":
            import zipfile

            zipfile.ZipFile(path, "w").close()
        elif content == "cut":
            whole = python_files.Path("2.keras").read_bytes()
            path.write_bytes(whole[:-2000].replace(b"", b"") + whole[-700:])
        else:
            path.write_bytes(b"no weights")
        text = refusal("nets.py:small", weights=str(path))
        assert text.startswith(f"--weights={path}: expected ")
        assert message in text

    def test_weights_of_the_paper_s_networks(self, tmp_path):
        model = mlp((8, 8, 1), 10, (8,))
        model.save_weights(tmp_path / "w.weights.h5")
        packed = built("mlp", hidden_units=(8,), weights=f"{tmp_path}/w.weights.h5")
        assert np.array_equal(np.asarray(packed.get_layer("dense_1").kernel), np.asarray(model.layers[2].kernel))


@pytest.fixture(scope="module")
def backbone(folder):
    model = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35, pooling="avg"
    )
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight * rng.uniform(0.9, 1.1, weight.shape))
    model.save_weights(folder / "mobile.weights.h5")
    with h5py.File(folder / "mobile.h5", "w") as file:  # the format of Keras's downloads
        keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return model


class TestApplications:
    name = "keras.applications:MobileNetV2"
    arguments = '{"alpha": 0.35, "input_shape": [32, 32, 3]}'

    def features(self, model, images):
        return np.asarray(keras.Model(model.input, model.get_layer("head").input)(images))

    @pytest.mark.parametrize("weights", ["mobile.weights.h5", "imagenet"])
    def test_it_computes_the_features_that_the_application_computes(self, backbone, weights, monkeypatch, folder):
        asked = []
        get_file = lambda name, *_, **__: asked.append(name) or str(folder / "mobile.h5")  # noqa: E731
        monkeypatch.setattr(keras.src.utils.file_utils, "get_file", get_file)
        config = Config(model=self.name, model_args=self.arguments, weights=weights)
        model = networks.build(config, (8, 8, 1), 4)
        assert len(asked) == (weights == "imagenet")
        images = np.random.default_rng(0).random((3, 8, 8, 1)).astype("float32")
        resized = keras.ops.image.resize(np.repeat(images, 3, axis=-1), (32, 32))
        prepared = keras.applications.mobilenet_v2.preprocess_input(np.array(resized) * 255)
        np.testing.assert_allclose(self.features(model, images), np.asarray(backbone(prepared)), rtol=1e-4, atol=1e-5)
        assert model.output_shape == (None, 4)

    def test_weights_that_cannot_be_downloaded(self, monkeypatch):
        def get_file(*arguments, **named):
            raise Exception("URL fetch failure on https://somewhere: no route")

        monkeypatch.setattr(keras.src.utils.file_utils, "get_file", get_file)
        text = refusal(self.name, model_args=self.arguments, weights="imagenet")
        assert "--weights=imagenet: expected imagenet for a network that has such weights" in text
        assert "(URL fetch failure on https://somewhere: no route)" in text

    @pytest.mark.slow
    def test_a_pack_of_it(self, backbone, tmp_path):
        packed = built(self.name, model_args=self.arguments, weights="mobile.weights.h5", exclude=("Conv1",))
        assert "Conv1/kernel" not in packed.owner_maps()
        assert "block_1_expand/kernel" in packed.owner_maps()
        images = STREAM[0].splits["test"].x[:3]
        packed.begin_task("a")
        packed.commit_task()
        before = np.asarray(packed(images))
        save_pack(packed, tmp_path / "a.packnet")
        assert np.array_equal(np.asarray(tp.load_pack(tmp_path / "a.packnet")(images)), before)

    def test_every_application_has_a_preprocessing(self):
        for name in applications.names():
            config = Config(model=f"keras.applications:{name}")
            assert callable(sys.modules[applications.find(config).__module__].preprocess_input)
        assert len(applications.names()) >= 40

    def test_examples_that_are_no_images(self):
        vectors = tasks.from_arrays(
            "a", np.random.default_rng(0).random((40, 6), "float32"), np.arange(40) % 2, batch_size=8
        )
        with pytest.raises(ArgumentError, match=r"mlp or your own function, for inputs of shape \(6,\)"):
            built(self.name, stream=tasks.TaskStream("vectors", [vectors]))


def learned(store, observers=lambda task, stage: (), **fields):
    config = Config(model="nets.py:small", **{**SHORT, **fields})
    return learning.learn_only(config, StorePlace(store), observers)


class TestRuns:
    @pytest.mark.parametrize("approach", ["packnet", "memory", pytest.param("multinet", marks=pytest.mark.slow)])
    def test_a_killed_run_continues_with_the_same_results(self, approach, tmp_path):
        fields = {"approach": approach, "model_args": '{"width":8}', "jit": "off"}
        whole = learned(tmp_path / "whole", **fields)
        assert whole["network"].keys() == {"model", "model_source"}

        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                if epoch == 1:
                    raise StoppedError("killed")

        with pytest.raises(StoppedError):
            learned(tmp_path / "parts", lambda task, stage: [Stop()] if stage == "prune+retrain" else [], **fields)
        again = learned(tmp_path / "parts", **fields)
        assert [stage["reused"] for stage in again["seconds"]][:2] == [True, False]
        for name in ("accuracy", "free_fraction_by_task", "weights", "network"):
            assert again[name] == whole[name]

    def test_predict_and_inspect_need_the_file_of_the_layers(self, tmp_path):
        packed = built()
        packed.begin_task("a")
        packed.commit_task()
        save_pack(packed, tmp_path / "a.packnet")
        packed.save(tmp_path / "a.keras")
        np.save(tmp_path / "x.npy", STREAM[0].splits["test"].x[:2])
        (tmp_path / "mine.py").write_text("from blocks import Scale\n")
        (tmp_path / "blocks.py").write_text(BLOCKS)
        for script, pack in (("predict", "a.packnet"), ("inspect_pack", "a.keras")):
            inputs = ["x.npy"] if script == "predict" else []
            done = run_script(script, tmp_path, f"--pack={pack}", *inputs)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
            assert re.search(r"Scale\b.*registered.*--layers=FILE.py", done.stderr)
            done = run_script(script, tmp_path, f"--pack={pack}", "--layers=mine.py", "--format=json", *inputs)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)

    @pytest.mark.slow
    def test_a_sweep_in_worker_processes(self, tmp_path):
        for name, content in (("nets.py", NETS), ("blocks.py", BLOCKS)):
            (tmp_path / name).write_text(content)
        sweeps = ['--sweep=model_args={"width":4},{"width":8,"depth":2}', "--sweep=approach=packnet,memory"]
        short = [f"--{name}={value}" for name, value in SHORT.items()]
        command = ["--model=nets.py:small", *sweeps, *short, "--output_dir=out"]
        done = run_script("main", tmp_path, *command)
        assert done.returncode == 0, done.stderr
        hashed = network_files.fingerprint(Config(model=f"{tmp_path}/nets.py:small"))["model_source"]
        assert hashed in (tmp_path / "out/report.html").read_text()
        assert len(list((tmp_path / "out/runs").iterdir())) == 4
        assert "4 runs were complete before" in run_script("main", tmp_path, *command).stdout
        (tmp_path / "blocks.py").write_text(BLOCKS.replace("ones", "zeros"))
        done = run_script("main", tmp_path, *command)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "the file of --model=nets.py:small has changed since" in done.stderr

    def test_the_command_in_the_guide(self, tmp_path):
        page = (ROOT / "docs/guide-researcher.md").read_text()
        (code,) = re.findall(r"```python\n# nets\.py\n(.*?)```", page, re.DOTALL)
        (command,) = re.findall(r"```\n(tf-packnet run --model=nets\.py.*?)```", page, re.DOTALL)
        (tmp_path / "nets.py").write_text(code)
        done = run_script("main", tmp_path, *shlex.split(command.replace("\\\n", " "))[2:], "--noexport", "--jit=off")
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "out/digits/results.json").read_text())
        assert results["average_accuracy"] > 0.9


def run_script(name, folder, *arguments):
    return forked.run(ROOT / f"launch/{name}.py", arguments, folder, 300, os.environ)
