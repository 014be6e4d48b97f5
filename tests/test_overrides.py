"""Packs use the methods that a user's model class overrides: in training, evaluation, files and copies."""

import contextlib
import copy
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, make_mlp
from tf_packnet.tasks import ResidentBatches, StreamedBatches
from tf_packnet.training import acceleration

L, ops = keras.layers, keras.ops
register = keras.saving.register_keras_serializable("overrides")
CE = keras.losses.SparseCategoricalCrossentropy


def graph(hidden=12):
    inputs = keras.Input((6,), name="x")
    return inputs, L.Dense(2, name="logits")(L.Dense(hidden, activation="relu", name="hidden")(inputs))


def rounds():
    return [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]


def compiled(packed, jit_compile=False, metrics=("accuracy",), **arguments):
    packed.compile("adam", CE(from_logits=True), metrics=list(metrics), jit_compile=jit_compile, **arguments)
    return packed


def learn(packed, task, epochs=2, **begin):
    packed.begin_task(**begin)
    packed.fit(*blobs(task), epochs=1, batch_size=16, shuffle=False, verbose=0)
    return packed.fit(*blobs(task), epochs=epochs, batch_size=16, shuffle=False, verbose=0, callbacks=rounds()).history


def assert_keeps_two_tasks(packed, compiling=compiled):
    """Learn two tasks: the first does not change by a bit."""
    compiling(packed)
    learn(packed, 1)
    seen = np.array(packed(blobs(9)[0]))
    learn(packed, 2)
    packed.select_task(1)
    np.testing.assert_array_equal(packed(blobs(9)[0]), seen)
    return seen


def same_weights(one, other):
    for mine, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@register
class Counted(keras.Model):
    """A functional model that only adds a counter."""

    calls = 0

    def train_step(self, data):
        Counted.calls += 1
        return super().train_step(data)


@register
class CountedSequential(keras.Sequential):
    def train_step(self, data):
        Counted.calls += 1
        return super().train_step(data)


