"""Once a task is committed, its logits for the same input are always bit-identical."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_convnet, make_mlp

OPTIMIZERS = {
    "sgd+momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "lion": lambda: keras.optimizers.Lion(0.01, weight_decay=0.1),
    "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
    "clipnorm": lambda: keras.optimizers.Adam(0.01, clipnorm=0.1),
    "global_clipnorm": lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5),
    "clipvalue": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, clipvalue=0.01),
    "lamb": lambda: keras.optimizers.Lamb(0.01),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}
RETRAIN_EPOCHS = 2


def retraining(num_tasks, rounds=2, masks=None):
    schedule = tp.EqualShare(0.5, num_tasks, rounds)
    return [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot(masks)]


def learn(packed, number, data, num_tasks=3, **fit):
    packed.begin_task(f"task_{number}")
    packed.fit(*data, epochs=2, batch_size=16, verbose=0, **fit)
    packed.fit(*data, epochs=RETRAIN_EPOCHS, batch_size=16, verbose=0, callbacks=retraining(num_tasks), **fit)


def logits(packed, task, x):
    packed.select_task(task)
    return packed.predict(x, verbose=0)


def assert_nothing_is_forgotten(packed, num_tasks=3, shape=(6,)):
    probe = np.random.default_rng(9).normal(size=(32, *shape)).astype("float32")
    committed = {}
    for number in range(1, num_tasks + 1):
        learn(packed, number, blobs(number, shape), num_tasks)
        committed[number] = logits(packed, number, probe)
        for earlier, then in committed.items():
            np.testing.assert_array_equal(logits(packed, earlier, probe), then)
    return probe, committed


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_under_every_optimizer(optimizer):
    packed = compile_model(tp.pack(make_mlp(), freed_weights="keep"), OPTIMIZERS[optimizer](), "auto")
    probe, committed = assert_nothing_is_forgotten(packed)
    # The test is meaningless if all tasks have the same outputs.
    assert not np.array_equal(committed[1], committed[2])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("make", [make_mlp, make_convnet])
def test_under_mixed_precision(policy, make):
    keras.config.set_dtype_policy(policy)
    packed = compile_model(tp.pack(make()), keras.optimizers.AdamW(0.01, weight_decay=0.1), "auto")
    assert_nothing_is_forgotten(packed, shape=packed.input_shape[1:])


@pytest.mark.parametrize(  # every pair of two policies
    ("head", "bias_policy", "freed_weights"),
    [
        ("per_task", "first_task", "zero"),
        ("per_task", "per_task", "keep"),
        ("per_task", "first_task", "reinit"),
        ("shared", "per_task", "zero"),
        ("shared", "first_task", "keep"),
        ("shared", "per_task", "reinit"),
    ],
)
def test_under_every_policy(head, bias_policy, freed_weights):
    packed = tp.pack(make_mlp(), head=head, bias_policy=bias_policy, freed_weights=freed_weights)
    compile_model(packed, keras.optimizers.AdamW(0.01, weight_decay=0.1))
    assert_nothing_is_forgotten(packed)


def test_with_regularizers_and_constraints():
    model = make_mlp(kernel_regularizer="l2", bias_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(0.5))
    assert_nothing_is_forgotten(compile_model(tp.pack(model), OPTIMIZERS["adam"](), "auto"))


@pytest.mark.parametrize("jit", [True, False])
def test_across_saving_and_loading_between_all_tasks(tmp_path, jit):
    packed = compile_model(tp.pack(make_convnet(), bias_policy="per_task"), OPTIMIZERS["adamw"](), jit_compile=jit)
    probe = blobs(9, (8, 8, 1))[0]
    committed = {}
    for number in (1, 2, 3):
        learn(packed, number, blobs(number, (8, 8, 1)))
        committed[number] = logits(packed, number, probe)
        packed.save(tmp_path / "pack.keras")
        packed = keras.models.load_model(tmp_path / "pack.keras", safe_mode=True)
        assert packed.task_names == [f"task_{k}" for k in range(1, number + 1)]
        for earlier, then in committed.items():
            np.testing.assert_array_equal(logits(packed, earlier, probe), then)


def test_without_any_callback_but_a_commit():
    """The freeze does not depend on GradientMask."""
    packed = compile_model(tp.pack(make_mlp(), freed_weights="keep"), OPTIMIZERS["adamw"](), "auto")
    x, y = blobs(1)
    packed.begin_task()
    packed.fit(x, y, epochs=2, verbose=0)
    for weight in tp.lifecycle.masked_weights(packed).values():
        weight.prune(np.random.default_rng(0).random(weight.owner_map().shape) < 0.3)
    packed.commit_task()
    then = logits(packed, 1, x)
    packed.begin_task()
    packed.fit(*blobs(2), epochs=3, verbose=0)
    np.testing.assert_array_equal(logits(packed, 1, x), then)
    packed.commit_task()
    np.testing.assert_array_equal(logits(packed, 1, x), then)


def test_selecting_an_old_task_while_a_new_one_is_open_changes_neither():
    packed = compile_model(tp.pack(make_mlp()), "adam")
    x, y = blobs(1)
    learn(packed, 1, (x, y))
    then = logits(packed, 1, x)
    packed.begin_task()
    packed.fit(*blobs(2), epochs=2, verbose=0)
    open_task = logits(packed, 2, x)
    np.testing.assert_array_equal(logits(packed, 1, x), then)
    np.testing.assert_array_equal(logits(packed, 2, x), open_task)


@pytest.mark.parametrize("recompile", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tasks_with_different_numbers_of_classes(tmp_path, recompile):
    packed = compile_model(tp.pack(make_mlp()), OPTIMIZERS["adamw"]())
    probe = blobs(9)[0]
    committed = {}
    # A head of another size is selected before the last task, which gets the size of the previous task by default.
    for number, (asked, classes) in enumerate([(2, 2), (4, 4), (3, 3), (None, 3)], start=1):
        assert packed.begin_task(num_classes=asked) == number
        if recompile:
            compile_model(packed, OPTIMIZERS["adamw"]())
        assert not packed.optimizer.built or int(packed.optimizer.iterations) == 0
        x, y = blobs(number, classes=classes)
        packed.fit(x, y, epochs=2, verbose=0)
        packed.fit(x, y, epochs=2, verbose=0, callbacks=retraining(4))
        committed[number] = logits(packed, number, probe)
        assert committed[number].shape == (64, classes)
        for earlier, then in committed.items():
            np.testing.assert_array_equal(logits(packed, earlier, probe), then)
        logits(packed, 1, probe)
    packed.save(tmp_path / "pack.keras")
    again = keras.models.load_model(tmp_path / "pack.keras")
    for task, then in committed.items():
        np.testing.assert_array_equal(logits(again, task, probe), then)


def test_selecting_an_old_task_from_an_open_one_with_another_number_of_classes(tmp_path):
    packed = compile_model(tp.pack(make_mlp()), "adam")
    x, y = blobs(1)
    learn(packed, 1, (x, y))
    then = logits(packed, 1, x)
    packed.begin_task(num_classes=4)
    compile_model(packed, "adam")
    data = blobs(2, classes=4)
    packed.fit(*data, epochs=2, verbose=0)
    open_task = logits(packed, 2, x)
    np.testing.assert_array_equal(logits(packed, 1, x), then)
    packed.save(tmp_path / "pack.keras")  # while an earlier task is selected
    again = keras.models.load_model(tmp_path / "pack.keras")
    for model in (packed, again):
        np.testing.assert_array_equal(logits(model, 2, x), open_task)
        np.testing.assert_array_equal(logits(model, 1, x), then)
        model.fit(*data, epochs=2, verbose=0)  # trains the open task, not the selected one
        assert model.selected_task == 2
        assert not np.array_equal(logits(model, 2, x), open_task)
        np.testing.assert_array_equal(logits(model, 1, x), then)


def test_hidden_means_hidden():
    """In retraining, pruned weights stay out of the forward pass, even if they had momentum."""
    packed = compile_model(tp.pack(make_mlp()), keras.optimizers.SGD(0.1, momentum=0.95), "auto")
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for weight in tp.lifecycle.masked_weights(self.model).values():
                seen.append(np.array(weight.value())[weight.owner_map() == 0])

    packed.begin_task()
    packed.fit(*blobs(1), epochs=3, verbose=0)
    packed.fit(*blobs(1), epochs=4, batch_size=16, verbose=0, callbacks=[*retraining(2), Watch()])
    assert sum(values.size for values in seen) > 0
    assert all((values == 0).all() for values in seen)


def make_convolutions_of_all_kinds():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.SeparableConv2D(6, 3, padding="same", activation="relu", depth_multiplier=2),
            layers.DepthwiseConv2D(3, strides=2, padding="same"),
            layers.Conv2DTranspose(4, 2, strides=2, activation="relu"),
            layers.Reshape((64, 4)),
            layers.SeparableConv1D(5, 3),
            layers.DepthwiseConv1D(3),
            layers.Conv1DTranspose(3, 2),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def make_text_network():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(20, 8),
            layers.Conv1D(6, 3, activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2),
        ]
    )


@pytest.mark.parametrize(
    ("make", "jit"),
    [
        (make_convolutions_of_all_kinds, "auto"),
        pytest.param(make_convolutions_of_all_kinds, False, marks=pytest.mark.slow),
        (make_text_network, "auto"),
    ],
)
def test_every_kind_of_layer_freezes_reloads_and_exports(make, jit, tmp_path):
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    packed = compile_model(tp.pack(make(), freed_weights="keep"), optimizer, jit_compile=jit)
    rng = np.random.default_rng(0)
    text = make is make_text_network

    def examples(seed):
        if text:  # sentences of the second class begin with a special word
            x, y = rng.integers(0, 20, (64, 6)), np.arange(64) % 2
            x[:, 0] = np.where(y == 1, 19 - seed, seed)
            return x.astype("int32"), y
        return blobs(seed, (8, 8, 2))

    probe = examples(9)[0][:32]
    committed = {}
    for number in (1, 2, 3):
        learn(packed, number, examples(number))
        committed[number] = logits(packed, number, probe)
        packed.save(tmp_path / "pack.keras")
        packed = keras.models.load_model(tmp_path / "pack.keras")  # as in a new process
        for earlier, then in committed.items():
            np.testing.assert_array_equal(logits(packed, earlier, probe), then)
    assert not np.array_equal(committed[1], committed[2])
    assert packed.free_fraction()["overall"] == pytest.approx(0.5, abs=0.02)
    for number, then in committed.items():
        plain = tp.export.dense_model(packed, number)
        np.testing.assert_allclose(plain.predict(probe, verbose=0), then, rtol=1e-5, atol=1e-6)
