"""The outputs of a task are compared with those at its commit, for the same synthetic inputs."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import stateful
from tf_packnet.layers.records import TaskRecords, checksum
from tf_packnet.lifecycle import witness

FLOATS = ["float64", "float32", "float16", tf.bfloat16.as_numpy_dtype, "complex64"]
values = hnp.arrays(np.float64, st.integers(1, 6), elements=st.floats(-100, 100).map(lambda x: round(x, 2)))


def difference(before, now, tolerance=0.0):
    return witness.difference([np.asarray(before)], [np.asarray(now)], tolerance)


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "uint8", "bool"])
@pytest.mark.parametrize("tolerance", [0.0, 0.01])
def test_equal_outputs_do_not_differ(dtype, tolerance):
    output = np.arange(-3, 4).astype(dtype)
    assert difference(output, output.copy(), tolerance) is None
    assert difference([], [], tolerance) is None
    assert witness.difference([], [], tolerance) is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_elsewhere_outputs_differ_by_more_than_the_tolerance(dtype):
    before = np.array([0.5, -64, 2]).astype(dtype)
    now = np.array([0.5, -64, 4]).astype(dtype)
    assert difference(before, now, 0.05) is None
    assert difference(before, now, 2 / 64) is None
    assert difference(before, now, 0.03) == 2 / 64
    assert difference(before, now, 0.0) == 2 / 64


@given(values, st.data(), st.sampled_from([0.0, 1e-3, 0.1]))
def test_the_difference_is_relative_to_the_largest_recorded_value(before, data, tolerance):
    change = data.draw(hnp.arrays(np.float64, before.shape, elements=st.sampled_from([0, 1e-4, -0.01, 1])))
    now = before + change * np.abs(before).max()
    gap = np.abs(now - before).max() / max(1e-30, np.abs(before).max())
    found = difference(before, now, tolerance)
    if before.tobytes() == now.tobytes():
        assert found is None
    elif gap > tolerance or tolerance == 0:
        assert found == pytest.approx(gap)
        assert found > 0
    else:
        assert found is None


def test_the_largest_of_several_outputs_counts():
    before = [np.array([1.0, 2.0]), np.array([10.0]), np.array([4.0])]
    now = [np.array([1.0, 2.0]), np.array([15.0]), np.array([5.0])]
    assert witness.difference(before, now, 0.0) == 0.5
    assert witness.difference(before[::-1], now[::-1], 0.3) == 0.5


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([1.0, 2.0], [1.0, np.nan]),
        ([1.0, np.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, np.inf]),
        ([1.0, np.inf], [1.0, -np.inf]),
        ([np.inf], [1.0]),
        ([1.0, 2.0], [1.0, 2.0, 3.0]),
    ],
)
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_what_no_number_measures_differs_without_limit(before, now, tolerance):
    assert difference(before, now, tolerance) == np.inf


@pytest.mark.parametrize("masked", [np.inf, -np.inf, np.nan])
def test_masked_logits_do_not_hide_or_make_a_difference(masked):
    before = np.float32([masked, 8.0])
    assert difference(before, np.float32([masked, 8.001]), 0.01) is None
    assert difference(before, np.float32([masked, 10.0]), 0.01) == 0.25


def test_rounding_explains_the_difference_that_the_most_precise_layer_permits():
    keras.config.set_dtype_policy("float64")
    for policy, limit in (("float64", 1e-13), ("float32", 1e-13), ("bfloat16", 0.0)):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Identity(dtype=policy)])
        assert witness.is_rounding(model, limit)
        assert not witness.is_rounding(model, np.nextafter(limit, 1))
    keras.config.set_dtype_policy("float32")
    model = keras.Sequential([keras.Input((3,))])
    assert witness.is_rounding(model, 1e-5)
    assert not witness.is_rounding(model, np.nextafter(1e-5, 1))


def test_the_imaginary_part_counts():
    assert difference([3 + 4j, 1], [3 + 4j, 1 + 1j]) == 0.2


def test_every_bit_counts_on_the_same_machine():
    assert difference(np.float32([0.0, 1.0]), np.float32([-0.0, 1.0])) > 0
    assert difference(np.float32([0.0, 1.0]), np.float32([-0.0, 1.0]), 1e-6) is None
    one = np.float32(1.0)
    assert difference([one], [np.nextafter(one, np.float32(2))]) == pytest.approx(2.0**-23)
    assert difference([one], np.float64([1.0])) > 0


def test_whole_numbers_have_no_tolerance():
    assert difference(np.int32([100, 1]), np.int32([100, 2]), 0.1) == 0.01
    assert difference([False, True], [True, True], 0.1) == 1.0
    assert difference([0, 0], [0, 1], 0.1) > 1.0


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (["float64", "float64"], 1e-6),
        (["float64", "float32"], 1e-2),
        (["float32", "float64"], 1e-2),
        (["float64", "float16"], 5e-2),
        (["bfloat16", "float16"], 1e-1),
        (["float64", "int32"], 1e-2),
    ],
)
def test_the_tolerance_is_that_of_the_least_precise_layer(policies, expected):
    keras.config.set_dtype_policy("float64")
    model = keras.Sequential([keras.Input((3,)), *(keras.layers.Identity(dtype=policy) for policy in policies)])
    here = witness.environment()
    assert witness.tolerance(model, here) == 0.0
    assert witness.tolerance(model, {**here, "keras": "2.0"}) == expected
    assert witness.tolerance(model, {**here, "device": "GPU"}) == expected


def test_of_a_large_output_evenly_spaced_values_are_stored(monkeypatch):
    monkeypatch.setattr(witness, "_MOST_OUTPUT_VALUES", 10)
    for size in (0, 1, 9, 10, 11, 19, 20, 21, 105):
        stored = witness._flat_values(np.arange(size).reshape(1, -1))
        step = max(1, -(-size // 10))
        assert stored.tolist() == list(range(0, size, step))
        assert stored.size <= 10
    texts = witness._flat_values(np.array([["a", "b"]], object))
    assert texts.dtype == np.uint8
    assert difference(texts, witness._flat_values(np.array([["a", "c"]], object))) is not None


def test_at_most_16384_values_of_an_output_are_stored():
    assert witness._flat_values(np.zeros(16384)).size == 16384
    assert witness._flat_values(np.zeros(16385)).size == 8193


def test_the_environment_has_the_number_of_threads(monkeypatch):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(7 - process))
    assert witness.environment()["threads"] == 7
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    assert witness.environment()["threads"] == 3
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: 2)
    assert witness.environment()["threads"] == 2


def test_the_environment_has_the_processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = ("model name", "flags", "Features", "CPU part")
    relevant = sorted({line for line in lines if line.startswith(names)})
    assert relevant
    witness._processor.cache_clear()
    assert witness.environment()["processor"] == checksum(np.frombuffer("\n".join(relevant).encode(), np.uint8))


def test_variables_that_no_layer_holds_are_found_in_the_functions():
    inputs, records = keras.Input((3,)), TaskRecords()
    model = keras.Model(inputs, stateful.Outside()(inputs))
    assert witness.captured_variables(records) == []
    witness.outputs(model, records)
    (found,) = witness.captured_variables(records)
    assert found is stateful.OUTSIDE


def computed(*inputs, layer=None):
    """Compute the witness of a model that concatenates its inputs."""
    flat = [keras.layers.Flatten()(each) if len(each.shape) > 2 else each for each in inputs]
    joined = flat[0] if len(flat) == 1 else keras.layers.Concatenate()(flat)
    model = keras.Model(list(inputs), joined if layer is None else layer(joined))
    return witness.outputs(model, TaskRecords())


class TestInputs:
    def test_they_are_standard_normal_numbers_of_a_fixed_seed(self):
        (output,), parameters = computed(keras.Input((5, 4)))
        assert parameters == {"examples": 8, "size": 0}
        expected = np.random.RandomState(20200903).standard_normal((8, 5, 4)).astype("float32")
        np.testing.assert_array_equal(output, expected.ravel())

    @pytest.mark.parametrize(("values", "examples"), [(2**15, 8), (2**16, 4), (2**17 + 1, 1), (2**19, 1)])
    def test_there_are_fewer_examples_if_they_are_large(self, values, examples):
        _, parameters = computed(keras.Input((values,)))
        assert parameters == {"examples": examples, "size": 0}

    def test_the_largest_of_several_inputs_counts(self):
        _, parameters = computed(keras.Input((3,)), keras.Input((2**16,)))
        assert parameters["examples"] == 4

    def test_a_fixed_batch_size_is_used(self):
        _, parameters = computed(keras.Input(batch_shape=(11, 3)))
        assert parameters == {"examples": 11, "size": 0}

    def test_one_fixed_batch_size_is_that_of_all_inputs(self):
        specs = [keras.KerasTensor(shape) for shape in ((), (None, 4), (11, 3), (None,))]
        assert list(witness._parameters_to_try(specs)) == [{"examples": 11, "size": 0}]

    def test_a_sequential_model(self):
        model = keras.Sequential([keras.Input((3, 2)), keras.layers.Flatten()])
        (output,), parameters = witness.outputs(model, TaskRecords())
        assert parameters == {"examples": 8, "size": 0}
        expected = np.random.RandomState(20200903).standard_normal((8, 3, 2)).astype("float32")
        np.testing.assert_array_equal(output, expected.ravel())
        assert witness.examples(model) == 8

    def test_an_output_of_several_parts(self):
        @keras.saving.register_keras_serializable("tests.witness_values")
        class Sparse(keras.layers.Layer):
            def call(self, x):
                return keras.ops.convert_to_tensor(tf.sparse.from_dense(x), sparse=True)

            def compute_output_spec(self, x):
                return keras.KerasTensor(x.shape, x.dtype, sparse=True)

        (indices, numbers, shape), _ = computed(keras.Input((3,)), layer=Sparse())
        expected = np.random.RandomState(20200903).standard_normal((8, 3)).astype("float32")
        np.testing.assert_array_equal(indices, np.argwhere(expected).ravel())
        np.testing.assert_array_equal(numbers, expected.ravel())
        assert shape.tolist() == [8, 3]

    def test_random_generators_have_fixed_seeds_and_go_on_as_before(self):
        @keras.saving.register_keras_serializable("tests.witness_values")
        class Noise(keras.layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.generators = [keras.random.SeedGenerator(1), keras.random.SeedGenerator(1)]

            def call(self, x):
                return [0 * x + keras.random.normal((3,), seed=seed) for seed in self.generators]

        inputs = keras.Input((3,))
        model, records = keras.Model(inputs, Noise()(inputs)), TaskRecords()
        found = []
        for _ in range(2):
            before = [np.array(generator.state) for generator in model.layers[-1].generators]
            found.append(witness.outputs(model, records)[0])
            for generator, state in zip(model.layers[-1].generators, before, strict=True):
                np.testing.assert_array_equal(generator.state, state)
            model(np.zeros((1, 3)))
        one, other = found[0]
        assert not np.isclose(one, other).any()
        np.testing.assert_array_equal(*found)
        for number, output in enumerate(found[0]):
            generator = keras.random.SeedGenerator(1)
            generator.state.assign([20200903, number])
            value = keras.random.normal((3,), seed=generator)
            np.testing.assert_array_equal(output.reshape(8, 3), np.tile(value, (8, 1)))

    def test_whole_numbers_and_booleans(self):
        for dtype in ("int32", "bool"):
            (output,), _ = computed(keras.Input((64,), dtype=dtype))
            expected = np.random.RandomState(20200903).randint(0, 2, 512).astype(dtype)
            np.testing.assert_array_equal(output, expected, strict=True)

    def test_indices_are_in_the_smallest_vocabulary(self):
        ids = keras.Input((16,), dtype="int32")
        both = [keras.layers.Embedding(size, 1)(ids) for size in (9, 5)]
        model = keras.Model(ids, [keras.layers.Flatten()(ids), keras.layers.Add()(both)])
        (output, _), _ = witness.outputs(model, TaskRecords())
        assert set(output.tolist()) == set(range(5))

    def test_axes_of_unknown_size_get_the_first_size_that_works(self):
        inputs = keras.Input((None,))
        model = keras.Model(inputs, keras.layers.Lambda(lambda x: keras.ops.reshape(x, (-1, 32)))(inputs))
        (output,), parameters = witness.outputs(model, TaskRecords())
        assert parameters["size"] == 8  # 8 examples of 8 numbers can be shaped into rows of 32
        assert output.size == 64

    def test_one_number_per_example_and_none(self):
        _, parameters = computed(keras.Input(()))
        assert parameters == {"examples": 8, "size": 0}
        _, parameters = computed(keras.Input((0,)))
        assert parameters == {"examples": 8, "size": 0}

    def test_texts_are_digits_and_sparse_inputs_are_sparse(self):
        model = keras.Sequential([keras.Input((3,))])
        parameters = {"examples": 8, "size": 0}
        texts = witness._inputs(model, keras.KerasTensor((None, 64), "string"), parameters)
        assert set(texts.numpy().ravel()) == {str(digit).encode() for digit in range(10)}
        for sparse in (False, True):
            made = witness._inputs(model, keras.KerasTensor((None, 3), "float32", sparse=sparse), parameters)
            assert isinstance(made, tf.SparseTensor) == sparse

    def test_a_model_without_a_graph(self):
        @keras.saving.register_keras_serializable("tests.witness_values")
        class Own(keras.Model):
            def call(self, x):
                return x

        model = Own()
        model.build((None, 5))
        (output,), parameters = witness.outputs(model, TaskRecords())
        assert parameters == {"examples": 8, "size": 0}
        assert output.size == 40
        assert witness.examples(model) == 8

        class Several(keras.Model):
            def call(self, x, y):
                return x + y

        for shapes in ({}, {"x_shape": (None, 5), "y_shape": (None, 5)}, {"input_shape": {"a": (None, 5)}}):
            model = Several()
            model._build_shapes_dict = shapes
            assert witness.outputs(model, TaskRecords()) == ([], None)
            assert witness.examples(model) == 1

    def test_few_functions_are_kept(self, monkeypatch):
        monkeypatch.setattr(witness, "_MOST_FUNCTIONS", 2)
        inputs, records = keras.Input((3,)), TaskRecords()
        model = keras.Model(inputs, inputs)
        for examples in (1, 2, 3):
            (output,), _ = witness.outputs(model, records, {"examples": examples, "size": 0})
            assert output.size == 3 * examples
            assert len(records.functions) == min(2, examples)

    @pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64, 128, 224])
    def test_common_sizes_are_tried(self, size):
        @keras.saving.register_keras_serializable("tests.witness_values")
        class OfOneSize(keras.layers.Layer):
            def call(self, x):
                if x.shape[1] not in (None, size):
                    raise ValueError
                return x

        inputs = keras.Input((None,))
        model = keras.Model(inputs, OfOneSize()(inputs))
        (output,), parameters = witness.outputs(model, TaskRecords())
        assert parameters == {"examples": 8, "size": size}
        assert output.size == 8 * size

    def test_a_model_that_cannot_be_called_is_tried_once(self):
        calls = []

        @keras.saving.register_keras_serializable("tests.witness_values")
        class Fails(keras.layers.Layer):
            def call(self, x):
                calls.append(1)
                raise ValueError

            def compute_output_spec(self, x):
                return keras.KerasTensor(x.shape, x.dtype)

        inputs = keras.Input((3,))
        model, records = keras.Model(inputs, Fails()(inputs)), TaskRecords()
        assert witness.outputs(model, records) == ([], None)
        tried = len(calls)
        assert tried
        assert witness.outputs(model, records) == ([], None)
        assert len(calls) == tried

    @pytest.mark.parametrize(
        "parameters",
        [
            {"examples": 9, "size": 0},
            {"examples": 0, "size": 0},
            {"examples": 8, "size": 3},
            {"examples": 2, "size": -1},
        ],
    )
    def test_parameters_of_a_damaged_file_are_not_used(self, parameters):
        inputs = keras.Input((3,))
        model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        assert witness.outputs(model, TaskRecords(), parameters) == ([], None)
        (output,), used = witness.outputs(model, TaskRecords(), {"examples": 1, "size": 0})
        assert output.size == 2
        assert used == {"examples": 1, "size": 0}
        large = keras.Input((2**16,))
        model = keras.Model(large, large)
        assert witness.outputs(model, TaskRecords(), {"examples": 5, "size": 0}) == ([], None)
        assert witness.outputs(model, TaskRecords(), {"examples": 4, "size": 0})[0][0].size == 2**14
