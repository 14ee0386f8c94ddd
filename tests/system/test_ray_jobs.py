"""Trainers on a real Ray of one machine: the launchers' contract, and jobs of the service.

Run by the Python of .venv-ray, which holds Ray and ours.
"""

import itertools

import pytest

from launch.folder import Lease, Outcome, ask_to_stop
from launch.launchers import ray as launcher_of_ray
from launch.launchers.contract import Liveness, Unreachable
from launch.launchers.ray import Ray
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
    test_contract_another_process_recovers_it,
    test_contract_cancel_ends_all_of_it,
    test_contract_it_lives_until_it_ends,
    test_contract_several_processes_pause_and_end_as_one,
    test_contract_what_cannot_be_known_is_unknown,
    wait,
)
from tests.system.ray import ray

pytestmark = pytest.mark.system
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with ray() as cluster:
        yield cluster


@pytest.fixture
def launcher(cluster, monkeypatch):
    """Recovered in another process it would have the same address."""
    monkeypatch.setattr(launcher_of_ray, "ADDRESS", cluster.address)
    return Ray()


@pytest.fixture
def run_folder(tmp_path):
    """Ray takes no name twice."""
    folder = tmp_path / f"ftjob-{next(NUMBERS)}"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def words(cluster):
    return lambda: ["--launcher", "ray", "--ray", f"address={cluster.address}"]


def test_a_job_is_really_rays(served, cluster):  # noqa: F811
    made = served.create(steps=30)
    served.steps(made.id, 1)
    from ray.job_submission import JobSubmissionClient

    found = JobSubmissionClient(cluster.address).get_job_info(f"diffdoctor-{made.id}-1")
    assert found.status == "RUNNING"
    assert found.metadata["diffdoctor_job"] == made.id
    assert found.metadata["diffdoctor_attempt"] == "1"
    assert served.ends(made.id).status == "succeeded"


def test_one_that_waits_can_be_cancelled(launcher, run_folder, cluster):
    prepare(run_folder)
    greedy = Ray({"address": cluster.address, "num_cpus": "64"})  # more than there are
    handle = greedy.submit(run_folder, 1)
    assert greedy.poll(run_folder, 1, handle) is Liveness.ALIVE
    assert launcher.recover(run_folder, 1) == handle
    ask_to_stop(run_folder, 1, "cancel")
    greedy.cancel(run_folder, 1, handle)
    assert greedy.poll(run_folder, 1, handle) is Liveness.DEAD
    assert Lease.read(run_folder) is None


def test_what_is_there_already_was_taken_and_what_ray_forgot_has_ended(
    launcher, run_folder, cluster
):
    from ray.job_submission import JobSubmissionClient

    prepare(run_folder, steps=1)
    handle = launcher.submit(run_folder, 1)
    assert launcher.submit(run_folder, 1) == handle  # as if the first answer had been lost
    wait(lambda: launcher.poll(run_folder, 1, handle) is Liveness.DEAD)
    assert Outcome.read(run_folder, 1).code == 0
    JobSubmissionClient(cluster.address).delete_job(handle)
    assert launcher.recover(run_folder, 1) is None
    assert launcher.poll(run_folder, 1, handle) is Liveness.DEAD


def test_no_secret_of_the_service_reaches_the_cluster(launcher, run_folder, monkeypatch):
    monkeypatch.setenv("DIFFDOCTOR_TOKEN", "sesame")
    monkeypatch.setenv("PGPASSWORD", "sesame")
    prepare(run_folder, steps=100)
    handle = launcher.submit(run_folder, 1)
    lease = wait(lambda: Lease.read(run_folder))
    with open(f"/proc/{lease.pid}/environ", "rb") as stream:
        environment = stream.read()
    assert b"sesame" not in environment and b"RAY_" in environment  # control
    launcher.cancel(run_folder, 1, handle)


def test_a_head_that_is_away_is_unknown(launcher, run_folder, cluster):
    """Last: what runs on a Ray ends with it."""
    prepare(run_folder, steps=2000, seconds=0.1)
    handle = launcher.submit(run_folder, 1)
    lease = wait(lambda: Lease.read(run_folder))
    assert launcher.poll(run_folder, 1, handle) is Liveness.ALIVE  # control
    cluster.stop()
    other = Ray()
    assert other.poll(run_folder, 1, handle) is Liveness.UNKNOWN
    for call in (other.recover, other.submit):
        with pytest.raises(Unreachable):
            call(run_folder, 2)
    wait(lambda: not lives(lease.pid))
