"""The rules by which workers take runs, and how faults of workers are handled. No process is started."""

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tf_packnet.experiments.run_queue import MOST_FAULTS, Job, RunQueue, RunState, WorkerState
from tf_packnet.runs.config import Config

IDLE, STARTING, BUSY, RETIRED = WorkerState
ENDED = (RunState.DONE, RunState.FAILED)


def job(beginning="a"):
    return Job(Config(), beginning)


def queue_of(workers, jobs):
    queue = RunQueue(workers)
    for each in jobs:
        queue.add(each)
    return queue


class Faults:
    """Which runs meet a fault of the machine on which workers."""

    def __init__(self, workers=(), runs=()):
        self.workers, self.runs = set(workers), set(runs)

    def at(self, worker, run):
        return worker in self.workers or run in self.runs


def simulate(workers, jobs, faults, order=None):
    """Do all runs. Returns for each worker the numbers of the runs that it was given."""
    queue, given = queue_of(workers, jobs), [[] for _ in range(workers)]
    busy: dict[int, Job] = {}
    while True:
        idle = [number for number in range(workers) if queue.next_for(number) is not None]
        if idle:
            busy[idle[0]] = queue.take(idle[0])
            given[idle[0]].append(jobs.index(busy[idle[0]]))
        elif busy:
            number = sorted(busy)[order(len(busy)) if order else 0]
            if faults.at(number, jobs.index(busy.pop(number))):
                queue.fault(number)
            else:
                queue.end(number, failed=False)
        else:
            assert not queue.queued or not queue.has_workers
            return given


def states(jobs):
    return [each.state for each in jobs]


def test_a_broken_worker_is_retired_and_the_others_do_its_runs():
    jobs = [job(str(number)) for number in range(12)]
    given = simulate(2, jobs, Faults(workers=[1]), order=lambda running: running - 1)  # it is the faster one
    assert states(jobs) == [RunState.DONE] * 12
    assert len(given[1]) == MOST_FAULTS
    assert given[0][-MOST_FAULTS:] == given[1]  # its runs are done at the end


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_run_that_always_meets_a_fault_fails_and_costs_no_worker(workers):
    jobs = [job(str(number)) for number in range(12)]
    given = simulate(workers, jobs, Faults(runs=[3]))
    assert states(jobs) == [RunState.FAILED if number == 3 else RunState.DONE for number in range(12)]
    assert sum(numbers.count(3) for numbers in given) == 2


def test_several_such_runs_fail_and_cost_no_worker():
    """As in a sweep over the size of the network, with four seeds."""
    jobs = [job(str(number)) for number in range(12)]
    simulate(2, jobs, Faults(runs=[2, 5, 8, 11]))
    assert [number for number, each in enumerate(jobs) if each.state == RunState.FAILED] == [2, 5, 8, 11]
    assert all(each.state in ENDED for each in jobs)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("runs", [1, 2, 12])
def test_without_a_good_worker_all_runs_stay_queued(workers, runs):
    jobs = [job(str(number)) for number in range(runs)]
    given = simulate(workers, jobs, Faults(workers=range(workers)))
    assert states(jobs) == [RunState.QUEUED] * runs
    assert sum(map(len, given)) == workers * MOST_FAULTS


def test_a_suspect_run_is_done_alone():
    jobs = [job("a"), job("b"), job("c")]
    queue = queue_of(2, jobs)
    assert queue.take(0) is jobs[0]
    assert queue.take(1) is jobs[1]
    assert queue.fault(0).job is jobs[0]
    assert queue.take(0) is jobs[2]
    queue.end(0, failed=False)
    assert queue.next_for(0) is None  # the other worker has a run
    queue.end(1, failed=False)
    assert queue.take(1) is jobs[0]
    queue.add(job("d"))
    assert queue.next_for(0) is None
    queue.end(1, failed=False)
    assert queue.next_for(0) is not None


def test_what_comes_from_outside_never_counts_against_a_run():
    first, second = jobs = [job("a"), job("b")]
    queue = queue_of(1, jobs)
    assert queue.take(0) is first
    queue.fault(0, from_outside=True)
    assert not first.suspect
    assert queue.take(0) is second
    queue.fault(0)
    assert second.suspect
    assert queue.take(0) is first
    queue.end(0, failed=False)
    assert queue.take(0) is second  # alone, on a worker that works well
    queue.fault(0, from_outside=True)
    assert second.state == RunState.QUEUED


def test_a_worker_that_has_just_met_a_fault_is_no_judge():
    first, second = jobs = [job("a"), job("b")]
    queue = queue_of(1, jobs)
    queue.take(0)
    queue.end(0, failed=False)
    for _ in range(2):
        assert queue.take(0) is second
        queue.fault(0)
        assert second.state == RunState.QUEUED
    assert queue.take(0) is second
    assert queue.fault(0).retired
    assert (first.state, second.state) == (RunState.DONE, RunState.QUEUED)


