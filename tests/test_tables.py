"""Tasks from CSV and Parquet files: what is read, how it is encoded, and what is refused."""

import json
import zipfile

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import tf_packnet as tp
from tests.conftest import compile_model, launch
from tf_packnet.packfile.info import info_of
from tf_packnet.prediction import Asked, predict
from tf_packnet.system.table_files import Table, TableError, read_table
from tf_packnet.tasks import Columns
from tf_packnet.tasks.encodings import Features, Text, from_json

WORDS = ("Ärger!", "tea", "Tea", "a-b", "don't", "", "coffee,", "x", "x", "y", "tea")
SMALL = {"batch_size": 4, "validation_fraction": 0.0}


def rows(count=40, prefix="", start=0):
    """A table of numbers, categories and labels as lines of CSV."""
    lines = [f"{i * 0.5 + start},{'red' if i % 3 else 'blue'},{prefix}{i % 2}" for i in range(count)]
    return "\n".join(["size,colour,label", *lines]) + "\n"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def columns_of(path):
    return {name: column.to_pylist() for name, column in read_table(path).columns.items()}


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("a.csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n", {"a": ["1"], "b": ["2"]}),
            ("a.csv", 'a,"b, c"\n1,"two\nlines"\n', {"a": ["1"], "b, c": ["two\nlines"]}),
            ("a.csv", "a;b\n1,5;x,y\n-2;z\n", {"a": ["1.5", "-2"], "b": ["x,y", "z"]}),
            ("a.csv", "a|b\n 1 |2 \n\n", {"a": ["1"], "b": ["2"]}),
            ("a.tsv", "a,x\tb\n1\t2\n", {"a,x": ["1"], "b": ["2"]}),
            ("a.csv", 'a,b\nNA,"NA"\n " ",\n', {"a": [None, '" "'], "b": ["NA", None]}),
        ],
    )
    def test_csv(self, tmp_path, name, content, expected):
        assert columns_of(write(tmp_path / name, content)) == expected

    def test_parquet(self, tmp_path):
        columns = {
            "whole": [1, None],
            "flag": [True, None],
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "ids": pa.array([[1, 2], []], pa.list_(pa.int32())),
        }
        parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
        found = {"whole": [1.0, None], "flag": ["True", None], "text": ["a", "b"], "ids": [[1, 2], []]}
        assert columns_of(tmp_path / "a.parquet") == found

    def test_booleans_are_what_pandas_writes_to_csv(self, tmp_path):
        frame = pd.DataFrame({"flag": [True, False, True]})
        frame.to_csv(tmp_path / "a.csv", index=False)
        frame.to_parquet(tmp_path / "a.parquet")
        assert columns_of(tmp_path / "a.csv") == columns_of(tmp_path / "a.parquet")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "a header and rows in .*an empty file"),
            ("a,b\n", "at least one row in .*, not none"),
            ("\n1,2\n", "a header with the names of the columns"),
            ("a,b\n1,2\n3\n", r"2 cell\(s\) in row 2 of .*, like its header, not 1: '3'"),
            ("a,b\n1,2,3\n", r"2 cell\(s\) in row 1 of .*, not 3: '1,2,3'"),
            ("a,a\n1,2\n", "columns with different names in .*, not 'a' twice"),
            (b"a,b\n1,\xe4\n", "text in UTF-8 in line 2 of .*, not the byte b'.xe4'"),
            ("a,b\n1,2\n".encode("utf-16"), "text in UTF-8 in line 1"),
        ],
    )
    def test_what_is_refused(self, tmp_path, content, message):
        with pytest.raises(TableError, match=message):
            read_table(write(tmp_path / "a.csv", content))

    def test_memory_is_limited(self, tmp_path):
        with pytest.raises(TableError, match=r"a smaller table \(.*max_bytes=\d+ allows it"):
            read_table(write(tmp_path / "a.csv", rows()), max_bytes=100)
        with pytest.raises(tp.ArgumentError, match="2,560 encoded values would take"):
            tp.tasks.from_folder(write(tmp_path / "b.csv", "a,label\n" + "x,0\ny,1\n" * 10), max_bytes=1000)
        write(tmp_path / "c.parquet", b"PAR1" + b"x" * 100)
        with pytest.raises(TableError, match="a parquet file that can be read"):
            read_table(tmp_path / "c.parquet")


