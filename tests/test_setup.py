"""Automatic choices: the distribution strategy, and the level of XLA compilation."""

import keras
import pytest
import tensorflow as tf

from tf_packnet import tasks
from tf_packnet.errors import ArgumentError
from tf_packnet.runs import learning, setup
from tf_packnet.runs.config import OPTIMIZERS, Config
from tf_packnet.runs.data import load_stream
from tf_packnet.runs.paths import StorePlace
from tf_packnet.training import acceleration


class FakeMirrored:
    num_replicas_in_sync = 2

    def __init__(self, devices, cross_device_ops=None):
        self.devices = devices


@pytest.fixture
def machine(monkeypatch):
    """A machine with as many GPUs as asked for."""

    def with_gpus(count):
        devices = {"GPU": [f"GPU:{i}" for i in range(count)], "CPU": ["CPU:0"]}
        monkeypatch.setattr(tf.config, "get_visible_devices", devices.get)
        monkeypatch.setattr(tf.distribute, "MirroredStrategy", FakeMirrored)

    return with_gpus


@pytest.mark.parametrize(
    ("strategy", "gpus", "mirrored"),
    [
        *[("auto", 0, False), ("auto", 1, False), ("auto", 2, True), ("none", 4, False)],
        *[("mirrored", 0, False), ("mirrored", 1, False), ("mirrored", 2, True)],
    ],
)
def test_two_or_more_gpus_are_mirrored(machine, strategy, gpus, mirrored):
    machine(gpus)
    chosen = setup.choose_strategy(Config(strategy=strategy))
    assert isinstance(chosen, FakeMirrored) == mirrored
    if mirrored:
        assert chosen.devices is None  # all there are


@pytest.mark.parametrize(("gpus", "logical_devices", "expected"), [(0, None, "CPU"), (2, None, "H100"), (2, 2, "CPU")])
def test_the_device_is_named(machine, gpus, logical_devices, expected, monkeypatch):
    machine(gpus)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", {"GPU:0": {"device_name": "H100"}}.get)
    config = Config(strategy="mirrored" if logical_devices else "auto", logical_devices=logical_devices)
    assert setup.device(config) == expected


def test_a_batch_that_the_replicas_cannot_share(machine):
    machine(2)
    with pytest.raises(ArgumentError, match="at least one example for each of the 2 replicas. Received: batch_size=1"):
        setup.choose_strategy(Config(batch_size=1))


def test_logical_devices_come_too_late_in_a_running_process():
    tf.constant(0)  # TensorFlow has started
    with pytest.raises(ArgumentError, match="`logical_devices`: expected to be set before TensorFlow starts"):
        setup.choose_strategy(Config(strategy="mirrored", logical_devices=2))


@pytest.mark.parametrize(
    ("jit", "model", "gpus", "expected"),
    [
        ("auto", "mlp", 0, "step"),
        ("auto", "conv", 0, "update"),
        ("auto", "conv", 1, "step"),
        ("on", "conv", 0, "step"),
        ("off", "mlp", 1, "off"),
    ],
)
def test_auto_compiles_all_but_convolutions_on_cpu(machine, jit, model, gpus, expected):
    config = Config(jit=jit, model=model, dataset="digits", num_tasks=2)
    network = setup.build_model(config, load_stream(config))
    machine(gpus)
    assert setup.choose_xla(config, network) == expected


