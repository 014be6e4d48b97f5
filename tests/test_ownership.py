import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tf_packnet.pruning import ownership

shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)
committed_maps = hnp.arrays(np.uint8, shapes, elements=st.integers(0, 254))
# Often free, candidate, or beside the limits of task numbers.
maps = hnp.arrays(np.uint8, shapes, elements=st.sampled_from([0, 1, 2, 253, 254, 255]) | st.integers(0, 255))
task_numbers = st.sampled_from([1, 2, 253, 254, 255, 300]) | st.integers(1, 300)


@given(committed_maps)
def test_begin_opens_exactly_the_free_weights(owner):
    begun = ownership.begin(owner)
    np.testing.assert_array_equal(ownership.candidates(begun), owner == 0)
    np.testing.assert_array_equal(begun[owner != 0], owner[owner != 0])


@given(maps, st.data())
def test_prune_frees_only_candidates(owner, data):
    keep = data.draw(hnp.arrays(bool, owner.shape))
    pruned = ownership.prune(owner, keep)
    expected = owner.copy()
    for index in np.ndindex(owner.shape):
        if owner[index] == 255 and not keep[index]:
            expected[index] = 0
    np.testing.assert_array_equal(pruned, expected)
    assert pruned.dtype == np.uint8


@given(maps, st.integers(1, 254))
def test_commit_gives_candidates_to_the_task_and_touches_nothing_else(owner, task):
    committed = ownership.commit(owner, task)
    np.testing.assert_array_equal(committed, np.where(owner == 255, task, owner))
    assert not ownership.candidates(committed).any()
    np.testing.assert_array_equal(owner == 0, committed == 0)


@given(maps, task_numbers)
def test_visible_is_owner_in_1_to_task(owner, task):
    expected = [0 < int(o) <= task and o != 255 for o in owner.ravel()]
    np.testing.assert_array_equal(ownership.visible(owner, task).ravel(), expected)


@given(shapes, st.lists(st.floats(0, 1), min_size=1, max_size=6), st.randoms())
def test_later_tasks_never_change_what_earlier_ones_see(shape, keeps, random):
    owner = ownership.new_map(shape)
    views = []
    for task, share in enumerate(keeps, start=1):
        if task > 1:
            owner = ownership.begin(owner)
        keep = np.array([random.random() < share for _ in range(owner.size)]).reshape(shape)
        owner = ownership.commit(ownership.prune(owner, keep), task)
        views.append(ownership.visible(owner, task))
        for earlier, view in enumerate(views, start=1):
            np.testing.assert_array_equal(ownership.visible(owner, earlier), view)
    assert ownership.free_fraction(owner) == np.mean(owner == 0)


@pytest.mark.parametrize("chunk", [1, 3, ownership._CHUNK], ids=["1", "3", "default"])
@given(owner=maps)
def test_counts_are_those_of_a_loop_over_the_weights(chunk, owner):
    counts = collections.Counter(0 if entry == 255 else int(entry) for entry in owner.ravel())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ownership, "_CHUNK", chunk)
        assert ownership.count_by_owner(owner).tolist() == [counts[task] for task in range(255)]
    assert ownership.count_uncommitted(owner) == counts[0]
    assert ownership.free_fraction(owner) == counts[0] / owner.size


@given(maps)
def test_reopen_and_export_exchange_free_weights_and_candidates(owner):
    uncommitted = (owner == 0) | (owner == 255)
    np.testing.assert_array_equal(ownership.reopen(owner), np.where(uncommitted, 255, owner))
    np.testing.assert_array_equal(ownership.without_candidates(owner), np.where(uncommitted, 0, owner))


def test_begin_refuses_a_map_with_an_open_task():
    with pytest.raises(ValueError, match="still open"):
        ownership.begin(ownership.new_map((3,)))


@pytest.mark.parametrize("task", [0, 255, -1])
def test_commit_refuses_numbers_a_map_cannot_hold(task):
    with pytest.raises(ValueError, match="between 1 and 254"):
        ownership.commit(ownership.new_map((3,)), task)