@register
class PlainSubclassed(keras.Model):
    def __init__(self, width=12, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.hidden = L.Dense(width, activation="relu")
        self.logits = L.Dense(2)

    def call(self, x):
        return self.logits(self.hidden(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@register
class CountedSubclassed(PlainSubclassed):
    def train_step(self, data):
        Counted.calls += 1
        return super().train_step(data)


def sequential(cls=keras.Sequential):
    return cls([keras.Input((6,)), L.Dense(12, activation="relu", name="hidden"), L.Dense(2, name="logits")])


def called(model):
    model(np.zeros((2, 6), "float32"))
    return model


KINDS = {
    "functional": (lambda: Counted(*graph()), lambda: keras.Model(*graph())),
    "sequential": (lambda: sequential(CountedSequential), sequential),
    "subclassed": (lambda: called(CountedSubclassed()), lambda: called(PlainSubclassed())),
}
FAST = {
    "arrays": lambda task: (*blobs(task), 16),
    "streamed": lambda task: (StreamedBatches(*blobs(task), 1.0, batch_size=16, seed=task),),
    "resident": lambda task: (ResidentBatches(*blobs(task), 1.0, batch_size=16, seed=task),),
}


@pytest.mark.parametrize(
    ("kind", "data", "jit_compile"),
    [
        ("functional", "arrays", False),
        ("functional", "resident", False),
        ("functional", "resident", True),
        ("sequential", "streamed", True),
        ("subclassed", "arrays", False),
        ("subclassed", "resident", True),
    ],
)
def test_a_step_that_calls_super_gives_the_same_bits_as_none(kind, data, jit_compile):
    packs = []
    for make in KINDS[kind]:
        packed = compiled(tp.pack(make()), jit_compile)
        if packs:
            packed.set_weights(packs[0].get_weights())
        packs.append(packed)
    Counted.calls = 0
    for packed in packs:
        for task in (1, 2):
            packed.begin_task()
            for callbacks in ([], rounds()):
                packed.fit(*FAST[data](task), epochs=2, verbose=0, callbacks=callbacks)
        assert Counted.calls > 0
    same_weights(*packs)
    assert isinstance(packs[0], type(KINDS[kind][0]()))


def test_a_pack_without_overrides_is_unchanged():
    class Plain(keras.Model):
        pass

    assert type(tp.pack(Plain(*graph()))) is tp.PackedModel
    assert type(tp.pack(make_mlp())) is tp.PackedModel


@register
class Tracked(keras.Model):
    """Everything by hand, as in Keras's guide: its own loop, a tracker, a `metrics` property."""

    def __init__(self, *args, weight=2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight = weight
        self.loss_tracker = keras.metrics.Mean(name="mine")
        self.hits = {"train": keras.metrics.SparseCategoricalAccuracy(name="hits")}

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.weight * self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.loss_tracker.update_state(loss)
        self.hits["train"].update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data):
        return {"seven": ops.sum(self(data[0])) * 0 + 7.0}

    def predict_step(self, data):
        x = data[0] if isinstance(data, tuple) else data
        return ops.softmax(self(x, training=False))

    @property
    def metrics(self):
        return [self.loss_tracker, self.hits["train"]]

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


@pytest.mark.parametrize(("data", "jit_compile"), [("arrays", False), ("streamed", False), ("resident", True)])
def test_a_loop_of_its_own_with_trackers_that_start_again_with_each_epoch(data, jit_compile):
    packed = compiled(tp.pack(Tracked(*graph(), weight=3.0)), jit_compile)
    assert packed.weight == 3.0
    packed.begin_task()
    history = packed.fit(*FAST[data](1), epochs=3, verbose=0).history
    assert set(history) == {"mine", "hits"}
    seen = np.array(packed(blobs(1)[0]))
    assert packed.loss_tracker.count == 64 / 16  # only the last epoch
    assert history["mine"][-1] < history["mine"][0]
    assert packed.evaluate(*blobs(1), verbose=0) == 7.0 or packed.evaluate(*blobs(1), verbose=0)[0] == 7.0
    np.testing.assert_allclose(packed.predict(blobs(1)[0], verbose=0), ops.softmax(seen), rtol=1e-6)


def test_the_users_model_is_unchanged():
    model = Tracked(*graph())
    tracker, before = model.loss_tracker, model.get_weights()
    packed = compiled(tp.pack(model))
    learn(packed, 1)
    assert float(tracker.count) == 0
    assert model.loss_tracker is tracker is not packed.loss_tracker
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_old_tasks_are_exact_to_the_bit_under_a_loop_of_its_own():
    assert_keeps_two_tasks(tp.pack(Tracked(*graph())))


class LogsOfItsOwn(Counted):
    def train_step(self, data):
        super().train_step(data)
        return {"rows": ops.shape(data[0])[0], "loss": self._loss_tracker.result() + 1.0, "one": 1}


def test_logs_of_its_own_come_from_the_last_step_of_a_call():
    packed = compiled(tp.pack(LogsOfItsOwn(*graph())))
    for data in FAST.values():
        history = packed.fit(*data(1), epochs=2, verbose=0).history
        assert history["rows"] == [16, 16]
        assert history["one"] == [1, 1]


@register
class OldLoss(keras.Sequential):
    """Signatures from before Keras 3.3, and a metric that Keras tracks automatically."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = keras.metrics.Mean(name="norm")

    def compute_loss(self, x, y, y_pred, sample_weight):
        assert x is not None
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight)

    def compute_metrics(self, x, y, y_pred, sample_weight):
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        self.norm.update_state(ops.norm(y_pred))
        return {**results, "norm": self.norm.result(), "two": 2.0}


@pytest.mark.parametrize("xla", [acceleration.OFF, acceleration.UPDATE])
def test_losses_and_metrics_of_its_own(xla):
    packed, plain = tp.pack(sequential(OldLoss)), tp.pack(sequential())
    plain.set_weights(packed.get_weights())
    for model in (packed, plain):
        compiled(model)
        model.xla = xla
        model.begin_task()
    x, y = blobs(1)
    logs = packed.fit(x, y, epochs=1, batch_size=64, verbose=0).history
    expected = plain.fit(x, y, epochs=1, batch_size=64, verbose=0).history
    np.testing.assert_allclose(logs["loss"][0], 2 * expected["loss"][0], rtol=1e-6)
    assert logs["two"] == [2.0]
    assert logs["norm"][0] > 0
    found = packed.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["loss"], 2 * plain.evaluate(x, y, verbose=0)[0], rtol=1e-2)
    assert found["two"] == 2.0
    history = packed.fit(*FAST["resident"](1), epochs=2, verbose=0).history
    assert history["two"] == [2.0, 2.0]


def conv(cls):
    inputs = keras.Input((8, 8, 1))
    x = L.Flatten()(L.Conv2D(4, 3, activation="relu")(inputs))
    return cls(inputs, L.Dense(2)(x))


def test_a_custom_step_is_never_split(monkeypatch):
    monkeypatch.setattr(acceleration, "WORTH_COMPILING", 0)
    assert compiled(tp.pack(conv(keras.Model)), "auto").xla == acceleration.UPDATE
    packed = compiled(tp.pack(conv(Counted)), "auto")
    assert packed.xla == acceleration.OFF
    Counted.calls = 0
    packed.fit(*blobs(1, (8, 8, 1)), epochs=1, verbose=0)
    assert Counted.calls > 0
    packed.xla, Counted.calls = acceleration.UPDATE, 0
    packed.make_train_function(force=True)
    packed.fit(*blobs(1, (8, 8, 1)), epochs=1, verbose=0)
    assert Counted.calls > 0


@register
class Sampling(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, mean, spread, training=False):
        self.add_loss(ops.mean(ops.square(spread)))
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + 0.01 * spread * noise if training else mean


@register
class Variational(keras.Model):
    """Losses from its own `call` and from a block's; randomness; a tracker without a `metrics` property."""

    def __init__(self, beta=0.5, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta
        self.encoder = keras.Sequential([L.Dense(8, activation="relu"), L.Dense(6)])
        self.spread = L.Dense(6)
        self.sampling = Sampling()
        self.head = L.Dense(2)
        self.kl_tracker = keras.metrics.Mean(name="kl")

    def call(self, x):
        mean, spread = self.encoder(x), self.spread(x)
        kl = ops.mean(ops.square(mean) + ops.exp(spread) - spread)
        self.add_loss(self.beta * kl)
        self.kl_tracker.update_state(kl)
        return ops.softmax(self.head(self.sampling(mean, spread)))

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


@register
class VariationalStep(Variational):
    def train_step(self, data):
        assert isinstance(self.head, L.Dense)
        assert self.features(data[0]).shape[-1] == 6
        return super().train_step(data)

    def features(self, x):
        return self.encoder(x)


@pytest.mark.parametrize("cls", [Variational, VariationalStep])
def test_losses_of_a_call_and_of_a_block_are_counted(cls, tmp_path):
    packed = tp.pack(called(cls()))
    assert len(packed.owner_maps()) == 3
    packed.compile("adam", CE(), metrics=["accuracy"], jit_compile=False)
    packed.begin_task()
    x, y = blobs(1)
    history = packed.fit(x, y, epochs=2, verbose=0).history
    loss = packed.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    bare = float(CE()(y, packed(x)))
    assert loss > bare + 0.1
    assert history["loss"][-1] > bare + 0.1
    if cls is VariationalStep:
        assert history["kl"][0] > 0
        assert packed.head is packed.get_layer(index=-1).head
        assert type(packed.head).__name__ == "TaskHead"
        assert packed.pack_settings.head == "per_task"
        losses = []
        for packed.beta in (0.0, 2.0):  # `call` reads this attribute
            losses.append(packed.evaluate(x, y, verbose=0, return_dict=True)["loss"])
            packed.make_test_function(force=True)
        packed.save(tmp_path / "pack.keras")
        again = keras.models.load_model(tmp_path / "pack.keras")
        assert again.beta == again.get_layer(index=-1).beta == 2.0


def test_losses_of_a_call_are_counted_on_the_fast_path():
    packed = compiled(tp.pack(called(VariationalStep())))
    packed.begin_task()
    history = packed.fit(*FAST["resident"](1), epochs=2, verbose=0).history
    assert history["loss"][-1] > 0.5
    assert history["kl"][0] > 0


@register
class Tempered(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = L.Dense(8, activation="relu")
        self.out = L.Dense(2)

    def call(self, x, temperature=1.0, training=None, *, shift=None):
        logits = self.out(self.body(x)) / temperature
        return logits if shift is None else logits + shift


@register
class TemperedStep(Tempered):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True, temperature=2.0))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


@pytest.mark.parametrize("cls", [Tempered, TemperedStep])
def test_further_arguments_of_call(cls, tmp_path):
    packed = tp.pack(called(cls()))
    compiled(packed)
    learn(packed, 1)
    packed.save(tmp_path / "pack.keras")
    x = blobs(1)[0]
    for each in (packed, keras.models.load_model(tmp_path / "pack.keras")):
        plain = np.array(each(x))
        np.testing.assert_array_equal(each(x, temperature=2.0), plain / 2)
        np.testing.assert_array_equal(each(x, 2.0), plain / 2)
        np.testing.assert_array_equal(each(x=x, temperature=2.0, training=False), plain / 2)
        shift = np.ones((1, 2), "float32")
        np.testing.assert_array_equal(each(x, temperature=2.0, shift=shift), plain / 2 + shift)
        with pytest.raises(TypeError, match="humidity"):
            each(x, humidity=1.0)
        assert each(keras.Input((6,)), temperature=2.0).shape == (None, 2)


def teacher():
    layers = [L.Dense(5, activation="relu", name="t1"), L.Dense(2, name="t2")]
    return keras.Sequential([keras.Input((6,)), *layers], name="teacher")


@register
class Distiller(keras.Model):
    """Keras's example: a teacher that `call` does not use, and its own `compile`."""

    def __init__(self, student, teacher, **kwargs):
        super().__init__(**kwargs)
        self.student, self.teacher = student, teacher

    def compile(self, optimizer, loss, metrics, alpha=0.3):
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics)
        self.alpha = alpha

    def call(self, x):
        return self.student(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        told = ops.softmax(self.teacher(x, training=False))
        own = super().compute_loss(x, y, y_pred, sample_weight, training)
        return own + self.alpha * ops.mean(keras.losses.categorical_crossentropy(told, y_pred, from_logits=True))

    def get_config(self):
        parts = {"student": self.student, "teacher": self.teacher}
        return {**super().get_config(), **{k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}}

    @classmethod
    def from_config(cls, config):
        parts = {k: keras.saving.deserialize_keras_object(config.pop(k)) for k in ("student", "teacher")}
        return cls(**parts, **config)


def test_a_teacher_is_frozen_with_a_warning(tmp_path):
    model = called(Distiller(sequential(), teacher()))
    with pytest.warns(UserWarning, match="outputs of Distiller do not depend on these layers.*: distiller.*/teacher"):
        packed = tp.pack(model)
    assert not [path for path in packed.owner_maps() if "teacher" in path]
    packed.compile("adam", CE(from_logits=True), metrics=["accuracy"], alpha=0.7)
    assert packed.alpha == 0.7
    before = [np.array(w) for w in packed.teacher.weights]
    learn(packed, 1)
    for now, then in zip(packed.teacher.weights, before, strict=True):
        np.testing.assert_array_equal(now, then)
    packed.save(tmp_path / "pack.keras")
    with pytest.warns(UserWarning, match="custom"):  # Keras's: a `compile` of its own is not called
        again = keras.models.load_model(tmp_path / "pack.keras")
    np.testing.assert_array_equal(again.teacher(blobs(1)[0]), packed.teacher(blobs(1)[0]))
    np.testing.assert_array_equal(again(blobs(1)[0]), packed(blobs(1)[0]))
    again.compile("adam", CE(from_logits=True), metrics=["accuracy"])
    learn(again, 2)


def test_a_teacher_that_is_frozen_already_gives_no_warning():
    model = called(Distiller(sequential(), teacher()))
    model.teacher.trainable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tp.pack(model)


@register
class Taught(keras.Model):
    """A functional model with attributes of all kinds outside its graph."""

    def __init__(self, width=10, **kwargs):
        inputs, outputs = graph(width)
        super().__init__(inputs, outputs, **kwargs)
        self.width = width
        self.teacher = teacher()
        self.seed = 0.25
        self.parts = [self.get_layer("hidden"), {"last": self.layers[-1]}]
        self.encoder = keras.Model(inputs, self.get_layer("hidden").output)
        self.other_optimizer = keras.optimizers.SGD(0.1)
        self.generator = keras.random.SeedGenerator(3)
        self.told = keras.metrics.Mean(name="told")

    def train_step(self, data):
        logs = super().train_step(data)
        self.told.update_state(ops.mean(self.teacher(data[0])) * self.seed)
        return {**logs, "told": self.told.result(), "features": ops.mean(self.encoder(data[0]))}

    def get_config(self):
        return {"name": self.name, "width": self.width}


def test_attributes_of_a_functional_model(tmp_path):
    model = Taught()
    model.seed, model.note = 0.5, "set later"
    with pytest.warns(UserWarning, match="outputs of Taught do not depend on these layers.*teacher"):
        packed = tp.pack(model, seed=7)
    assert (packed.seed, packed.note, packed.pack_settings.seed) == (0.5, "set later", 7)
    assert packed.parts[0] is packed.get_layer("hidden")
    assert packed.parts[1]["last"] is packed.get_layer("logits")
    assert packed.encoder.layers[-1] is packed.get_layer("hidden")
    assert packed.other_optimizer is not model.other_optimizer
    assert model.teacher.trainable
    assert_keeps_two_tasks(packed)
    np.testing.assert_array_equal(packed.teacher(blobs(1)[0]), model.teacher(blobs(1)[0]))
    packed.save(tmp_path / "pack.keras")
    tp.save_pack(packed, tmp_path / "pack.packnet")
    x = blobs(1)[0]
    loaded = keras.models.load_model(tmp_path / "pack.keras"), tp.load_pack(tmp_path / "pack.packnet")
    for again in (*loaded, copy.deepcopy(packed)):
        assert isinstance(again, Taught)
        assert (again.seed, again.note, again.width, again.pack_settings.seed) == (0.5, "set later", 10, 7)
        np.testing.assert_array_equal(again.teacher(x), packed.teacher(x))
        np.testing.assert_array_equal(again(x), packed(x))
        np.testing.assert_array_equal(again.encoder(x), packed.encoder(x))
    assert {"told", "features"} <= set(learn(compiled(loaded[0]), 3))


@register
class TwoOptimizers(keras.Model):
    """A second optimizer for the head, as in adversarial networks."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body, self.out = L.Dense(8, activation="relu"), L.Dense(2)
        self.head_optimizer = keras.optimizers.Adam(0.5)

    def call(self, x):
        return self.out(self.body(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        for optimizer, layer in ((self.optimizer, self.body), (self.head_optimizer, self.out)):
            optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)
        return {"loss": loss, "rate": self.head_optimizer.learning_rate + 0.0}


def test_a_fit_with_further_optimizers_is_resumed_exactly(tmp_path):
    class Dies(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    packs = [compiled(tp.pack(called(TwoOptimizers(name="two")))) for _ in range(3)]
    start = packs[0].get_weights()
    for packed, path, callbacks in zip(packs, ("a", "b", "b"), ([], [Dies()], []), strict=True):
        packed.set_weights(start)
        packed.begin_task()
        packed.optimizer.build(packed.trainable_variables)
        with contextlib.suppress(KeyboardInterrupt):
            backup = tp.EpochBackup(tmp_path / path)
            packed.fit(*blobs(1), epochs=4, shuffle=False, verbose=0, callbacks=[*callbacks, backup])
    same_weights(packs[0], packs[2])


@register
class LeavesOut(keras.Model):
    """A head that only `train_step` uses."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body, self.out, self.aside = L.Dense(8, activation="relu"), L.Dense(2), L.Dense(3)

    def call(self, x):
        return self.out(self.body(x))

    def train_step(self, data):
        return {**super().train_step(data), "aside": ops.mean(self.aside(self.body(data[0])))}


def test_a_layer_that_call_leaves_out_is_frozen_and_saved(tmp_path):
    model = called(LeavesOut(name="leaves_out"))
    model.aside(np.zeros((1, 8), "float32"))
    with pytest.warns(UserWarning, match="outputs of LeavesOut do not depend on these layers.*: leaves_out/aside"):
        packed = compiled(tp.pack(model))
    assert set(packed.owner_maps()) == {"leaves_out/body/kernel"}
    assert "aside" in learn(packed, 1)
    packed.save(tmp_path / "pack.keras")
    tp.save_pack(packed, tmp_path / "pack.packnet")
    for again in (keras.models.load_model(tmp_path / "pack.keras"), tp.load_pack(tmp_path / "pack.packnet")):
        np.testing.assert_array_equal(again.aside.kernel, model.aside.kernel)
        assert "aside" in learn(compiled(again), 2)


def test_a_graph_with_a_call_of_its_own_is_refused():
    class Both(Counted):
        def call(self, x, training=None):
            return 2 * super().call(x, training=training)

    inputs = keras.Input((6,))
    for model in (Both(*graph()), keras.Model(inputs, L.Dense(2)(Both(*graph(), name="both")(inputs)))):
        with pytest.raises(tp.ArgumentError, match="either a graph of layers or their own `call`; 'both.*' has both"):
            tp.pack(model)


def test_further_optimizers_are_reset_and_keep_their_learning_rate():
    packed = compiled(tp.pack(called(TwoOptimizers())))
    seen = []

    class Changes(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(int(packed.head_optimizer.iterations))
            packed.head_optimizer.learning_rate = 0.25

    packed.begin_task()
    packed.fit(*blobs(1), batch_size=16, epochs=2, verbose=0, callbacks=[Changes()])
    assert float(packed.head_optimizer.learning_rate) == 0.5
    packed.fit(*blobs(1), batch_size=16, epochs=2, verbose=0, callbacks=[*rounds(), Changes()])
    assert seen == [0, 4, 0, 4]
    first = np.array(packed(blobs(9)[0]))
    packed.begin_task(num_classes=3)
    assert packed.fit(*blobs(2), batch_size=16, epochs=2, verbose=0, callbacks=rounds()).history["rate"] == [
        0.5,
        0.5,
    ]
    packed.select_task(1)
    np.testing.assert_array_equal(packed(blobs(9)[0]), first)


def test_what_is_exported_is_a_plain_model():
    packed = compiled(tp.pack(Tracked(*graph())))
    learn(packed, 1)
    x = blobs(1)[0]
    plain = tp.export.dense_model(packed, 1)
    assert not isinstance(plain, Tracked)
    np.testing.assert_allclose(plain.predict(x, verbose=0), packed(x), rtol=1e-5, atol=1e-6)


class TestNames:
    def test_a_method_that_packs_have(self):
        class Clash(Counted):
            def restore(self):
                pass

        with pytest.raises(tp.ArgumentError, match=r"names that packs use \(restore\)"):
            tp.pack(Clash(*graph()))

    def test_an_attribute_that_packs_have(self):
        model = Counted(*graph())
        model.network = "lan"
        with pytest.raises(tp.ArgumentError, match=r"names that packs use \(network\)"):
            tp.pack(model)

    def test_weights_outside_layers(self):
        model = Counted(*graph())
        model.scale = model.add_weight(shape=(), name="scale")
        with pytest.raises(tp.ArgumentError, match="it has scale"):
            tp.pack(model)

    def test_a_pack_of_a_sequential_model_takes_no_more_layers(self):
        with pytest.raises(RuntimeError, match="cannot change"):
            tp.pack(sequential(CountedSequential)).add(L.Dense(2))
        assert not issubclass(keras.Sequential, type(keras.Model(*graph())))  # Keras's classes are unchanged