def table(**columns):
    arrays = {name: pa.array(column) for name, column in columns.items()}
    return Table("t.csv", arrays, len(next(iter(columns.values()))))


class TestEncodings:
    def test_text_is_encoded_as_keras_does(self, tmp_path):
        texts = [" ".join(np.random.default_rng(i).choice(WORDS, 6)) + " \t new\u00a0line\n" for i in range(20)]
        lines = "".join(f'"{text}",{i % 2}\n' for i, text in enumerate(texts))
        write(tmp_path / "train.csv", "review,label\n" + lines)
        write(tmp_path / "test.csv", 'review,label\n"TEA unseen!",1\n"... !",0\n')
        task = tp.tasks.from_folder(tmp_path, columns=Columns(length=5, vocabulary=9), **SMALL)
        layer = keras.layers.TextVectorization(9, output_sequence_length=5)
        layer.adapt([text.strip() for text in texts])
        assert ["", "[UNK]", *task.encoding.vocabulary] == layer.get_vocabulary()
        for split, given in (("train", texts), ("test", ["TEA unseen!", "... !"])):
            np.testing.assert_array_equal(task.splits[split].images, layer(given).numpy())
        assert task.splits["train"].images.dtype == np.int32

    def test_numbers_are_standardized_by_training_examples(self, tmp_path):
        task = tp.tasks.from_folder(write(tmp_path / "a.csv", rows()), batch_size=4)
        training = np.concatenate([task.splits[name].images[:, 0] for name in ("train", "validation")])
        assert training.mean() == pytest.approx(0, abs=1e-6)
        assert training.std() == pytest.approx(1, abs=1e-6)
        assert abs(task.splits["test"].images[:, 0].mean()) > 1e-3
        assert set(map(tuple, task.splits["test"].images[:, 1:])) == {(1, 0), (0, 1)}

    def test_equal_numbers_become_0(self, tmp_path):
        text = "a,b,label\n" + "".join(f"7,{i},{i % 2}\n" for i in range(20))
        task = tp.tasks.from_folder(write(tmp_path / "a.csv", text), **SMALL)
        assert (task.splits["train"].images[:, 0] == 0).all()

    def test_lists_of_ids(self, tmp_path):
        ids = [[5] * (i % 4) + [i % 7] for i in range(20)]
        parquet.write_table(pa.table({"ids": ids, "y": np.arange(20) % 2}), tmp_path / "a.parquet")
        task = tp.tasks.from_folder(tmp_path / "a.parquet", columns=Columns(length=3, vocabulary=7), **SMALL)
        found = {tuple(row) for split in task.splits.values() for row in split.images}
        assert found == {tuple((each + [0, 0])[:3]) for each in ids}
        with pytest.raises(tp.ArgumentError, match="ids from 0 to 5 in row 7, column 'ids' of .*Received: path='6'"):
            tp.tasks.from_folder(tmp_path / "a.parquet", columns=Columns(length=3, vocabulary=6), **SMALL)

    @pytest.mark.parametrize(
        "value",
        [
            None,
            {"columns": []},
            {"columns": [{"name": "a", "mean": 0.0, "deviation": 0.0}]},
            {"columns": [{"name": "a", "categories": [1]}]},
            {"columns": [{"name": "a", "mean": 0.0, "deviation": 1.0}] * 2},
            {"text": ["a"], "length": 10**9, "vocabulary": []},
            {"tokens": "a", "length": 2, "size": True},
            {"tokens": "a", "length": 2, "size": 3, "more": 1},
        ],
    )
    def test_a_record_that_is_none(self, value):
        with pytest.raises(ValueError, match="an encoding of a table"):
            from_json(value)

    def test_records_are_restored(self):
        for encoding in (Text(("a",), 3, ("x", "ä")), tp.tasks.tables.learn_number("a", [np.arange(3.0)])):
            encoding = encoding if isinstance(encoding, Text) else Features((encoding,))
            assert from_json(json.loads(json.dumps(encoding.to_json()))) == encoding


