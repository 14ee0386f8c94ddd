"""Trainers on a real SLURM of one machine: the launchers' contract, and jobs of the service."""

import time

import pytest

from core.errors import UserError
from launch.folder import Lease, Outcome
from launch.launchers.slurm import Liveness, Slurm, Unreachable
from tests.launch.test_service import (  # noqa: F401
    alone,
    jobs,
    served,
    test_a_failure_says_why,
    test_a_trainer_that_died_without_a_server_is_started_again,
    test_cancel_is_at_once_and_for_good,
    test_killed_and_started_again_it_adopts_the_trainer,
    test_pause_and_resume_is_the_same_job,
    test_the_public_client_uploads_creates_lists_and_downloads,
)
from tests.launch.test_trainer import (  # noqa: F401
    lives,
    prepare,
    run_folder,
    test_contract_another_process_recovers_it,
    test_contract_cancel_ends_all_of_it,
    test_contract_it_lives_until_it_ends,
    test_contract_several_processes_pause_and_end_as_one,
    test_contract_what_cannot_be_known_is_unknown,
    wait,
)
from tests.system.slurm import slurm, told

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with slurm() as cluster:
        yield cluster


@pytest.fixture
def launcher():
    return Slurm()


@pytest.fixture(scope="module")
def words():
    return lambda: ["--launcher", "slurm", "--slurm", "partition=all", "time=10"]


def test_a_job_is_really_slurms(served):  # noqa: F811
    made = served.create(steps=30)
    served.steps(made.id, 1)
    assert f"diffdoctor-{made.id}-1|RUNNING" in told("squeue", "--noheader", "--format=%j|%T")
    assert served.ends(made.id).status == "succeeded"


def test_a_controller_that_is_away_is_unknown_and_ends_nothing(cluster, run_folder):  # noqa: F811
    prepare(run_folder, steps=1200, seconds=0.1)
    launcher = Slurm()
    handle = launcher.submit(run_folder, 1)
    lease = wait(lambda: Lease.read(run_folder))
    cluster.stop("slurmctld")
    try:
        other = Slurm()
        assert other.poll(run_folder, 1, handle) is Liveness.UNKNOWN
        for call in (other.recover, other.submit):
            with pytest.raises(Unreachable):
                call(run_folder, 2)
        assert lives(lease.pid)
    finally:
        cluster.controller()
    wait(lambda: Slurm().poll(run_folder, 1, handle) is Liveness.ALIVE)  # control
    assert lives(lease.pid)
    launcher.cancel(run_folder, 1, handle)
    assert not lives(lease.pid)


def test_one_that_waits_is_alive_and_can_be_cancelled(run_folder):  # noqa: F811
    prepare(run_folder)
    launcher = Slurm({"time": "10", "comment": "two words", "mem": "1M"})
    told("scontrol", "update", "PartitionName=all", "State=DOWN")
    try:
        handle = launcher.submit(run_folder, 1)
        assert launcher.poll(run_folder, 1, handle) is Liveness.ALIVE
        assert Lease.read(run_folder) is None
        launcher.cancel(run_folder, 1, handle)
        assert launcher.poll(run_folder, 1, handle) is Liveness.DEAD
    finally:
        told("scontrol", "update", "PartitionName=all", "State=UP")
    time.sleep(2)
    assert Lease.read(run_folder) is None


def test_when_its_time_is_nearly_up_it_saves(run_folder):  # noqa: F811
    prepare(run_folder, steps=400, seconds=0.1)
    launcher = Slurm({"time": "2"})  # of which NOTICE leaves nothing
    launcher.submit(run_folder, 1)
    outcome = wait(lambda: Outcome.read(run_folder, 1), 60)
    assert outcome.stopped


def test_no_secret_of_the_service_reaches_the_cluster(run_folder, monkeypatch):  # noqa: F811
    monkeypatch.setenv("DIFFDOCTOR_TOKEN", "sesame")
    monkeypatch.setenv("PGPASSWORD", "sesame")
    monkeypatch.setenv("HARMLESS", "a,b")  # control
    prepare(run_folder, steps=100)
    launcher = Slurm()
    handle = launcher.submit(run_folder, 1)
    lease = wait(lambda: Lease.read(run_folder))
    with open(f"/proc/{lease.pid}/environ", "rb") as stream:
        environment = stream.read()
    assert b"sesame" not in environment and b"HARMLESS=a,b" in environment
    launcher.cancel(run_folder, 1, handle)


def test_an_option_that_slurm_has_not_is_one_sentence(run_folder):  # noqa: F811
    prepare(run_folder)
    for options in ({"partition": "none"}, {"nonsense": "1"}):
        with pytest.raises(UserError, match="SLURM took no job") as error:
            Slurm(options).submit(run_folder, 1)
        assert "\n" not in str(error.value)