@pytest.mark.parametrize(
    ("precision", "flags", "gpus", "expected"),
    [
        ("float32", "fpu avx2", 0, True),
        ("mixed_bfloat16", "fpu avx2 avx512f", 0, False),
        ("mixed_bfloat16", "fpu avx2 avx512_bf16", 0, True),
        ("mixed_bfloat16", "fpu amx_bf16", 0, True),
        ("mixed_bfloat16", "fpu avx2", 1, True),
        ("mixed_float16", "fpu avx512_bf16", 0, False),
        ("mixed_float16", "fpu avx512_fp16", 0, True),
        ("mixed_float16", None, 0, True),
    ],
)
def test_precisions_that_a_cpu_supports(machine, precision, flags, gpus, expected, tmp_path, monkeypatch):
    machine(gpus)
    monkeypatch.setattr(acceleration, "CPUINFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert acceleration.computes_in(precision) is expected


@pytest.mark.parametrize(
    ("asked", "limit", "resident"),
    [("auto", 10**9, True), ("auto", 10, False), ("device", 10, True), ("stream", 10**9, False)],
)
def test_auto_keeps_on_the_device_what_fits(monkeypatch, asked, limit, resident):
    monkeypatch.setattr(setup, "RESIDENT_BYTES", limit)
    stream = tasks.load("digits", batch_size=32)
    assert setup.choose_residency(Config(data_residency=asked), stream) is resident


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_can_be_built(name):
    optimizer = setup.build_optimizer(Config(optimizer=name, learning_rate=0.25))
    assert float(optimizer.learning_rate) == 0.25
    assert getattr(optimizer, "momentum", 0) == (0.9 if name == "momentum" else 0)


@pytest.mark.parametrize(("fc8192", "weights"), [("flatten", 8.6e6), ("dense", 75.7e6)])
def test_both_readings_of_fc8192(fc8192, weights):
    from tf_packnet.approaches import conv

    model = conv((32, 32, 3), 2, fc8192=fc8192)
    assert model.count_params() == pytest.approx(weights, rel=0.01)
    assert model.get_layer("flatten").output.shape[1] == 8192


def test_convolutions_need_images():
    from tf_packnet.approaches import conv

    with pytest.raises(ArgumentError, match=r"expected mlp, for inputs of shape \(64,\)"):
        conv((64,), 2)


def test_the_seed_decides_the_initial_weights():
    stream = tasks.load("digits", batch_size=32)
    packs = []
    for seed in (1, 1, 2):
        config = Config(seed=seed)
        keras.utils.set_random_seed(seed)
        packs.append(keras.ops.convert_to_numpy(setup.build_model(config, stream).get_layer("dense_1").kernel))
    assert (packs[0] == packs[1]).all()
    assert not (packs[0] == packs[2]).any()


def test_a_run_builds_its_network_once(monkeypatch, tmp_path):
    networks = []
    pack = setup.pack
    monkeypatch.setattr(setup, "make_deterministic", lambda *_: None)
    monkeypatch.setattr(
        setup, "pack", lambda *arguments, **more: networks.append(pack(*arguments, **more)) or networks[-1]
    )
    config = Config(num_tasks=1, hidden_units=(8,), train_epochs=1, retrain_epochs=1, prune_rounds=1)
    learning.learn_only(config, StorePlace(tmp_path), lambda task, stage: [])
    assert len(networks) == 1


def test_shares_of_a_run():
    fields = {"dataset": "digits", "num_tasks": 2, "hidden_units": (8,), "train_epochs": 1, "retrain_epochs": 2}
    config = Config(shares="0.5+0.2", prune_rounds=2, **fields)
    assert config.identity() == Config(shares="0.5,0.2", prune_rounds=2, **fields).identity()
    run = learning.Run.prepare(config)
    approach = run.build_approach(None, lambda task, stage: ())
    planned = setup.plan_of(config, run.stream, approach.packed)
    for number in (1, 2):
        task = approach.training_task(run.stream, number)
        for stage in ("train", "prune+retrain"):
            approach.run_stage(task, stage)
    assert tuple(task.weights for task in approach.packed.tasks) == planned.kept
    assert planned.kept == (256, 102)
    with pytest.raises(ArgumentError, match="Invalid `shares`: expected 2 shares, one for each task"):
        setup.schedule_of(Config(shares="0.5", **{**fields, "prune_rounds": 2}), 2)
    with pytest.raises(ArgumentError, match="Invalid `shares`: expected equal with --approach=memory"):
        Config(shares="0.5,0.2", approach="memory", **{**fields, "prune_rounds": 2})


@pytest.mark.parametrize("approach", ["packnet", "memory", "multinet"])
def test_rounds_of_any_length(approach):
    fields = {"num_tasks": 1, "hidden_units": (4,), "train_epochs": 1, "retrain_epochs": 4, "prune_rounds": 2}
    config = Config(dataset="digits", approach=approach, round_epochs="1+3", **fields)
    assert config.identity() == Config(dataset="digits", approach=approach, round_epochs="1,3", **fields).identity()
    run = learning.Run.prepare(config)
    trained = run.build_approach(None, lambda task, stage: ())
    task = trained.training_task(run.stream, 1)
    trained.run_stage(task, "train")
    first, *later = trained.run_stage(task, "prune+retrain")["sparsity"]
    assert first < later[0]
    assert later == [later[0]] * 3