class TestStreams:
    def test_layouts(self, tmp_path):
        write(tmp_path / "one.csv", rows())
        for name in ("b", "a"):
            write(tmp_path / "files" / f"{name}.csv", rows(prefix=name))
            write(tmp_path / "folders" / name / "train.csv", rows(prefix=name))
            write(tmp_path / "folders" / name / "test.csv", rows(10, prefix=name))
        write(tmp_path / "parts" / "train-00000-of-00002.csv", rows())
        write(tmp_path / "parts" / "train-00001-of-00002.csv", rows())
        write(tmp_path / "parts" / "test" / "any.csv", rows(10))
        found = {}
        for name in ("one.csv", "files", "folders", "parts"):
            stream = tp.tasks.load(str(tmp_path / name), **SMALL)
            assert stream.name == name.removesuffix(".csv")
            found[name] = [(task.name, *(len(task.splits[split]) for split in ("train", "test"))) for task in stream]
        assert found == {
            "one.csv": [("0-1", 32, 8)],
            "files": [("a", 32, 8), ("b", 32, 8)],
            "folders": [("a", 40, 10), ("b", 40, 10)],
            "parts": [("0-1", 80, 10)],
        }
        both = tp.tasks.load(f"{tmp_path / 'one.csv'},{tmp_path / 'parts'}", **SMALL)
        assert [task.name for task in both] == ["one", "parts"]
        again = [tp.tasks.load(str(tmp_path / "files"), **SMALL).fingerprint() for _ in range(2)]
        assert again[0] == again[1]

    def test_all_tasks_have_one_encoding(self, tmp_path):
        write(tmp_path / "a.csv", rows())
        write(tmp_path / "b.csv", rows(start=100).replace("red", "green"))
        first, second = tp.tasks.load(str(tmp_path), **SMALL)
        assert first.encoding == second.encoding
        assert first.encoding.columns[1].categories == ("blue", "green", "red")
        assert 20 < first.encoding.columns[0].mean < 100
        info = info_of([first, second])
        assert info["table"] == first.encoding.to_json()
        assert "table" not in info["tasks"]["a"]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"label": "kind"}, "`label_column`: expected one of the columns 'id', 'size', 'colour', 'note', 'class'"),
            ({}, "`feature_columns`: expected other columns than 'note' .* whose 300 different texts"),
            ({"features": ["weight"]}, "`feature_columns`: expected columns other than the labels, of 'id', 'size'"),
            ({"text": ["note"], "features": ["note", "size"]}, "`text_columns`: expected all columns of the examples"),
            ({"features": ["id", "id"]}, "`feature_columns`: expected different names"),
            ({"text": "notes"}, "`text_columns`: expected columns other than the labels.*'notes'"),
            ({"length": 0}, "`text_length`: expected 1 to 100,000"),
            ({"label": "size", "features": ["id"]}, "`label_column`: expected class numbers or names in column 'size'"),
        ],
    )
    def test_columns_that_do_not_fit(self, tmp_path, columns, message):
        lines = [f"{i},{i / 4},red,note {i},{i % 2}" for i in range(300)]
        write(tmp_path / "a.csv", "\n".join(["id,size,colour,note,class", *lines]))
        with pytest.raises(tp.ArgumentError, match=message):
            tp.tasks.from_folder(tmp_path / "a.csv", columns=Columns(**columns))

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"b.csv": "size,label\n1,0\n2,1\n"}, "the columns of .*a.csv in .*b.csv.*2 columns, without 'colour'"),
            ({"b.csv": "size,colour,label,x\n1,red,0,1\n"}, "4 columns, with 'x'"),
            ({"b.csv": rows(20) + ",red,1\n"}, "a value in row 21, column 'size' of .*b.csv.*an empty cell"),
            ({"b.csv": rows(20) + "1,red,\n"}, "a value in row 21, column 'label' of .*b.csv"),
            ({"b.csv": rows(20) + "inf,red,1\n"}, "a finite number in row 21, column 'size' of .*b.csv"),
            ({"b.xlsx": "x"}, r"only tables that can be read \(.csv, .tsv, .parquet\).*b.xlsx"),
            ({"b.png": "x"}, "only tables that can be read.*b.png"),
            ({"b/1.png": "x"}, "either tables or folders"),
            ({"train.csv": rows()}, "only tables named train or test.* beside .*train.csv"),
        ],
    )
    def test_folders_that_do_not_fit(self, tmp_path, files, message):
        write(tmp_path / "tables" / "a.csv", rows())
        for name, content in files.items():
            write(tmp_path / "tables" / name, content)
        with pytest.raises(tp.ArgumentError, match=message) as error:
            tp.tasks.load(str(tmp_path / "tables"))
        assert error.value.argument == "dataset"

    def test_a_number_that_is_none(self, tmp_path):
        text = "a,b,label\n" + "".join(f"{i},x,{i % 2}\n" for i in range(300)) + "?,x,0\n"
        with pytest.raises(tp.ArgumentError, match=r"a finite number in row 301, column 'a' of .*'\?'"):
            tp.tasks.from_folder(write(tmp_path / "a.csv", text))

    def test_test_files_have_nothing_new(self, tmp_path):
        write(tmp_path / "train.csv", rows())
        for line, message in (
            ("1,pink,0", "one of blue, red in row 1, column 'colour' of"),
            ("1,red,7", "only classes"),
        ):
            write(tmp_path / "test.csv", f"size,colour,label\n{line}\n")
            with pytest.raises(tp.ArgumentError, match=message):
                tp.tasks.from_folder(tmp_path)
        write(tmp_path / "test.csv", "size,colour,label\nbig,red,0\n")
        with pytest.raises(tp.ArgumentError, match="a finite number in row 1, column 'size'.*'big'"):
            tp.tasks.from_folder(tmp_path)

    def test_images_and_tables(self, tmp_path):
        write(tmp_path / "a.csv", rows())
        with pytest.raises(tp.ArgumentError, match="tables only, or images only"):
            tp.tasks.load(f"digits,{tmp_path / 'a.csv'}")
        with pytest.raises(tp.ArgumentError, match="`image_size`: expected no value for tables"):
            tp.tasks.load(str(tmp_path / "a.csv"), image_size=8)
        with pytest.raises(tp.ArgumentError, match="`text_columns`: expected no value for images"):
            tp.tasks.load("digits", columns=Columns(text=["a"]))


