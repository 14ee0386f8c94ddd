"""The state machine against a model of a job, its trainers and the people who ask for things."""

import os

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from launch.service.states import (
    FINAL,
    LIMIT,
    REPORTS,
    Event,
    Refused,
    Stale,
    Standing,
    State,
    after,
)

EDGES = {
    State.VALIDATING: {State.QUEUED, State.FAILED, State.CANCELLED},
    State.QUEUED: {State.RUNNING, State.PAUSED, State.CANCELLED},
    State.RUNNING: {State.QUEUED, State.PAUSED, *FINAL},
    State.PAUSED: {State.QUEUED, State.CANCELLED},
}
HAPPENINGS = st.lists(
    st.tuples(st.sampled_from(list(Event)), st.integers(min_value=-2, max_value=1)), max_size=40
)


class World:
    """What must hold whatever happens, kept in its own words."""

    def __init__(self):
        self.job = Standing()
        self.trainers = set()  # attempts that have begun and not ended
        self.cancelled = False
        self.ended = None

    def happens(self, event, back, step=after):
        attempt = self.job.attempt + back if event in REPORTS else None
        before = self.job
        try:
            now = step(before, event, attempt)
        except Refused:
            assert event is not Event.CANCEL or before.state in FINAL, "a cancel was lost"
            return
        self.check(before, now, event, attempt)
        self.job = now

    def check(self, before, now, event, attempt):
        if self.ended is not None:
            assert now.state is self.ended, "a final state moved"
        elif now.state is not before.state:
            assert now.state in EDGES[before.state], f"{before.state} to {now.state} by {event}"
        assert now.attempt in (before.attempt, before.attempt + 1)
        assert not now.pausing or now.state is State.RUNNING
        assert 0 <= now.silent <= LIMIT
        if event in REPORTS:
            assert attempt == before.attempt, "a former attempt was heard"
        if event is Event.BEGUN:
            assert attempt not in self.trainers, "an attempt began twice"
            self.trainers = {attempt}
        if before.state is State.RUNNING and now.state is not State.RUNNING:
            self.trainers = set()
        assert len(self.trainers) <= 1
        if event is Event.CANCEL:
            self.cancelled = True
        assert not self.cancelled or now.state is State.CANCELLED, "a cancel was lost"
        self.ended = now.state if now.state in FINAL else None


def run(happenings, step=after):
    world = World()
    for event, back in happenings:
        world.happens(event, back, step)


@pytest.mark.parametrize("number", [300, pytest.param(20_000, marks=pytest.mark.trial)])
def test_any_sequence_keeps_the_promises(number):
    drawn = int.from_bytes(os.urandom(4))
    print(f"seed {drawn}")
    seen = set()

    @seed(drawn)
    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))
    @given(HAPPENINGS)
    def trial(happenings):
        run(happenings)
        world = World()
        for event, back in happenings:
            world.happens(event, back)
            seen.add(world.job.state)

    trial()
    assert seen >= set(State) - {State.SUCCEEDED} or number < 1000  # the draw reaches all


def forgets_attempts(job, event, attempt=None):
    return after(job, event, job.attempt if event in REPORTS else None)


def reopens(job, event, attempt=None):
    if event is Event.RESUME and job.state in FINAL:
        return job._replace(state=State.QUEUED, attempt=job.attempt + 1)
    return after(job, event, attempt)


def loses_cancels(job, event, attempt=None):
    if event is Event.CANCEL and job.state is State.RUNNING:
        raise Refused("not now")
    return after(job, event, attempt)


RUNNING = [(Event.VALIDATED, 0), (Event.BEGUN, 0)]


@pytest.mark.parametrize(
    ("broken", "happenings", "complaint"),
    [
        (forgets_attempts, [*RUNNING, (Event.FINISHED, -1)], "former attempt"),
        (reopens, [(Event.CANCEL, 0), (Event.RESUME, 0)], "final state moved"),
        (loses_cancels, [*RUNNING, (Event.CANCEL, 0)], "cancel was lost"),
    ],
)
def test_control_the_model_sees_a_broken_machine(broken, happenings, complaint):
    run(happenings)
    with pytest.raises(AssertionError, match=complaint):
        run(happenings, broken)


def walk(*events):
    job = Standing()
    for event in events:
        job = after(job, event, job.attempt if event in REPORTS else None)
    return job


def test_pause_saves_first_and_resume_is_another_attempt():
    running = walk(Event.VALIDATED, Event.BEGUN)
    pausing = after(running, Event.PAUSE)
    assert pausing.state is State.RUNNING and pausing.pausing
    with pytest.raises(Refused, match="still saving"):
        after(pausing, Event.RESUME)
    paused = after(pausing, Event.STOPPED, 1)
    assert paused.state is State.PAUSED
    assert after(paused, Event.RESUME) == Standing(State.QUEUED, attempt=2)
    assert after(after(running, Event.PAUSE), Event.FINISHED, 1).state is State.SUCCEEDED


def test_a_trainer_that_dies_silently_is_started_again_so_often_and_no_more():
    job = walk(Event.VALIDATED)
    for attempt in range(1, LIMIT):
        job = after(after(job, Event.BEGUN, attempt), Event.VANISHED, attempt)
        assert job == Standing(State.QUEUED, attempt + 1, silent=attempt)
    job = after(job, Event.BEGUN, LIMIT)
    assert after(job, Event.VANISHED, LIMIT).state is State.FAILED
    moved = after(job, Event.ADVANCED, LIMIT)
    assert after(moved, Event.VANISHED, LIMIT) == Standing(State.QUEUED, LIMIT + 1, silent=1)


@pytest.mark.parametrize("event", [Event.PAUSE, Event.RESUME, Event.CANCEL])
def test_asked_twice_is_asked_once(event):
    for state in State:
        job = Standing(state, attempt=1)
        try:
            once = after(job, event)
        except Refused:
            continue
        assert after(once, event) == once


def test_a_report_of_an_ended_job_is_stale():
    done = walk(Event.VALIDATED, Event.BEGUN, Event.CANCEL)
    with pytest.raises(Stale):
        after(done, Event.FINISHED, 1)
    with pytest.raises(Stale):
        after(done, Event.VALIDATED)
