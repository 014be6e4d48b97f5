"""Public functions check their arguments against their type hints, and name a wrong one before they do anything."""

import datetime
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tf_packnet.arguments import checked

NOTHING = object()
VALUES = {
    "int": (3, np.int64(3), np.uint8(3), np.array(3)),
    "float": (0.5, float("nan"), np.float32(0.5), np.array(0.5)),
    "bool": (True, np.bool_(False)),
    "str": ("text", ""),
    "path": (Path("folder"),),
    "None": (None,),
    "list": ([1, 2], (1, 2), np.array([1, 2])),
    "texts": (["a"], ("a", "b")),
    "dict": ({"a": 1},),
    "function": (len, lambda: 0),
    "object": (NOTHING, tf.constant(3), b"bytes", {1, 2}, np.array([True]), datetime.date(2020, 1, 1)),
}
# The kinds of values that fit a hint, and what the message says.
HINTS = [
    (int, ["int"], "a whole number"),
    (float, ["int", "float"], "a number"),
    (bool, ["bool"], "True or False"),
    (str, ["str"], "a string"),
    (str | os.PathLike, ["str", "path"], "a path"),
    (int | None, ["int", "None"], "a whole number or None"),
    (int | Literal["auto"] | None, ["int", "None"], "a whole number, 'auto' or None"),
    (str | float | Mapping | None, ["str", "int", "float", "dict", "None"], "a string, a number, a mapping or None"),
    (Mapping[str, int], ["dict"], "a mapping"),
    (Mapping[str, str], [], "a mapping"),
    (Callable[[int], int], ["function"], "a function"),
    (keras.Model, [], "a Keras model"),
    (tp.PackedModel, [], r"a pack, from tp.pack\(model\)"),
    (keras.optimizers.Optimizer, [], "an? Optimizer"),
    (Any, list(VALUES), ""),
]


@pytest.mark.parametrize(("hint", "kinds", "expected"), HINTS, ids=[str(hint) for hint, *_ in HINTS])
def test_what_fits_a_hint(hint, kinds, expected):
    @checked
    def function(value: hint = NOTHING, *args: int, **kwargs: int):
        return value

    assert function() is NOTHING
    for kind, values in VALUES.items():
        for value in values:
            if value is NOTHING:
                continue
            if kind in kinds:
                assert function(value) is value
            else:
                with pytest.raises(
                    tp.ArgumentError, match=rf"^Invalid `value`: expected {expected}\. Received: value="
                ):
                    function(value=value)


def test_lists():
    @checked
    def function(numbers: Sequence[int] = (), names: Sequence[str] = (), later: "Unknown" = 0):  # noqa: F821
        return numbers, names

    function([1, np.int32(2)], ("a",), NOTHING)
    function(np.array([1.5]), np.array(["a"]))  # the function itself checks the values of arrays
    for wrong in ("12", 1, None, {1: 2}, {1, 2}, [1, 2.5], [True], [[1]], (each for each in (1, 2))):
        with pytest.raises(tp.ArgumentError, match="`numbers`: expected a list of whole numbers"):
            function(wrong)
    for wrong in ("ab", ["a", 1], [None]):
        with pytest.raises(tp.ArgumentError, match="`names`: expected a list of strings"):
            function(names=wrong)


def test_a_missing_or_unknown_argument_is_pythons_error():
    with pytest.raises(TypeError, match="EqualShare.__init__.* missing 1 required positional argument: 'num_tasks'"):
        tp.EqualShare(0.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'round'"):
        tp.EqualShare(0.5, 2, round=3)


def test_all_public_functions_and_classes_are_checked():
    unchecked = []
    for name, each in {**{name: getattr(tp, name) for name in tp.__all__}, **vars(tp.tasks)}.items():
        if name in tp.tasks.__all__ or name in tp._HOME:
            function = each.__init__ if inspect.isclass(each) else each
            is_own = getattr(function, "__module__", "").startswith("tf_packnet")
            takes_arguments = len(inspect.signature(function).parameters) > inspect.isclass(each)
            if is_own and takes_arguments and not hasattr(function, "__wrapped__"):
                unchecked.append(name)
    checked_by_themselves = {"PruneRoundScheduler", "PruneStepScheduler", "RetrainingRate", "TimeBudget", "select_task"}
    made_by_the_library = {"ArgumentError", "PackFileError", "PackedModel", "Split", "Task", "TaskStream"}
    assert set(unchecked) == checked_by_themselves | made_by_the_library


@pytest.mark.parametrize(
    "call",
    [
        lambda: tp.EqualShare(0.5, num_tasks=1.5),
        lambda: tp.EqualShare(0.5, 2, rounds=float("inf")),
        lambda: tp.Shares([0.5], rounds=True),
        lambda: tp.pack(make_mlp(), seed=1.5),
        lambda: tp.pack(make_mlp(), exclude="dense"),
        lambda: tp.plan(make_mlp(), "2", 0.5),
        lambda: tp.TaskMaskSnapshot(commit_incomplete="no"),
        lambda: tp.EpochBackup(None),
        lambda: tp.export_task(make_mlp(), 1, "export"),
        lambda: tp.compact_model("model"),
        lambda: tp.load_pack(7),
        lambda: tp.load_pack("a.packnet", max_bytes=1e9),
        lambda: tp.tasks.ResidentBatches(np.zeros((4, 2)), np.zeros(4, np.int32), 1.0, batch_size=1.5),
        lambda: tp.tasks.StreamedBatches(np.zeros((4, 2)), np.zeros(4, np.int32), "1", batch_size=2),
        lambda: tp.tasks.load("digits", seed="0"),
    ],
)
def test_wrong_types_are_refused(call):
    with pytest.raises(tp.ArgumentError, match="expected .* Received"):
        call()


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.zeros((0, 6), np.float32), r"at least one example. Received: .*\(0, 6\)"),
        (np.zeros((4, 5), np.float32), r"examples of shape \(6,\). Received: .*\(4, 5\)"),
        (np.zeros((), np.float32), "examples, as for predict"),
        (3, "examples, as for predict"),
        ("examples", "examples, as for predict"),
    ],
)
def test_examples_to_infer_a_task_from(x, expected):
    packed = compile_model(tp.pack(make_mlp()))
    inputs, labels = blobs(0)
    packed.begin_task("a")
    with pytest.raises(tp.ArgumentError, match=f"`calibration`: expected {expected}"):  # before the training
        packed.fit(inputs, labels, epochs=1, verbose=0, callbacks=[tp.TaskMaskSnapshot(calibration=x)])
    assert packed.optimizer.iterations == 0
    packed.commit_task()
    for infer in (packed.infer_task, lambda x: packed.predict(x, task="auto", verbose=0)):
        with pytest.raises(tp.ArgumentError, match=f"`x`: expected {expected}"):
            infer(x)


class Batches(keras.utils.PyDataset):
    """Neither an array nor an iterator."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return (np.ones((4, 6), np.float32),)


def test_what_keras_predicts_is_accepted():
    packed = compile_model(tp.pack(make_mlp()))
    inputs, labels = blobs(0)
    packed.begin_task("a")
    callbacks = [tp.TaskMaskSnapshot(calibration=Batches(workers=1))]
    packed.fit(inputs, labels, epochs=1, verbose=0, callbacks=callbacks)
    x = np.ones((8, 6), np.float32)
    for data in (
        Batches(workers=1),
        [x],
        tf.constant(x),
        tf.data.Dataset.from_tensors((x,)),
        (each for each in ((x,),)),
    ):
        assert packed.infer_task(data) == ["a"] * 8
