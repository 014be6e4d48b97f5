"""The task of examples is inferred from the confidence of the heads."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import logsumexp, softmax

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tests.packs import X
from tests.test_task_management import learn
from tf_packnet import lifecycle
from tf_packnet.packed.task_scores import METHODS, scores

LOGITS = np.random.default_rng(0).normal(size=(7, 4)).astype("float32") * 3


def pack_three() -> tp.PackedModel:
    packed = tp.pack(make_mlp(), bias_policy="per_task")
    for seed, (name, classes) in enumerate({"a": 2, "b": 3, "c": 2}.items()):
        learn(packed, name, seed, classes)
    return compile_model(packed)


def test_scores():
    p = softmax(LOGITS.astype(float), axis=1)
    expected = {
        "entropy": 1 + (p * np.log(p)).sum(axis=1) / np.log(4),
        "energy": logsumexp(LOGITS, axis=1) - np.log(4),
        "logit": LOGITS.max(axis=1),
    }
    assert set(expected) == set(METHODS)
    for method, values in expected.items():
        np.testing.assert_allclose(scores(LOGITS, "logits", -1, method), values, rtol=1e-5)
        per_position = np.stack([LOGITS, LOGITS], axis=1)
        np.testing.assert_allclose(scores(per_position, "logits", 2, method), values, rtol=1e-5)
        np.testing.assert_allclose(scores(np.moveaxis(per_position, 2, 1), "logits", 1, method), values, rtol=1e-5)
    np.testing.assert_allclose(scores(p, "probabilities", -1, "entropy"), expected["entropy"], rtol=1e-4)
    z = LOGITS[:, :1]
    two = scores(np.concatenate([0 * z, z], axis=1), "logits", -1, "entropy")
    np.testing.assert_allclose(scores(1 / (1 + np.exp(-z)), "sigmoid", -1, "entropy"), two, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(np.isfinite(scores(np.eye(3), "probabilities", -1, "entropy")), True)


@pytest.mark.parametrize("calibrated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_surest_head_wins(calibrated, tmp_path):
    packed = pack_three()
    if calibrated:
        calibration = {1: {"logit": [0.1, 0.2]}, 2: {"logit": [0.9, 0.01]}, 3: {"logit": [0.4, 0.5]}}
        lifecycle.records(packed).calibration = calibration
    packed.select_task("b")
    found, method = [], "logit" if calibrated else "entropy"
    for task in packed.tasks:
        mean, deviation = calibration[task.number]["logit"] if calibrated else (0, 1)
        outputs = packed.predict(X, task=task.name, verbose=0)
        found.append((np.asarray(scores(outputs, "logits", -1, method)) - mean) / deviation)
    best = np.argmax(found, axis=0)
    names = packed.infer_task(X)
    assert names == [packed.task_names[index] for index in best]
    assert packed.infer_task(X, per="batch") == packed.task_names[int(np.mean(found, axis=1).argmax())]
    assert set(packed.infer_task(X, tasks=["a", 3])) <= {"a", "c"}
    two = packed.predict(X, task="auto", tasks=["a", 3], method="energy", verbose=0)
    assert two.tasks == packed.infer_task(X, "energy", tasks=["a", 3])
    predicted = packed.predict(X, task="auto", verbose=0)
    assert predicted.tasks == names
    for example, name in enumerate(names):
        expected = packed.predict(X, task=name, verbose=0)[example]
        np.testing.assert_array_equal(predicted.outputs[example], expected)
    assert packed.selected_task == 2
    if calibrated:
        calibration_is_kept(packed, names, tmp_path)
    else:
        export_infers_the_same(packed, names, np.transpose(found), tmp_path)


def export_infers_the_same(packed, names, found, tmp_path):
    tp.export_pack(packed, tmp_path / "all")
    loaded = tf.saved_model.load(str(tmp_path / "all"))
    signature = loaded.signatures["which_task"](x=tf.constant(X))
    assert [name.decode() for name in signature["task"].numpy()] == names
    np.testing.assert_allclose(signature["scores"], found, rtol=1e-4, atol=1e-4)


def calibration_is_kept(packed, names, tmp_path):
    packed.save(tmp_path / "pack.keras")
    tp.save_pack(packed, tmp_path / "pack.packnet")
    for again in (keras.models.load_model(tmp_path / "pack.keras"), tp.load_pack(tmp_path / "pack.packnet")):
        assert again.infer_task(X) == names
    calibration = lifecycle.records(packed).calibration
    packed.forget_task("a")
    assert lifecycle.records(packed).calibration == {1: calibration[2], 2: calibration[3]}


def test_calibration_is_recorded_at_the_commit():
    x, y = blobs(0)
    packed = compile_model(tp.pack(make_mlp()))
    packed.begin_task("a")
    packed.fit(x, y, epochs=1, verbose=0, callbacks=[tp.TaskMaskSnapshot(calibration=x[:32])])
    recorded = lifecycle.records(packed).calibration[1]
    assert set(recorded) == set(METHODS)
    outputs = packed.predict(x[:32], verbose=0)
    for method, (mean, deviation) in recorded.items():
        found = np.asarray(scores(outputs, "logits", -1, method), float)
        np.testing.assert_allclose([mean, deviation], [found.mean(), found.std()], rtol=1e-5)


def test_what_cannot_be_inferred_is_refused(tmp_path):
    packed = tp.pack(make_mlp())
    with pytest.raises(tp.ArgumentError, match="at least one committed task"):
        packed.infer_task(X)
    learn(packed, "auto", 0)
    for arguments in ({"method": "guess"}, {"per": "day"}, {"tasks": []}, {"tasks": ["x"]}, {"tasks": [2]}):
        with pytest.raises(tp.ArgumentError, match="Invalid `(method|per|tasks?)`"):
            packed.infer_task(X, **arguments)
    assert packed.predict(X, task="auto", verbose=0).shape == (5, 2)  # a task of this name
    packed.rename_task("auto", "a")
    learn(packed, "value", 1, 1)
    with pytest.raises(tp.ArgumentError, match="may be a regression"):
        packed.infer_task(X)
    assert packed.infer_task(X, tasks="a") == ["a"] * 5
    tp.export_pack(packed, tmp_path / "all")
    assert set(tf.saved_model.load(str(tmp_path / "all")).signatures) == {"a", "value"}
    packed.begin_task("sure", num_classes=3, activation="softmax")
    packed.commit_task()
    with pytest.raises(tp.ArgumentError, match="Invalid `method`: expected entropy"):
        packed.infer_task(X, method="energy", tasks=["a", "sure"])
    assert len(packed.infer_task(X, tasks=["a", "sure"])) == 5