def test_a_suspect_run_goes_to_a_worker_that_works_well():
    jobs = [job("a"), job("b")]
    queue = queue_of(2, jobs)
    queue.take(0)
    queue.take(1)
    queue.fault(0)
    queue.end(1, failed=False)
    assert queue.next_for(0) is None
    assert queue.next_for(1) is jobs[0]


def test_a_run_that_fails_by_itself_says_nothing_about_its_worker():
    jobs = [job(str(number)) for number in range(2 * MOST_FAULTS)]
    queue = queue_of(1, jobs)
    for number in range(MOST_FAULTS):
        queue.take(0)
        assert queue.fault(0).retired == (number == MOST_FAULTS - 1)
        if queue.has_workers:
            queue.take(0)
            queue.end(0, failed=True)


def test_no_more_processes_start_than_there_are_runs():
    queue = queue_of(4, [job(), job()])
    for number in range(2):
        assert queue.may_start(number)
        queue.start(number)
    assert not queue.may_start(2)
    queue.started(0)
    queue.take(0)
    assert not queue.may_start(2)


def test_a_worker_that_never_starts_is_retired_without_a_run():
    queue = queue_of(1, [job()])
    for number in range(MOST_FAULTS):
        queue.start(0)
        assert queue.fault(0) == (None, number == MOST_FAULTS - 1)
    assert not queue.has_workers
    assert not queue.queued[0].suspect


def sharing_queue(gpus, jobs):
    queue = queue_of(len(gpus), jobs)
    for number, names in enumerate(gpus):
        queue.start(number)
        queue.started(number, names)
    return queue


def test_workers_that_share_a_gpu_whose_memory_runs_out_are_halved():
    jobs = [job(str(number)) for number in range(12)]
    queue = sharing_queue(["0"] * 5 + ["1"] * 2, jobs)
    for number in (0, 1, 2, 5, 6):
        queue.take(number)
    assert queue.fault(1, gpu_memory=True) == (jobs[1], True)
    assert (jobs[1].state, jobs[1].suspect) == (RunState.QUEUED, False)
    assert queue.queued[-1] is jobs[1]
    assert [queue.state(number) for number in range(7)] == [BUSY, RETIRED, BUSY, RETIRED, RETIRED, BUSY, BUSY]
    assert (queue.sharing(0), queue.most_sharing(0), queue.sharing(5)) == (2, 2, 2)
    queue.end(0, failed=False)
    assert queue.next_for(0) is not None  # the rest goes on


def test_workers_that_are_to_be_retired_end_their_runs_and_halve_nothing():
    jobs = [job(str(number)) for number in range(12)]
    queue = sharing_queue(["0"] * 8, jobs)
    for number in range(8):
        queue.take(number)
    assert queue.fault(0, gpu_memory=True).retired
    assert (queue.sharing(1), queue.most_sharing(1)) == (7, 4)
    assert queue.fault(1, gpu_memory=True).retired
    assert (queue.sharing(2), queue.most_sharing(2)) == (6, 4)
    queue.end(2, failed=False)
    queue.end(3, failed=True)
    assert queue.state(2) == queue.state(3) == RETIRED
    queue.end(4, failed=False)
    assert queue.state(4) == IDLE
    assert (queue.sharing(4), queue.most_sharing(4)) == (4, 4)


def test_a_run_that_needs_more_than_a_whole_gpu_fails_in_the_end():
    jobs = [job(str(number)) for number in range(9)]
    queue = sharing_queue(["0"] * 4, jobs)
    busy = {}
    while True:
        for number in range(4):
            if queue.next_for(number) is not None:
                busy[number] = queue.take(number)
        if not busy:
            break
        number, done = busy.popitem()
        if done is jobs[3]:
            queue.fault(number, gpu_memory=True)
        else:
            queue.end(number, failed=False)
    assert [each.state == RunState.DONE for each in jobs] == [number != 3 for number in range(9)]
    assert jobs[3].state == RunState.FAILED
    assert queue.has_workers


def test_a_worker_with_a_gpu_of_its_own_has_an_ordinary_fault():
    queue = sharing_queue(["0", "1"], [job(), job()])
    taken = queue.take(0)
    assert queue.fault(0, gpu_memory=True) == (taken, False)
    assert taken.suspect


@hypothesis.given(
    workers=st.integers(1, 4),
    runs=st.integers(1, 30),
    broken=st.sets(st.integers(1, 3)),
    bad=st.sets(st.integers(0, 29), max_size=MOST_FAULTS - 1),
    random=st.randoms(use_true_random=False),
)
def test_one_good_worker_does_all_good_runs(workers, runs, broken, bad, random):
    jobs = [job(random.choice("abc")) for _ in range(runs)]
    simulate(workers, jobs, Faults(broken, bad), order=random.randrange)
    for number, each in enumerate(jobs):
        if number in bad:  # the last run stays queued if there was no other to compare it with
            assert each.state in (RunState.FAILED, RunState.QUEUED)
        else:
            assert each.state == RunState.DONE