def test_predict_reads_tables_as_training_did(tmp_path, capsys):
    text = "".join(f'"{"good fine" if i % 2 else "bad sad"} tea {i}",{"yes" if i % 2 else "no"}\n' for i in range(40))
    write(tmp_path / "reviews.csv", "review,label\n" + text)
    task = tp.tasks.from_folder(tmp_path / "reviews.csv", columns=Columns(length=4, vocabulary=9), **SMALL)
    network = tp.approaches.text((4,), 2, vocabulary_size=9, hidden_units=[8])
    packed = tp.pack(network)
    packed.begin_task("reviews", num_classes=2)
    compile_model(packed)
    packed.fit(task.train, epochs=3, verbose=0)
    packed.commit_task()
    tp.save_pack(packed, tmp_path / "p.packnet", info=info_of([task]))
    write(tmp_path / "new.csv", "id,review\n1,GOOD fine!\n2,unseen words\n")
    predict(Asked(str(tmp_path / "p.packnet"), (str(tmp_path / "new.csv"),), format="json"))
    found = json.loads(capsys.readouterr().out)["predictions"]
    for name, inside in (("model", "assets.extra"), ("model.keras", "")):
        form = "saved_model" if inside else "keras"
        tp.export_task(packed, 1, tmp_path / name, format=form, encoding=task.encoding)
        file = tmp_path / name / inside if inside else zipfile.Path(tmp_path / name)
        assert from_json(json.loads((file / "table.json").read_text(encoding="utf-8"))) == task.encoding
    ids = np.array([[task.encoding.vocabulary.index(word) + 2 for word in ("good", "fine")] + [0, 0], [1, 1, 0, 0]])
    logits = packed.predict(ids, verbose=0)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [each["example"] for each in found] == ["1", "2"]
    for each, row in zip(found, shares, strict=True):
        best = each["classes"][0]
        assert best["class"] == ("no", "yes")[row.argmax()]
        assert best["probability"] == pytest.approx(row.max(), abs=1e-5)
    for content, message in (
        ("text\nx\n", "a column 'review' in .*new.csv.*the columns text"),
        ("review\nNA\nx\n", "a value in row 1, column 'review' of .*new.csv"),
    ):
        write(tmp_path / "new.csv", content)
        with pytest.raises(tp.ArgumentError, match=message) as error:
            predict(Asked(str(tmp_path / "p.packnet"), (str(tmp_path / "new.csv"),)))
        assert error.value.argument == "input"
    tp.save_pack(packed, tmp_path / "p.packnet")
    with pytest.raises(tp.ArgumentError, match="images or arrays, because the pack does not record"):
        predict(Asked(str(tmp_path / "p.packnet"), (str(tmp_path / "new.csv"),)))


