"""Invalid data, versions, flags and files are refused immediately, with a one-line message."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, compile_model, launch, make_mlp
from tests.test_launcher import results_of
from tf_packnet import errors, lifecycle
from tf_packnet.command_line.parsing import UsageError
from tf_packnet.command_line.run_command import parse_command
from tf_packnet.command_line.run_flags import define_flags
from tf_packnet.experiments import definitions, executor
from tf_packnet.packed.safe_loading import FORMAT
from tf_packnet.runs import output, setup
from tf_packnet.runs.config import Config
from tf_packnet.runs.method_options import MAX_EPOCHS
from tf_packnet.runs.network_options import MAX_UNITS
from tf_packnet.runs.results import SCHEMA_VERSION
from tf_packnet.tasks import Split, Task, TaskStream
from tf_packnet.tasks.labelled import Labelled


def split(examples=20, **change) -> Split:
    rng = np.random.default_rng(0)
    values = {"images": rng.integers(0, 9, (examples, 4), dtype=np.uint8), "labels": np.arange(examples) % 2}
    return Split(**{**values, "scale": 0.1, **change})


def task(**splits) -> Task:
    return Task(1, "a-b", ("a", "b"), {"train": split(), "validation": split(0), "test": split(6), **splits}, 4)


def with_value(value, dtype="float32"):
    images = np.random.default_rng(0).random((3000, 4)).astype(dtype)
    images[2345, 1] = value
    return images


class TestTasks:
    """Checks of the tasks of a stream."""

    def test_valid_data(self):
        assert len(TaskStream("good", [task()])) == 1

    @pytest.mark.parametrize(
        ("splits", "message"),
        [
            ({"train": split(labels=np.arange(20) % 3)}, "0 to 1, of 2 classes. Received: tasks='2 in example 2'"),
            ({"test": split(6, labels=np.arange(6) - 1)}, "0 to 1, of 2 classes. Received: tasks='-1 in example 0'"),
            (
                {"train": split(labels=np.zeros(20, int))},
                "each class of task 'a-b'. Received: tasks=\"none of class 'b'",
            ),
            ({"train": split(labels=np.ones(20))}, "float64 values of shape .* in validation.*int64 of shape"),
            ({"test": split(6, labels=np.ones(6))}, "integer labels in test of task 'a-b'.*float64 labels"),
            ({"train": split(images=np.ones((20, 4)))}, "float64 examples of shape .* in validation of task 'a-b'"),
            ({"test": split(6, images=np.ones((6, 5), np.uint8))}, r"in test of task 'a-b'.*shape \(5,\)"),
            ({"test": split(0)}, "at least one example in test"),
            ({"train": split(0)}, "at least one example in train"),
            ({"test": split(6, labels=np.zeros(5, int))}, "a label for each of the 6 examples in test"),
            ({"train": split(scale=float("nan"))}, "a finite scale other than 0"),
            ({"train": split(scale=0.0)}, "a finite scale other than 0"),
            (
                {"train": split(images=np.full((20, 4), 7, np.uint8))},
                "examples that differ in train.*20 equal examples",
            ),
        ],
    )
    def test_invalid_data(self, splits, message):
        with pytest.raises(tp.ArgumentError, match=message) as caught:
            TaskStream("bad", [task(**splits)])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_the_message_names_the_first_example_that_is_not_finite(self, value, dtype):
        with pytest.raises(tp.ArgumentError, match="NaN or infinity in example 2345"):
            tp.tasks.from_arrays("a", with_value(value, dtype), np.arange(3000) % 2)

    def test_the_largest_finite_numbers_are_accepted(self):
        largest = np.full((20, 4), np.finfo("float32").max, "float32")
        largest[0] = 0
        assert len(tp.tasks.from_arrays("a", largest, np.arange(20) % 2, batch_size=4).splits["train"]) > 0

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (np.full(20, np.nan), "finite numbers"),
            (np.array(["a", 1] * 10, object), "of one type"),
            (np.array(["rare", *["often"] * 19]), "at least one training example of each class.*none of class 'rare'"),
        ],
    )
    def test_invalid_labels(self, y, message):
        with pytest.raises(tp.ArgumentError, match=f"`y`: expected .*{message}"):
            tp.tasks.from_arrays("a", split().images, y, batch_size=4, test_fraction=0.6)

    def test_labels_outside_the_classes_of_a_data_set(self):
        for labels in (np.arange(20) % 5, np.arange(20) % 4 - 1):
            with pytest.raises(tp.ArgumentError, match="`test`: expected whole numbers from 0 to 3, of 4 classes"):
                tp.tasks.split_into_tasks("a", split(labels=np.arange(20) % 4), split(labels=labels), list("abcd"))

    def test_errors_of_load_name_the_argument_dataset(self, monkeypatch):
        bad = Labelled("mnist", split(labels=np.arange(20) % 4), split(labels=np.arange(20) % 5), list("abcd"))
        monkeypatch.setattr("tf_packnet.tasks.datasets.load_tfds", lambda *_: bad)
        with pytest.raises(
            tp.ArgumentError, match="`dataset`: expected whole .* Received there: 4 in example 4"
        ) as caught:
            tp.tasks.load("mnist", batch_size=4)
        assert caught.value.argument == "dataset"

    def test_folders_with_copies_of_one_image(self, tmp_path):
        from PIL import Image

        for name in ("cat", "dog"):
            (tmp_path / "data" / "pets" / name).mkdir(parents=True)
            for number in range(20):
                Image.new("L", (4, 4), 9).save(tmp_path / "data" / "pets" / name / f"{number}.png")
        done = launch(f"--dataset={tmp_path / 'data'}", "--batch_size=4", f"--output_dir={tmp_path / 'out'}")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert "main.py: --dataset=" in done.stderr
        assert "examples that differ in train of task 'pets'" in done.stderr
        assert not (tmp_path / "out").exists()


class TestFit:
    """Checks of a fit before its first step."""

    @pytest.fixture(scope="class")
    def shared_packs(self):
        """Packs that tests share, because a refused fit does not change them."""
        return {}

    def packed(self, loss=None, **kwargs):
        packed = tp.pack(make_mlp(), **kwargs)
        packed.compile("sgd", loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        packed.begin_task("first", num_classes=2)
        return packed

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (np.zeros((8, 7)), np.zeros(8), r"`x`: expected batches of shape \(None, 6\) .*shape \(8, 7\)"),
            (np.zeros((8, 6, 2)), np.zeros(8), r"`x`: expected batches of shape"),
            (np.zeros((0, 6)), np.zeros(0), "`x`: expected at least one example"),
            (np.array([["a"] * 6]), np.zeros(1), "`x`: expected an array of numbers.*<U1"),
            (np.array([[None] * 6]), np.zeros(1), "`x`: expected an array of numbers.*object"),
            (np.full((8, 6), np.nan), np.zeros(8), "`x`: expected finite numbers.*example 0"),
            (np.zeros((8, 6)), np.arange(8) % 3, "`y`: expected whole numbers from 0 to 1.*2 in example 2"),
            (np.zeros((8, 6)), np.arange(8) % 2 - 1, "`y`: expected whole numbers from 0 to 1.*-1 in example 0"),
            (np.zeros((8, 6)), np.full(8, 0.5), "`y`: expected whole numbers.*float64 labels such as 0.5"),
            (np.zeros((8, 6)), np.full(8, np.nan), "`y`: expected whole numbers"),
            (np.zeros((8, 6)), np.array(["a"] * 8), "`y`: expected an array of numbers"),
        ],
    )
    @pytest.mark.parametrize("head", ["per_task", "shared"])
    def test_arrays(self, x, y, message, head, shared_packs):
        if head not in shared_packs:
            shared_packs[head] = self.packed(head=head)
        packed = shared_packs[head]
        for given in ({"x": x, "y": y}, {"x": np.ones((8, 6)), "y": np.arange(8) % 2, "validation_data": (x, y)}):
            named = "`validation_data`" if "validation_data" in given else message[:3]
            with pytest.raises(tp.ArgumentError, match=named + message[3:]):
                packed.fit(**given, verbose=0)
        assert lifecycle.has_open_task(packed)
        assert packed.optimizer.iterations == 0

    def test_no_open_task(self):
        packed = self.packed()
        packed.commit_task()
        with pytest.raises(RuntimeError, match="no task is open"):
            packed.fit(np.ones((8, 6)), np.arange(8) % 3, verbose=0)

    def test_batches(self):
        x, y = blobs(0)
        for kind in (tp.tasks.ResidentBatches, tp.tasks.StreamedBatches):
            for images, labels, scale, message in (
                (x[:, :5], y, 1.0, r"`x`: expected batches of shape \(None, 6\)"),
                (x, y + 1, 1.0, "`y`: expected whole numbers from 0 to 1"),
                (x * np.float32(np.inf), y, 1.0, "`x`: expected finite numbers"),
                (x, y, float("nan"), "`scale`: expected a finite number other than 0"),
                (x, y, 0.0, "`scale`: expected a finite number other than 0"),
            ):
                with pytest.raises(tp.ArgumentError, match=message):
                    self.packed().fit(kind(images, labels, scale, 16), verbose=0)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (tf.TensorSpec((None, 7), tf.float32), r"`x`: expected batches of shape \(None, 6\).*\(None, 7\)"),
            (tf.TensorSpec((6,), tf.float32), "`x`: expected batches of shape"),
            (tf.TensorSpec((None, 6), tf.string), "`x`: expected an array of numbers"),
        ],
    )
    def test_element_specs_of_data_sets(self, spec, message):
        def examples():
            raise AssertionError("an example was taken")

        signature = (spec, tf.TensorSpec((None,), tf.int32))
        dataset = tf.data.Dataset.from_generator(examples, output_signature=signature)
        with pytest.raises(tp.ArgumentError, match=message):
            self.packed().fit(dataset, verbose=0)

    def test_labels_of_two_kinds_and_an_ignored_class(self):
        packed = self.packed(keras.losses.BinaryCrossentropy(from_logits=True))
        with pytest.raises(tp.ArgumentError, match="`y`: expected labels from 0 to 1.*from -1 to 1"):
            packed.fit(np.ones((4, 6)), np.array([[-1, 1]] * 4), verbose=0)
        ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
        packed = self.packed(ignoring)
        packed.fit(np.ones((4, 6)), np.array([0, 1, 255, 1]), verbose=0)

    def test_fractions_as_ids_of_an_embedding(self):
        inputs = keras.Input((3,), dtype="int32")
        x = keras.layers.Flatten()(keras.layers.Embedding(5, 4)(inputs))
        packed = compile_model(tp.pack(keras.Model(inputs, keras.layers.Dense(2)(x))))
        with pytest.raises(tp.ArgumentError, match="`x`: expected whole numbers for the input"):
            packed.fit(np.full((4, 3), 0.5), np.zeros(4), verbose=0)

    def test_several_inputs_by_name_and_by_position(self):
        a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
        joined = keras.layers.Dense(4)(keras.layers.Concatenate()([a, b]))
        packed = compile_model(tp.pack(keras.Model([a, b], keras.layers.Dense(2)(joined))))
        good, bad, y = np.ones((4, 2)), np.ones((4, 4)), np.zeros(4)
        for x in ({"a": good, "b": bad}, [good, bad]):
            with pytest.raises(tp.ArgumentError, match=r"\(None, 3\) for the input 'b'.*\(4, 4\)"):
                packed.fit(x, y, verbose=0)


class TestVersions:
    def test_a_pack_of_a_newer_version(self, tmp_path):
        packed = tp.pack(make_mlp())
        packed.save(tmp_path / "pack.keras")
        assert packed.get_config()["format"] == FORMAT
        for name, change in {"newer": {"format": FORMAT + 1}, "odd": {"format": "x"}, "older": None}.items():
            with (
                zipfile.ZipFile(tmp_path / "pack.keras") as old,
                zipfile.ZipFile(tmp_path / f"{name}.keras", "w") as new,
            ):
                for member in old.infolist():
                    content = old.read(member)
                    if member.filename == "config.json":
                        config = json.loads(content)
                        del config["config"]["format"]  # as packs were saved before
                        config["config"].update(change or {})
                        content = json.dumps(config)
                    new.writestr(member, content)
        for name in ("newer", "odd"):
            with pytest.raises(ValueError, match="this pack was saved by a newer version of tf_packnet"):
                keras.models.load_model(tmp_path / f"{name}.keras")
        older = keras.models.load_model(tmp_path / "older.keras")
        for ours, theirs in zip(older.weights, packed.weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("complete", [True, False])
    def test_results_of_a_newer_version(self, complete, tmp_path):
        config = Config(output_dir=str(tmp_path))
        newer = {**results_of(config, complete), "schema_version": SCHEMA_VERSION + 1}
        (tmp_path / "results.json").write_text(json.dumps(newer))
        with pytest.raises(tp.ArgumentError, match="schema_version 3, .* a newer tf_packnet wrote it"):
            output.check(config)
        with pytest.raises(tp.ArgumentError, match="a newer tf_packnet wrote it"):
            executor.completed_results(tmp_path / "results.json", config, lambda path: None)

    def test_an_experiment_of_a_newer_version(self, tmp_path):
        experiment = definitions.define("sweep", Config(output_dir=str(tmp_path)), {"final_prune": [0.5]})
        paths = experiment_paths(experiment)
        identity = definitions.experiment_identity(experiment)
        for version, refused in ((None, False), (1, False), (2, False), (3, True)):
            more = {} if version is None else {"schema_version": version}
            (tmp_path / "experiment.json").write_text(json.dumps({**identity, **more}))
            if refused:
                with pytest.raises(tp.ArgumentError, match="a newer tf_packnet wrote it"):
                    definitions.check_experiment(experiment, paths)
            else:
                definitions.check_experiment(experiment, paths)


def experiment_paths(experiment):
    from tf_packnet.runs.paths import ExperimentPaths

    return ExperimentPaths(definitions.experiment_folder(experiment))


# An invalid value of each flag, and part of its message, or parts of alternative messages.
REFUSED = {
    "dataset": ("a\0b", "expected digits, or|expected digits, the name"),
    "data_dir": ("x" * 5000, "expected a path"),
    "classes_per_task": (str(2**63), "at least 2"),
    "num_tasks": ("255", "1 to 254 tasks"),
    "validation_fraction": ("-0.1", "a fraction from 0"),
    "test_fraction": ("0", "a fraction between 0 and 1"),
    "image_size": ("32x", "N or HEIGHTxWIDTH, in pixels from 1 to 10,000"),
    "resize": ("zoom", "one of stretch, pad, crop"),
    "label_column": ("", "the name of a column"),
    "feature_columns": ("a,a", "different names, separated by commas"),
    "text_columns": ("a,,b", "different names, separated by commas"),
    "text_length": ("0", "at least 1 and at most 100,000"),
    "vocabulary_size": ("2", "at least 3 and at most 1,000,000"),
    "max_bytes": ("0", "at least 1"),
    "scenario": ("new_classes", "one of split, permuted, rotated"),
    "class_order": ("1,2,1", "natural, shuffled, or different names or numbers"),
    "task_order": ("1,,2", "natural, shuffled, or different names or numbers"),
    "model": ("cnn", "one of mlp, conv"),
    "model_args": ('{"width": 1, "width": 2}', "a JSON object"),
    "weights": ("model.h5", "one of none, imagenet, FILE.keras and FILE.weights.h5"),
    "pretrained": ("2", "true or false"),
    "exclude": ("a,,b", "different names, separated by commas"),
    "head_layers": ("a,a", "different names, separated by commas"),
    "hidden_units": (str(MAX_UNITS + 1), "at most 1,000,000, up to 100 of them"),
    "fc8192": ("x", "one of flatten, dense"),
    "dropout": ("1", "a fraction from 0"),
    "approach": ("x", "one of packnet"),
    "train_epochs": (str(MAX_EPOCHS + 1), "at least 1 and at most 1,000,000"),
    "retrain_epochs": (str(10**12), "at least 1 and at most 1,000,000"),
    "prune_criterion": ("movement", "one of magnitude, activation, taylor"),
    "retrain_rate": ("exponential", "one of constant, linear, cosine, linear_restarts, cosine_restarts, adaptive"),
    "round_epochs": ("1,2,0", "uniform, growing, shrinking, or the epochs after each round, such as 1,2,5"),
    "retrain_time": ("8", "a time such as 90s, 15m, 8h or 1h30m, or such a time per task, such as 2h/task"),
    "deadline": ("25:00", "a time of day such as 07:00, or a date and a time such as 2030-01-31T07:00"),
    "prune_rounds": (str(10**12), "at least 1 and at most 1,000,000, or auto"),
    "final_prune": ("1", "both exclusive"),
    "shares": ("0.5,0.6", "equal, or the share of each task, such as 0.5,0.2,0.1, with a sum of at most 1"),
    "budget": ("x", "one of steps, epochs"),
    "freed_weights": ("x", "one of zero"),
    "head": ("x", "one of per_task"),
    "bias_policy": ("x", "one of first_task"),
    "prune_scope": ("x", "one of layer"),
    "optimizer": ("x", "one of adam"),
    "learning_rate": ("1e-39", "a positive number that float32 can hold"),
    "batch_size": ("0x" + "f" * 5000, "an integer"),
    "augment": ("flip,flip", "different ones of flip, crop, rotate"),
    "seed": (str(2**31), "0 to 2147483647"),
    "strategy": ("x", "one of auto"),
    "hosts": ("a:1,b", "the HOST:PORT of every worker, separated by commas: 2 to 256 different ones"),
    "host_index": ("256", "at least 0 and at most 255"),
    "logical_devices": ("65", "at least 2 and at most 64"),
    "precision": ("x", "one of float32"),
    "jit": ("x", "one of auto"),
    "data_residency": ("x", "one of auto"),
    "output_dir": ("\udcff", "expected a path"),
    "export": ("2", "true or false"),
    "compact": ("2", "true or false"),
    "on_corruption": ("ignore", "one of recompute, fail"),
    "dry_run": ("x", "true or false"),
    "experiment": ("figure9", "should be one of <figure1"),
    "sweep": ("speed=1", "NAME=VALUE,VALUE with a NAME among"),
    "seeds": (str(10**12), "at least 1 and at most 10,000"),
    "evaluations": ("1001", "at least 1 and at most 1,000"),
    "workers": (str(10**9), "at least 1 and at most 1,000"),
    "threads": ("0", "at least 1 and at most 1,000"),
    "fleet": ("0", "auto, off, or a number of runs from 1 to 256"),
    "cluster": ("ray://a:b", "local, ray, or ray://HOST:PORT"),
    "gpus_per_run": ("1.5", "a fraction from 0.001 to 1, a whole number of GPUs up to 64, or 0"),
    "memory_per_run": ("0", "a number of GiB above 0"),
    "shard": ("4/3", "I/M with 1 <= I <= M <= 10,000"),
    "merge": ("a,,b", "folders, separated by commas, or no value"),
    "stages_dir": ("a\0b", "expected a path"),
}


def refusal(*arguments) -> str:
    with pytest.raises((UsageError, tp.ArgumentError)) as caught:
        parse_command(["main.py", *arguments])
    return str(caught.value)


class TestFlags:
    def test_every_flag_is_tested(self):
        flags = sorted(name for names in define_flags()[1].values() for name in names)
        assert sorted(REFUSED) == flags, "add an invalid value of the new flag to REFUSED"

    @pytest.mark.parametrize("name", REFUSED)
    def test_the_message_names_the_flag_and_the_expected_values(self, name):
        value, message = REFUSED[name]
        error = refusal(f"--{name}={value}")
        assert any(part in error for part in message.split("|")), error
        assert name in error

    def test_too_many_runs(self):
        sweeps = [f"--sweep=train_epochs={','.join(map(str, range(1, 102)))}", "--sweep=seed=" + "1,2," * 1 + "3"]
        sweeps += [f"--sweep=batch_size={','.join(map(str, range(1, 102)))}"]
        assert "at most 10,000 runs in all" in refusal(*sweeps)
        assert "at most 10,000 runs in all" in refusal("--experiment=figure2", "--seeds=5000")

    def test_run_names_that_are_not_file_names(self):
        assert "at most 200 bytes" in refusal(f"--sweep=dataset=digits,{'é' * 100}")
        runs = parse_command(["main.py", "--sweep=dataset=./a,../../b"]).experiment
        names = [definitions.run_name(config, tuple(runs.axes)) for config in runs.configs]
        assert names == ["dataset=.%2Fa,seed=0", "dataset=..%2F..%2Fb,seed=0"]

    def test_flag_files(self, tmp_path):
        def file(name, content):
            (tmp_path / name).write_bytes(content)
            return f"--flagfile={tmp_path / name}"

        itself = file("itself", f"--flagfile={tmp_path / 'other'}\n".encode())
        file("other", f"--seed=1\n--flagfile={tmp_path / 'itself'}\n".encode())
        assert "a file of flags that does not include itself" in refusal(itself)
        assert "a readable file of flags (it is not text)" in refusal(file("bytes", b"\xff\xfe\x00"))
        assert "a readable file of flags (it is not text)" in refusal(file("nul", b"--seed=1\0"))
        assert "of at most 1,048,576 bytes" in refusal(file("large", b"#" * 2**20 + b"#"))
        for path in (tmp_path, "/dev/zero"):
            assert "a readable file of flags" in refusal(f"--flagfile={path}")
            assert "a readable file of flags" in refusal(file("outer", f"--flagfile={path}".encode()))
        for arguments in ([f"--flagfile={tmp_path / 'none'}"], ["--flagfile", str(tmp_path / "none")]):
            assert "a readable file of flags (No such file" in refusal(*arguments)
        assert (
            parse_command(["main.py", file("twice", b"--seed=3"), f"--flagfile={tmp_path / 'twice'}"]).config.seed == 3
        )

    def test_a_network_larger_than_the_ram_is_refused_before_it_is_built(self, monkeypatch):
        config = Config(hidden_units=(1000, 2000))
        weights = 64 * 1000 + 1000 * 2000 + 2000 * 2
        monkeypatch.setattr(setup, "physical_memory", lambda: 17 * weights)
        setup.check_memory(config, (8, 8, 1), 2)
        monkeypatch.setattr(setup, "physical_memory", lambda: 17 * weights - 1)
        with pytest.raises(tp.ArgumentError, match="64:1000:2000:2 take 0.0 GiB to train.*hidden_units='1000,2000'"):
            setup.check_memory(config, (8, 8, 1), 2)

    def test_sizes_of_dense_layers_of_the_paper_networks(self):
        from tf_packnet.approaches import conv

        for fc8192 in ("flatten", "dense"):
            sizes = setup.dense_sizes(Config(model="conv", fc8192=fc8192), (8, 9, 1), 2)
            dense = [layer for layer in conv((8, 9, 1), 2, fc8192).layers if isinstance(layer, keras.layers.Dense)]
            assert [tuple(layer.kernel.shape) for layer in dense] == list(zip(sizes, sizes[1:], strict=False))

    def test_the_launcher_refuses_a_network_larger_than_the_ram(self, tmp_path):
        done = launch("--hidden_units=1000000,1000000", "--dry_run", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert "--hidden_units=1000000,1000000: expected a network that fits into the" in done.stderr

    def test_one_line(self):
        assert errors.one_line("a\nb\r\x1b[2Jc\u2028d") == "a b \\x1b[2Jc d"
        cut = errors.one_line("start" + "x" * 5000 + "end")
        assert len(cut) <= 1000
        assert cut.startswith("startx")
        assert cut.endswith("xend")

    def test_first_line(self):
        assert errors.first_line(ValueError("\n first \nsecond")) == "first"
        assert errors.first_line(ValueError()) == "ValueError"
        assert errors.first_line(ValueError("x" * 500), longest=10) == "x" * 10