class AnyOrder(RuleBasedStateMachine):
    """Any events in any order: no run is with two workers or ends twice, and workers change as they may."""

    workers = 3

    def __init__(self):
        super().__init__()
        self.queue = RunQueue(self.workers)
        self.jobs, self.with_worker, self.ends = [], {}, {}
        self.faults = [0] * self.workers

    @rule(beginning=st.sampled_from("ab"))
    def add(self, beginning):
        self.jobs.append(job(beginning))
        self.queue.add(self.jobs[-1])

    def in_state(self, state):
        return [number for number in range(self.workers) if self.queue.state(number) == state]

    def choose(self, data, state):
        return data.draw(st.sampled_from(self.in_state(state)))

    @precondition(lambda self: any(self.queue.may_start(number) for number in range(self.workers)))
    @rule(data=st.data())
    def start(self, data):
        self.queue.start(data.draw(st.sampled_from([n for n in range(self.workers) if self.queue.may_start(n)])))

    @precondition(lambda self: self.in_state(STARTING))
    @rule(data=st.data(), gpus=st.sampled_from(["", "0", "1"]))
    def started(self, data, gpus):
        self.queue.started(self.choose(data, STARTING), gpus)

    @precondition(lambda self: any(self.queue.next_for(number) for number in range(self.workers)))
    @rule(data=st.data())
    def take(self, data):
        number = data.draw(st.sampled_from([n for n in range(self.workers) if self.queue.next_for(n)]))
        announced = self.queue.next_for(number)
        taken = self.queue.take(number)
        assert taken is announced
        assert taken not in self.with_worker.values()
        assert not taken.suspect or not self.with_worker
        self.with_worker[number] = taken

    @precondition(lambda self: self.in_state(BUSY))
    @rule(data=st.data(), failed=st.booleans())
    def end(self, data, failed):
        number = self.choose(data, BUSY)
        ended = self.with_worker.pop(number)
        self.queue.end(number, failed)
        assert ended.state == (RunState.FAILED if failed else RunState.DONE)
        self.note_end(ended)
        if not failed:
            self.faults[number] = 0

    @precondition(lambda self: self.in_state(BUSY) + self.in_state(STARTING))
    @precondition(lambda self: self.in_state(BUSY))
    @rule(data=st.data())
    def gpu_memory(self, data):
        number = data.draw(st.sampled_from(self.in_state(BUSY)))
        sharing = self.queue.sharing(number)
        if sharing > 1:
            most = self.queue.most_sharing(number)
            met_in, retired = self.queue.fault(number, gpu_memory=True)
            assert met_in is self.with_worker.pop(number)
            assert met_in.state == RunState.QUEUED
            assert self.queue.most_sharing(number) == (most if most < sharing else sharing // 2)
            assert retired or self.queue.sharing(number) < sharing

    @precondition(lambda self: self.in_state(BUSY) + self.in_state(STARTING))
    @rule(data=st.data(), from_outside=st.booleans())
    def fault(self, data, from_outside):
        number = data.draw(st.sampled_from(self.in_state(BUSY) + self.in_state(STARTING)))
        was_suspect = number in self.with_worker and self.with_worker[number].suspect
        met_in, retired = self.queue.fault(number, from_outside)
        assert met_in is self.with_worker.pop(number, None)
        if met_in is not None and met_in.state == RunState.FAILED:
            assert was_suspect
            assert not from_outside
            assert self.faults[number] == 0
            self.note_end(met_in)
        else:
            self.faults[number] += 1
        assert retired == (self.queue.state(number) == RETIRED)
        assert retired or self.faults[number] < MOST_FAULTS

    def note_end(self, ended):
        assert ended not in self.ends
        self.ends[ended] = ended.state

    @invariant()
    def each_run_is_in_one_place(self):
        assert sorted(self.in_state(BUSY)) == sorted(self.with_worker)
        for each in self.jobs:
            places = [each in self.queue.queued, each in self.with_worker.values(), each in self.ends]
            assert places.count(True) == 1
            assert each.state == (RunState.QUEUED, RunState.RUNNING, self.ends.get(each))[places.index(True)]

    @invariant()
    def somebody_can_go_on(self):
        """Unless no worker is left, a run is waited for or can be taken."""
        if self.queue.queued and self.queue.has_workers:
            takers = [number for number in range(self.workers) if self.queue.next_for(number)]
            assert takers or self.in_state(BUSY) or self.in_state(STARTING)

    def teardown(self):
        """From any state on, working workers end all runs that are left."""
        while self.queue.has_workers and (self.queue.queued or self.with_worker or self.in_state(STARTING)):
            for number in range(self.workers):
                if self.queue.state(number) == STARTING:
                    self.queue.started(number)
                elif self.queue.state(number) == BUSY:
                    self.with_worker.pop(number)
                    self.queue.end(number, failed=False)
                elif self.queue.next_for(number):
                    self.with_worker[number] = self.queue.take(number)
        assert all(each.state in ENDED for each in self.jobs) or not self.queue.has_workers


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis.settings(max_examples=100, stateful_step_count=40, deadline=None)