def words_network(dtype):
    inputs = keras.Input((6,), dtype=dtype, name="ids")
    hidden = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(300, 4, mask_zero=True)(inputs))
    return tp.pack(keras.Model(inputs, keras.layers.Dense(2)(hidden)), seed=0)


def test_ids_are_not_scaled(tmp_path, capsys):
    ids = np.random.default_rng(0).integers(1, 300, (64, 6))
    task = tp.tasks.from_arrays("words", ids, ids[:, 0] % 2, batch_size=8)
    learned = []
    for dtype, resident in (("int32", True), ("int32", False), ("float32", True)):
        keras.utils.set_random_seed(0)
        packed = words_network(dtype)
        packed.begin_task("words", num_classes=2)
        compile_model(packed).fit(task.training_batches(0, resident=resident), epochs=1, verbose=0)
        learned.append([variable.numpy() for variable in packed.trainable_variables])
    for others in zip(*learned, strict=True):
        for other in others[1:]:
            np.testing.assert_array_equal(other, others[0])
    packed.commit_task()
    tp.save_pack(packed, tmp_path / "p.packnet", info=info_of([task]))
    np.save(tmp_path / "x.npy", ids[:3])
    predict(Asked(str(tmp_path / "p.packnet"), (str(tmp_path / "x.npy"),), format="json"))
    shares = [each["classes"][0]["probability"] for each in json.loads(capsys.readouterr().out)["predictions"]]
    logits = packed.predict(ids[:3], verbose=0)
    np.testing.assert_allclose(shares, 1 / (1 + np.exp(-abs(logits[:, 1] - logits[:, 0]))), rtol=1e-5)


def test_scaled_ids_are_refused():
    ids = np.random.default_rng(0).integers(1, 200, (64, 6)).astype(np.uint8)
    task = tp.tasks.from_arrays("words", ids, ids[:, 0] % 2, batch_size=8)  # as for images of bytes
    for dtype, error, message in (
        ("int32", tp.ArgumentError, "`scale`: expected 1 in the task, because the input 'ids' takes int32"),
        ("float32", tp.DivergedError, "ids outside the vocabulary of an embedding layer"),
    ):
        packed = words_network(dtype)
        packed.begin_task("words", num_classes=2)
        with pytest.raises(error, match=message):
            compile_model(packed).fit(task.training_batches(0), epochs=1, verbose=0)


