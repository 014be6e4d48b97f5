"""A wider pack computes the same for its tasks, and the next task uses the new weights."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tf_packnet as tp
from tests.test_compaction_property import networks
from tf_packnet import lifecycle
from tf_packnet.growth import growing
from tf_packnet.growth.widths import Widths

L = keras.layers


def learn(packed, number, kept=0.5, **begin):
    """Commit a task without training: random values, a fraction of the free weights kept."""
    rng = np.random.default_rng(number)
    packed.begin_task(f"task {number}", **begin)
    for layer in lifecycle.task_layers(packed):
        for weight in [*layer.task_weights, *layer.masked_weights]:
            values = rng.normal(size=weight.variable.shape, scale=0.5)
            weight.variable.assign(np.abs(values) + 0.5 if weight.name == "moving_variance" else values)
    for weight in lifecycle.masked_weights(packed).values():
        owner = weight.owner_map()
        weight.prune((owner == 255) & (rng.random(owner.shape) < kept))
    packed.commit_task()


def examples(packed):
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(4, *(size or 5 for size in each.shape[1:]))).astype("float32") for each in packed.inputs]
    x = [rng.integers(0, 9, each.shape) if "int" in i.dtype else each for each, i in zip(x, packed.inputs, strict=True)]
    return x[0] if len(x) == 1 else x


def outputs(packed):
    """The outputs of each task."""
    x, selected, results = examples(packed), packed.selected_task, []
    for task in range(1, packed.committed_tasks + 1):
        packed.select_task(task)
        results.append([np.asarray(each) for each in keras.tree.flatten(packed(x, training=False))])
    packed.select_task(selected)
    return results


def assert_same(ours, theirs, rtol=1e-5):
    for one, other in zip(keras.tree.flatten(ours), keras.tree.flatten(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max(initial=1e-30))


def grown(packed, factor=None, **units):
    """Grow a pack, check its tasks, and that nothing happened to the pack before."""
    state, before = lifecycle.state(packed), outputs(packed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = tp.grow(packed, factor, **units)
    assert_same(outputs(new), before)
    lifecycle.check_tasks(new)
    now = lifecycle.state(packed)
    assert all(np.array_equal(now[name], value, equal_nan=True) for name, value in state.items())
    assert new.task_names == packed.task_names
    assert type(new) is type(packed)
    for path, owner in new.owner_maps().items():
        for task in range(1, packed.committed_tasks + 1):
            assert (owner == task).sum() == (packed.owner_maps()[path] == task).sum()
    return new


def new_widths(packed, new):
    """The widths of the layers that have grown."""
    before, after = (Widths(each.network()).now for each in (packed, new))
    return {path: width for path, width in after.items() if width != before[path]}


def shapes(packed):
    return {path: owner.shape for path, owner in packed.owner_maps().items()}


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(networks(), st.sampled_from([1.3, 1.5, 2]), st.sampled_from(["first_task", "per_task"]))
def test_random_architectures(model, factor, bias_policy):
    try:
        packed = tp.pack(model, bias_policy=bias_policy)
    except tp.ArgumentError:
        assume(False)
    learn(packed, 1)
    learn(packed, 2)
    first = outputs(packed)
    try:
        new = grown(packed, factor)
        new = grown(new, factor)
    except tp.ArgumentError:  # nothing grows
        assume(False)
    assert lifecycle.state(new).keys() >= lifecycle.state(packed).keys()
    learn(new, 3)
    assert_same(outputs(new)[:2], first)


def images(*layers):
    """A classifier of images with `layers` between two convolutions."""
    x = inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="first")(x)
    for layer in layers:
        x = layer(x)
    x = L.Conv2D(3, 1, activation="tanh", name="last")(x)
    return keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))


def sequences(*layers):
    x = inputs = keras.Input((5, 3))
    x = L.Dense(4, activation="relu", name="first")(x)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling1D()(x)))


def vectors(*layers):
    x = inputs = keras.Input((5,))
    for layer in [L.Dense(4, activation="relu", name="first"), *layers, L.Dense(2, name="head")]:
        x = layer(x)
    return keras.Model(inputs, x)


def words():
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(9, 4, mask_zero=True, name="table")(inputs)
    x = L.GRU(3, return_sequences=True, name="gru")(x)
    x = L.LSTM(2, return_sequences=True, name="lstm")(x)
    return keras.Model(inputs, L.Dense(2, name="head")(L.SimpleRNN(2, name="rnn")(x)))


def both_ways():
    """Recurrent layers in both directions, whose outputs are joined or combined."""
    x = inputs = keras.Input((3, 4))
    other = L.SimpleRNN(2, return_sequences=True, go_backwards=True)
    x = L.Bidirectional(L.LSTM(2, return_sequences=True), backward_layer=other, name="joined")(x)
    x = L.Bidirectional(L.SimpleRNN(2), merge_mode="mul", name="multiplied")(L.Dense(4, name="between")(x))
    return keras.Model(inputs, L.Dense(2, name="head")(x))


def several_inputs():
    """Nested models with several inputs and outputs, in different structures, one of them called twice."""
    a, b = keras.Input((4,)), keras.Input((3,))
    left, right = L.Dense(3, activation="relu", name="left")(a), L.Dense(2, activation="relu", name="right")(b)
    inner = keras.Model([a, b], [left, L.Concatenate()([right, a])], name="inner")
    first, second = keras.Input((5,), name="b"), keras.Input((6,), name="a")
    joined = L.Dense(4, name="join")(L.Concatenate()([first, second]))
    named = keras.Model({"b": first, "a": second}, joined * L.Dense(1, name="gate")(first), name="named")
    x, y = keras.Input((5,)), keras.Input((2,))
    one, two = L.Dense(4, name="one")(x), L.Dense(3, name="two")(y)
    three, four = inner([one, two])
    five = named({"a": four, "b": x})
    six, seven = inner([L.Dense(4, name="again")(five), two])
    return keras.Model([x, y], L.Dense(2, name="head")(L.Concatenate()([three, six, seven])))


def branches():
    """Branches of different widths, joined; one of them is used twice."""
    inputs = keras.Input((5,))
    one, shared = L.Dense(4, activation="relu", name="one")(inputs), L.Dense(2, name="shared")
    x = L.Concatenate()([one, shared(one), L.Dense(3, name="two")(inputs)])
    x = L.Concatenate()([L.Dense(3, name="three")(x), shared(L.Dense(4, activation="relu", name="four")(x))])
    return keras.Model(inputs, L.Dense(2, name="head")(x))


def residual():
    """A residual stream that starts from the inputs, and one that does not."""
    inputs = keras.Input((4,))
    x = inputs + L.Dense(4, name="tied")(L.Dense(4, activation="relu", name="inner")(inputs))
    x = stream = L.Dense(6, name="project")(x)
    x = stream + L.Dense(6, name="more")(L.Dense(2, activation="relu", name="hidden")(x))
    return keras.Model(inputs, L.Dense(2, name="head")(x))


def siamese():
    """A nested model that reads the units of two layers, and a head inside TimeDistributed."""
    inner_inputs = keras.Input((5, 4))
    inner = keras.Model(inner_inputs, L.Dense(3, activation="relu", name="inside")(inner_inputs), name="inner")
    inputs = keras.Input((5, 3))
    x = inner(L.Dense(4, name="one")(inputs)) - inner(L.Dense(4, name="two")(inputs))
    return keras.Model(inputs, L.TimeDistributed(L.Dense(2), name="head")(L.Dropout(0.1)(x)))


def gated():
    """Channels that are multiplied by gates of their own and by a common one, as in squeeze and excitation."""
    inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, name="first")(inputs)
    gate = L.Conv2D(2, 1, activation="relu", name="squeeze")(L.GlobalAveragePooling2D(keepdims=True)(x))
    x = L.Multiply()([x, L.Conv2D(4, 1, activation="sigmoid", name="gate")(gate)])
    x = x * L.Conv2D(1, 1, activation="sigmoid", name="one")(x)
    return keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(x)))


def nested():
    inner_inputs = keras.Input((4,))
    inner = keras.Model(inner_inputs, L.Dense(3, name="inside")(L.ReLU()(inner_inputs)), name="inner")
    middle = keras.Sequential([keras.Input((3,)), L.BatchNormalization(), L.Dense(5, name="deep")], name="middle")
    return vectors(inner, middle)


def transformer():
    """A block with a residual stream."""
    inputs = x = keras.Input((5, 4))
    y = L.LayerNormalization()(x)
    x = x + L.MultiHeadAttention(2, 3, name="attention")(y, y)
    y = L.GroupQueryAttention(3, 4, 2, name="grouped")(x, x, use_causal_mask=True)
    y = L.Dense(6, activation="gelu", name="expand")(L.LayerNormalization()(x + y))
    x = x + L.Dense(4, name="contract")(y)
    return keras.Model(inputs, L.Dense(2, name="head")(x[:, 0]))


def einsums():
    """Two axes of units, of which the last one grows, flattened for the head."""
    inputs = keras.Input((5, 3))
    x = L.EinsumDense("abc,cde->abde", (5, 2, 4), bias_axes="de", activation="relu", name="split")(inputs)
    x = L.EinsumDense("abde,ef->abdf", (5, 2, 2), bias_axes="b", name="mix")(x)
    x = L.Dropout(0.5)(L.EinsumDense("abdf,dg->abfg", (5, 2, 3), name="turn")(x))
    return keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(x)))


# The network, and the width of each layer that becomes 1.5 times as wide.
GROWING = {
    "convolutions": (
        lambda: images(
            L.BatchNormalization(),
            L.PReLU(shared_axes=[1, 2]),
            L.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise"),
            L.SeparableConv2D(2, 2, depth_multiplier=2, name="separable"),
            L.Conv2DTranspose(2, 2, strides=2, name="transposed"),
            L.MaxPooling2D(2),
        ),
        {"first": 6, "separable": 3, "transposed": 3, "last": 4},
    ),
    "flattened": (
        lambda: images(
            L.Reshape((3, 12, 4)), L.Flatten(), L.Reshape((144,)), L.Dense(6, name="flat"), L.Reshape((1, 1, 6))
        ),
        {"first": 6, "flat": 9, "last": 4},
    ),
    "in one dimension": (
        lambda: sequences(
            L.Conv1D(2, 2, name="conv"),
            L.Conv1DTranspose(2, 2, name="transposed"),
            L.DepthwiseConv1D(2, name="depthwise"),
            L.SeparableConv1D(2, 2, name="separable"),
            L.EinsumDense("...x,xy->...y", 4, bias_axes="y", activation="relu", name="einsum"),
            L.TimeDistributed(L.Dense(2), name="each"),
            L.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de", name="split"),
            L.Reshape((3, 8)),
        ),
        {"first": 6, "conv": 3, "transposed": 3, "separable": 3, "einsum": 6, "each": 3},
    ),
    "einsums": (einsums, {"split": 6}),
    "words": (words, {"table": 6, "gru": 4, "lstm": 3, "rnn": 3}),
    "both ways": (both_ways, {"joined": 3, "between": 6, "multiplied": 3}),
    "several inputs": (
        several_inputs,
        {"one": 6, "two": 4, "inner/left": 4, "inner/right": 3, "named/join": 6, "again": 6},
    ),
    "branches": (branches, {"one": 6, "shared": 3, "two": 4, "three": 4, "four": 6}),
    "residual": (residual, {"inner": 6, "project": 9, "more": 9, "hidden": 3}),
    "siamese": (siamese, {"one": 6, "two": 6, "inner/inside": 4}),
    "gated": (gated, {"first": 6, "squeeze": 3, "gate": 6}),
    "nested": (nested, {"first": 6, "inner/inside": 4, "middle/deep": 7}),
    "transformer": (transformer, {"attention": 3, "grouped": 3, "expand": 9}),
}


FAST = ("branches", "residual")
KINDS = [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in GROWING]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_grow(kind, tmp_path):
    network, expected = GROWING[kind]
    packed = tp.pack(network(), bias_policy="per_task")
    learn(packed, 1)
    learn(packed, 2, num_classes=3)
    new = grown(packed, 1.5)
    assert new_widths(packed, new) == expected
    new.save(tmp_path / "pack.keras")
    assert_same(outputs(keras.models.load_model(tmp_path / "pack.keras")), outputs(new), rtol=0)


def two_tasks(model=None, **arguments):
    """A pack with two committed tasks, of which the second has more classes."""
    packed = tp.pack(model or vectors(L.Dense(6, activation="relu", name="second")), **arguments)
    learn(packed, 1)
    learn(packed, 2, num_classes=3)
    return packed


def test_the_next_task_trains_the_new_weights():
    new = grown(grown(two_tasks(), 1.5), 1.5)
    assert shapes(new) == {"first/kernel": (5, 9), "second/kernel": (9, 13)}
    weight = lifecycle.masked_weights(new)["second/kernel"]
    is_new = np.ones((9, 13), bool)
    is_new[:4, :6] = False
    np.testing.assert_array_equal(weight.fresh, is_new)
    before, frozen = outputs(new), np.array(weight.frozen)
    drawn, kept, zeros = (weight._start_values(policy, 7) for policy in ("reinit", "keep", "zero"))
    assert (drawn[is_new] != 0).all(), "a unit whose inputs and outputs are 0 gets no gradient"
    for values, others in ((kept, frozen), (zeros, np.zeros_like(frozen))):
        np.testing.assert_array_equal(values, np.where(is_new, drawn, others))
    new.begin_task("next", num_classes=2)
    assert weight.fresh is None
    assert (weight.owner_map() == 255)[is_new].all()
    start = np.array(weight.values())
    new.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = np.random.default_rng(0).normal(size=(32, 5)).astype("float32"), np.arange(32) % 2
    new.fit(x, y, verbose=0)
    changed = (weight.values() != start)[is_new]
    assert changed.mean() > 0.5
    new.fit(x, y, verbose=0, callbacks=[tp.PruneRoundScheduler(tp.EqualShare(0.2, 3, 1)), tp.TaskMaskSnapshot()])
    assert (weight.owner_map()[is_new] == 3).any()
    assert_same(outputs(new)[:2], before, rtol=0)


def test_a_grown_pack_is_an_ordinary_pack(tmp_path):
    new = grown(two_tasks(bias_policy="per_task"), units={"first": 7})
    assert shapes(new) == {"first/kernel": (5, 7), "second/kernel": (7, 6)}
    new.save(tmp_path / "pack.keras")
    tp.save_pack(new, tmp_path / "pack.packnet")
    before = outputs(new)
    new.begin_task("next")
    for loaded in (keras.models.load_model(tmp_path / "pack.keras"), tp.load_pack(tmp_path / "pack.packnet")):
        assert_same(outputs(loaded), before, rtol=0)
        loaded.begin_task("next")
        for ours, theirs in zip(*(lifecycle.masked_weights(each).values() for each in (loaded, new)), strict=True):
            np.testing.assert_array_equal(ours.values(), theirs.values())
    exported = tp.dense_model(loaded, 2)
    assert_same(exported(examples(new)), before[1])
    small = tp.compact_model(tp.dense_model(two_tasks(bias_policy="per_task"), 2))
    assert tp.compact_model(exported).count_params() == small.count_params()


REFUSED = {
    "factor": [{}, {"factor": 1}, {"factor": 0.5}, {"factor": float("nan")}, {"factor": "2"}, {"factor": True}]
    + [{"factor": 1.1}, {"factor": 2, "units": {"first": 9}}],
    "units": [{"units": units} for units in ({}, ["first"], {"lost": 9}, {"first": 4}, {"first": 5.0}, {"head": 9})]
    + [{"units": {"second": 9}}, {"units": {"mixed": 9}}],
}


def test_what_is_refused():
    packed = two_tasks(
        vectors(L.Dense(6, name="second"), L.LayerNormalization(name="norm"), L.Dense(5, "softmax", name="mixed"))
    )
    for argument, calls in REFUSED.items():
        for arguments in calls:
            with pytest.raises(tp.ArgumentError) as caught:
                tp.grow(packed, **arguments)
            assert caught.value.argument == argument, arguments
    with pytest.raises(tp.ArgumentError, match="'second': 'norm' .class LayerNormalization. reads their units"):
        tp.grow(packed, units={"second": 9})
    with pytest.raises(tp.ArgumentError, match="at least 1 [+] 1/6"):
        tp.grow(packed, 1.1)
    with pytest.warns(UserWarning, match="'second': 'norm' .*, 'mixed': class Dense, as it is set"):
        assert shapes(tp.grow(packed, 1.5))["first/kernel"] == (5, 6)
    packed.begin_task("open")
    with pytest.raises(tp.ArgumentError, match="task 'open' is open"):
        tp.grow(packed, 2)
    for wrong in (tp.pack(vectors()), vectors(), None):
        with pytest.raises(tp.ArgumentError, match="Invalid `packed`"):
            tp.grow(wrong, 2)


def in_groups():
    """Convolutions with groups, as in ResNeXt, and recurrent layers with a state."""
    inputs = keras.Input((5, 4))
    x = L.Conv1D(4, 1, groups=2, name="grouped")(L.Conv1D(4, 1, name="first")(inputs))
    x = L.Bidirectional(L.GRU(3, return_sequences=True), name="both")(x, initial_state=[x[:, 0, :3], x[:, 1, :3]])
    x, *_ = L.LSTM(3, return_sequences=True, return_state=True, name="stateful")(L.Dense(4, name="free")(x))
    return keras.Model(inputs, L.Dense(2, name="head")(L.LSTM(2, activation="softmax", name="soft")(x)))


def test_layers_that_keep_their_width_say_why():
    widths = Widths(tp.pack(in_groups()).network())
    assert widths.now == {"first": 4, "free": 4}
    assert widths.fixed == {
        "grouped": "class Conv1D has groups=2, which need all of their channels in order",
        "both": "class Bidirectional is called with an initial state",
        "stateful": "class LSTM has several outputs",
        "soft": "class LSTM is stateful, returns its state, or has another cell or activation than those of Keras",
    }
    plan = widths.plan({"first": 6, "free": 6})
    assert plan.units == {}
    assert plan.stays["first"] == "'grouped' (class Conv1D) reads their units as they are"


def trained_differently():
    """A model class with its own `train_step`, and a layer outside the graph."""

    @keras.saving.register_keras_serializable("growth")
    class Taught(keras.Model):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.teacher = L.Dense(2, trainable=False, name="teacher")
            self.teacher.build((None, 5))

        def train_step(self, data):
            return super().train_step(data)

    model = vectors()
    return Taught(model.inputs, model.outputs)


def with_own_layers():
    """Layers of a user, a frozen layer, and a Lambda: none of them can read wider inputs."""

    @keras.saving.register_keras_serializable("growth")
    class Gain(L.Layer):
        def build(self, shape):
            self.gain = self.add_weight(shape=(shape[-1], shape[-1]), name="gain")

        def call(self, x):
            return x @ self.gain

    return vectors(
        Gain(name="own"),
        L.Dense(3, activation="relu", name="free"),
        L.Dense(4, name="read_by_frozen"),
        L.Dense(4, trainable=False, name="frozen"),
        L.Lambda(lambda x: x * 2),
        L.Dense(4, name="last"),
    )


PLACES = {
    "own model class": (trained_differently, {}, {"first": 6}),
    "own layers": (with_own_layers, {}, {"free": 4, "last": 6}),
    "no layers to grow": (lambda: vectors(L.LayerNormalization()), {}, None),
    "subclassed": (None, {}, None),
    "shared head": (lambda: vectors(L.Dense(3, name="inner")), {"head": "shared"}, {"first": 6, "inner": 4}),
    "pretrained": (vectors, {"pretrained": "task 0"}, {"first": 6}),
    "pretrained visible": (vectors, {"pretrained": "task 0", "prune_pretrained": False}, {"first": 6}),
    "pruned biases": (vectors, {"prune": {"first/bias": True}}, {"first": 6}),
    "unpruned kernel": (
        lambda: vectors(L.Dense(3, name="inner")),
        {"prune": {"inner/kernel": False}, "bias_policy": "per_task"},
        {"first": 6},
    ),
    "excluded": (lambda: vectors(L.Dense(3, name="inner")), {"exclude": ["first"]}, {"inner": 4}),
    "convolutional head": (
        lambda: keras.Sequential([keras.Input((4, 4, 1)), L.Conv2D(4, 3, name="first"), L.Conv2D(2, 1, name="head")]),
        {},
        {"first": 6},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_roles_and_classes(place, tmp_path):
    network, arguments, expected = PLACES[place]
    if network is None:

        class Net(keras.Model):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.body, self.answer = L.Dense(4), L.Dense(2)

            def call(self, x):
                return self.answer(self.body(x))

        packed = tp.pack(Net(), inputs=keras.Input((5,)), **arguments)
    else:
        packed = tp.pack(network(), **arguments)
    learn(packed, 1)
    learn(packed, 2, **({} if arguments.get("head") == "shared" else {"num_classes": 3}))
    if expected is None:
        with pytest.raises(tp.ArgumentError, match="Invalid `packed`"):
            tp.grow(packed, 1.5)
        return
    new = grown(packed, 1.5)
    assert new_widths(packed, new) == expected
    learn(new, 3)
    assert_same(outputs(new)[:2], outputs(packed))
    if place != "own layers":  # files do not load a Lambda
        new.save(tmp_path / "pack.keras")
        assert_same(outputs(keras.models.load_model(tmp_path / "pack.keras")), outputs(new), rtol=0)


@pytest.mark.slow
def test_mixed_precision():
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        packed = two_tasks(images(L.BatchNormalization(), L.Flatten(), L.Dense(8), L.Reshape((1, 1, 8))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new = tp.grow(packed, 1.5)
        assert_same(outputs(new), outputs(packed), rtol=0.1)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.slow
def test_an_application_of_keras():
    base = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, include_top=False, pooling="avg")
    packed = two_tasks(keras.Model(base.input, L.Dense(2)(base.output)), bias_policy="per_task")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no layer keeps its width
        new = tp.grow(packed, 1.5)
    assert_same(outputs(new), outputs(packed))
    before, after = shapes(packed), shapes(new)
    assert [path for path in before if np.prod(after[path]) <= np.prod(before[path])] == []


def test_changed_outputs_are_noticed(monkeypatch):
    packed = two_tasks()
    before, state = outputs(packed), growing.wider_state

    def wrong(*arguments):
        return {name: value + 1 if name == "first/bias.task_1" else value for name, value in state(*arguments).items()}

    monkeypatch.setattr(growing, "wider_state", wrong)
    with pytest.raises(tp.FreezeError, match="the outputs of task 'task 1' would change by .* The pack is unchanged"):
        tp.grow(packed, 2)
    assert_same(outputs(packed), before, rtol=0)


def saved_and_loaded(packed, folder):
    packed.save(folder / "pack.keras")
    return keras.models.load_model(folder / "pack.keras")


@pytest.mark.parametrize("reload", [False, True])
def test_an_abandoned_task_leaves_new_weights_new(reload, tmp_path):
    packed = grown(two_tasks(), 1.5)
    before = lifecycle.state(packed)
    assert any(name.endswith(".fresh") for name in before)
    packed.begin_task("a bad idea")
    packed = saved_and_loaded(packed, tmp_path) if reload else packed
    packed.abandon_task()
    after = lifecycle.state(packed)
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


@pytest.mark.slow
def test_a_pack_that_lives(tmp_path):
    """30 tasks learned, 5 forgotten, 2 renamed, grown twice, saved in between: the others keep their predictions."""
    packed = tp.pack(vectors(L.Dense(24, "relu"), L.Dense(16, "relu")), bias_policy="per_task")
    seen = {}

    def check(rtol=0.0):
        for name, first in seen.items():
            packed.select_task(name)
            assert_same(packed(examples(packed), training=False), first, rtol)

    for number in range(1, 31):
        learn(packed, number, kept=0.1)
        packed.select_task(f"task {number}")
        seen[f"task {number}"] = packed(examples(packed), training=False)
        check()
        if number in (10, 20):
            packed = grown(packed, 1.5)
            check(1e-5)
            seen = {name: outputs(packed)[packed.task_names.index(name)] for name in seen}
        if number in (4, 9, 14, 19, 24):
            forgotten = f"task {number if number == 24 else number - 2}"
            packed.forget_task(forgotten)
            del seen[forgotten]
            check()
        if number in (8, 16):
            packed.rename_task(f"task {number}", f"renamed {number}")
            seen[f"renamed {number}"] = seen.pop(f"task {number}")
        if number % 5 == 0:
            packed = saved_and_loaded(packed, tmp_path)
            tp.save_pack(packed, tmp_path / "pack.packnet")
            packed = tp.load_pack(tmp_path / "pack.packnet")
            check()
    assert len(seen) == packed.committed_tasks == 25
    assert set(packed.task_names) == set(seen)
