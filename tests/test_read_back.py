"""`save_pack` reads the written file back, and keeps the previous file if the new one differs from the pack."""

import random

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import make_mlp
from tests.packs import L, commit
from tf_packnet import lifecycle
from tf_packnet.packfile import container, saving


@pytest.fixture
def saved(tmp_path):
    packed = tp.pack(make_mlp(), freed_weights="keep")
    commit(packed, 1)
    path = tmp_path / "pack.packnet"
    tp.save_pack(packed, path)
    commit(packed, 2)
    return packed, path, path.read_bytes()


def assert_untouched(path, before):
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("free_values", [False, True])
def test_the_new_file_replaces_the_old_one(saved, free_values):
    packed, path, _ = saved
    tp.save_pack(packed, path, free_values=free_values)
    assert tp.load_pack(path).task_names == ["task 1", "task 2"]


def test_a_file_that_cannot_be_read_does_not_replace_it(saved, monkeypatch):
    packed, path, before = saved
    write = container.write

    def cut_short(temporary, *rest):
        write(temporary, *rest)
        temporary.write_bytes(temporary.read_bytes()[:-1])

    monkeypatch.setattr(container, "write", cut_short)
    with pytest.raises(tp.ArgumentError, match=r"that can be read back from its file; part 'task 2' is cut short"):
        tp.save_pack(packed, path)
    assert_untouched(path, before)


@pytest.mark.parametrize("change", ["owner", "frozen", "own", "name", "selected", "shared"])
def test_a_file_that_loads_differently_does_not_replace_it(saved, monkeypatch, change):
    packed, path, before = saved
    load = saving.load_pack

    def changed(*args, **kwargs):
        loaded = load(*args, **kwargs)
        weight = lifecycle.masked_weights(loaded)["dense_2/kernel"]
        if change == "owner":
            weight.owner.assign(weight.owner * 0)
        elif change == "frozen":
            weight.frozen.assign(-weight.frozen)
        elif change == "own":
            kept = loaded.get_layer("dense_1").task_weights[0].kept
            kept[1] = np.nextafter(kept[1], np.float32(9))
        elif change == "name":
            lifecycle.records(loaded).names[0] = "another"
        elif change == "selected":
            loaded.select_task(1)
        else:
            loaded.get_layer("head").__class__ = L.Dense
        return loaded

    monkeypatch.setattr(saving, "load_pack", changed)
    with pytest.raises(tp.ArgumentError, match="read back from its file; .* differs after loading"):
        tp.save_pack(packed, path)
    assert_untouched(path, before)


def test_values_are_compared_by_their_bits():
    nan = np.array([np.nan], np.float32)
    assert saving._same_bits(nan, nan.copy())
    assert not saving._same_bits(np.array([0.0]), np.array([-0.0]))
    assert not saving._same_bits(np.zeros(2, "float32"), np.zeros(2, "float64"))


def test_saving_changes_neither_names_nor_seeds(saved):
    packed, path, _ = saved
    found = []
    for save in (False, True):
        keras.utils.set_random_seed(3)
        keras.utils.clear_session(free_memory=False)
        if save:
            tp.save_pack(packed, path)
        layer = L.Dense(3)
        layer.build((None, 2))
        found.append((layer.name, layer.kernel.numpy().tolist(), random.random()))
    assert found[0] == found[1]