OWN = """
import keras

def recurrent(input_shape, outputs):
    inputs = keras.Input(input_shape, dtype="int32")
    words = keras.layers.Embedding(40, 8, mask_zero=True)(inputs)
    return keras.Model(inputs, keras.layers.Dense(outputs)(keras.layers.GRU(8)(words)))


@keras.saving.register_keras_serializable("own")
class Positions(keras.layers.Layer):
    def build(self, input_shape):
        self.supports_masking = True
        self.table = self.add_weight(shape=input_shape[1:], name="table")

    def call(self, inputs):
        return inputs + self.table

def transformer(input_shape, outputs):
    inputs = keras.Input(input_shape, dtype="int32")
    x = Positions()(keras.layers.Embedding(40, 8, mask_zero=True)(inputs))
    normed = keras.layers.LayerNormalization()(x)
    x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(2, 4)(normed, normed)])
    x = keras.layers.Add()([x, keras.layers.Dense(8, activation="gelu")(keras.layers.LayerNormalization()(x))])
    return keras.Model(inputs, keras.layers.Dense(outputs)(keras.layers.GlobalAveragePooling1D()(x)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("mlp", "float32"),
        ("text", "float32"),
        ("text", "mixed_bfloat16"),
        ("recurrent", "float32"),
        ("transformer", "float32"),
        ("transformer", "mixed_bfloat16"),
    ],
)
def test_run_and_predict(tmp_path, model, precision):
    write(tmp_path / "own.py", OWN)
    rng = np.random.default_rng(0)
    for name in ("north", "south"):
        words = {"no": ["bad", "sad", "poor"], "yes": ["good", "fine", "great"]}
        rows = [(label, " ".join(rng.choice([*words[label], "tea"], 5))) for label in ("no", "yes") * 60]
        numbers = [3 * (label == "yes") + rng.normal() for label, _ in rows]
        lines = [f"{text},{number:.3f},{label}" for (label, text), number in zip(rows, numbers, strict=True)]
        write(tmp_path / "shops" / f"{name}.csv", "\n".join(["review,size,label", *lines]))
    chosen = "--feature_columns=size" if model == "mlp" else "--text_columns=review"
    command = [
        f"--dataset={tmp_path / 'shops'}",
        chosen,
        f"--model={model}" if model in ("mlp", "text") else f"--model={tmp_path / 'own.py'}:{model}",
        f"--precision={precision}",
        "--text_length=8",
        "--vocabulary_size=40",
        "--batch_size=8",
        "--learning_rate=1e-2",
        "--train_epochs=6",
        "--retrain_epochs=6",
        "--final_prune=0.5",
        f"--output_dir={tmp_path / 'out'}",
    ]
    done = launch(*command)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert min(results["accuracy"][-1]) > 0.8
    exported = (tmp_path / "out/export/task_2/assets.extra/table.json").read_text(encoding="utf-8")
    assert from_json(json.loads(exported)).names() == [chosen.partition("=")[2]]
    again = launch(*command)
    assert again.returncode == 0, again.stderr
    write(tmp_path / "new.csv", "size,review\n3.2,good fine good\n-0.4,bad poor sad\n")
    packed = str(tmp_path / "out/pack.packnet")
    layers = str(tmp_path / "own.py") if model == "transformer" else None
    predict(Asked(packed, (str(tmp_path / "new.csv"),), "south", "json", str(tmp_path / "p.json"), layers=layers))
    found = json.loads((tmp_path / "p.json").read_text())["predictions"]
    assert [each["classes"][0]["class"] for each in found] == ["yes", "no"]
