"""The command line against a real service: a person's path, mistakes in one sentence, no torch."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

import launch.client
from core.config import run_program
from core.errors import UserError
from launch.client import Client, Login, read_login, save_login
from launch.commands import (
    files_delete,
    files_list,
    jobs_cancel,
    jobs_create,
    jobs_download,
    jobs_list,
    jobs_logs,
    jobs_pause,
    jobs_resume,
    jobs_sample,
    jobs_save,
    jobs_show,
    jobs_watch,
    login,
    serve,
    token_create,
    token_list,
    token_revoke,
)
from tests.launch.served import Served

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """The base folder of a service, and a token of ada's for it."""
    base = tmp_path_factory.mktemp("service")
    words = ["token", "create", "--root", str(base / "root"), "--owner", "ada", "--new"]
    done = subprocess.run(
        [sys.executable, "-m", "diffdoctor.cli", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return base, done.stdout.strip()


@pytest.fixture(scope="module")
def served(token):
    served = Served(token[0], token=token[1])
    yield served
    served.stop()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("DIFFDOCTOR_URL", raising=False)
    monkeypatch.delenv("DIFFDOCTOR_TOKEN", raising=False)


@pytest.fixture
def run(served, token, capsys, monkeypatch):
    """A command in this process: its exit code and what it printed."""
    monkeypatch.setenv("DIFFDOCTOR_TOKEN", token[1])
    monkeypatch.setenv("DIFFDOCTOR_URL", f"http://127.0.0.1:{served.port}")

    def running(program, *words):
        code = 0
        try:
            run_program(program.main, program.Config, list(words), prog="diffdoctor")
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return running


def made(run, *words):
    code, said = run(jobs_create, "--method", "toy", *words)
    assert code == 0, said
    return said.split()[0]


def test_a_persons_path(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a hand\n")
    for name in ("images/a.png", "masks/a.png"):
        (tmp_path / "labels" / name).parent.mkdir(parents=True)
        (tmp_path / "labels" / name).write_bytes(b"png")
    (tmp_path / "toy.yaml").write_text(f"seconds: 0.01\ndata: ['{tmp_path}/labels']\nsteps: 9\n")
    words = ["--training-file", str(tmp_path / "prompts.txt"), "--set", "steps=4"]
    job = made(run, "--settings", str(tmp_path / "toy.yaml"), *words, "--suffix", "x")
    code, said = run(jobs_watch, job)
    assert code == 0 and "step 4" in said and "attempt 1 has finished" in said
    assert "succeeded" in said.splitlines()[-1]
    assert job in run(jobs_list)[1]
    shown = json.loads(run(jobs_show, job)[1])
    assert shown["hyperparameters"]["steps"] == 4 and len(shown["checkpoints"]) == 4
    assert shown["training_file"].startswith("file-")
    assert "goes on after step 0" in run(jobs_logs, job)[1]
    code, said = run(jobs_download, job, "--out", str(tmp_path / "result"))
    assert code == 0
    assert json.loads((tmp_path / "result/made/thing.txt").read_text()) == {"steps": 4}
    assert json.loads((tmp_path / "result/summary.json").read_text()) == {"steps": 4}


def test_pause_resume_cancel(run, served):
    job = made(run, "--set", "steps=500", "seconds=0.1")
    served.steps(job, 1)
    assert "running" in run(jobs_sample, job)[1]
    assert "running" in run(jobs_save, job)[1]
    assert "pausing" in run(jobs_pause, job)[1]
    served.ends(job, {"paused"})
    for program in (jobs_sample, jobs_save):
        assert "the job is paused" in run(program, job)[1]
    assert "queued" in run(jobs_resume, job)[1]
    assert "cancelled" in run(jobs_cancel, job)[1]
    code, said = run(jobs_watch, job)
    assert code == 1 and "cancelled" in said
    code, said = run(jobs_download, job, "--out", "nowhere")
    assert code == 2 and "was cancelled" in said


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        ("running", None, "has made nothing yet: it is running"),
        ("failed", {"message": "no room."}, "has failed (no room): see `diffdoctor jobs logs`"),
        ("cancelled", None, "was cancelled: create it anew"),
        ("succeeded", None, "has no files any more"),
    ],
)
def test_why_there_is_nothing_to_download(monkeypatch, tmp_path, status, error, said):
    client = Client("http://127.0.0.1:9")
    job = {"id": "ftjob-1", "status": status, "error": error, "result_files": []}
    monkeypatch.setattr(client, "job", lambda job_id: job)
    with pytest.raises(UserError, match=re.escape(said)):
        client.download("ftjob-1", tmp_path)


def test_a_dry_run_shows_the_plan(run):
    code, said = run(jobs_create, "--method", "toy", "--dry-run", "--set", "word=a", "base=thing")
    assert code == 2 and "no model of this service" in said
    code, said = run(jobs_create, "--method", "toy", "--dry-run", "--set", "word=a")
    assert code == 0 and json.loads(said)["hyperparameters"]["word"] == "a"


def test_files_are_listed_and_deleted(run, served, tmp_path):
    (tmp_path / "mine.txt").write_text("a hand\n")
    words = "--training-file", str(tmp_path / "mine.txt")
    job = made(run, *words, "--set", "steps=500", "seconds=0.1")
    served.steps(job, 1)
    (mine,) = (one for one in run(files_list)[1].splitlines() if one.endswith("mine.txt"))
    assert mine.startswith("file-") and " 7 " in mine and "fine-tune" in mine
    file_id = mine.split()[0]
    code, said = run(files_delete, file_id)
    assert code == 2 and f"{job} uses this file" in said
    run(jobs_cancel, job)
    assert run(files_delete, file_id) == (0, f"{file_id} is deleted\n")
    assert file_id not in run(files_list)[1]
    code, said = run(files_delete, file_id)
    assert code == 2 and "there is no file" in said
    assert run(files_delete)[0] == 2


@pytest.mark.parametrize(
    ("words", "code"), [(["--set", "steps=no"], 2), (["--dry-run"], 0), (["--set", "steps=1"], 0)]
)
def test_what_no_job_came_of_is_not_kept(run, tmp_path, words, code):
    (tmp_path / "brought.txt").write_text("a hand\n")
    before = run(files_list)[1]
    file = "--training-file", str(tmp_path / "brought.txt")
    assert run(jobs_create, "--method", "toy", *file, *words)[0] == code
    kept = "brought.txt" in run(files_list)[1].removesuffix(before)
    assert kept == ("steps=1" in words)


def test_what_a_job_may_have_come_of_is_kept(run, monkeypatch, tmp_path):
    """The answer was lost on its way."""
    client, request, asked = Client(*read_login()), httpx2.Client.request, []

    def lost(self, method, path, **options):
        asked.append((method, path))
        request(self, method, path, **options).read()
        if path.endswith("/jobs"):
            raise httpx2.ReadError("reset")

    (tmp_path / "kept.txt").write_text("a hand\n")
    upload = client.upload(tmp_path / "kept.txt")
    monkeypatch.setattr(client, "upload", lambda path: upload)
    monkeypatch.setattr(httpx2.Client, "request", lost)
    with pytest.raises(UserError, match="does not answer"):
        client.create("toy", training_file=tmp_path / "kept.txt")
    assert [method for method, _ in asked] == ["POST"]


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        (jobs_show, ["ftjob-" + "0" * 24], "there is no job"),
        (jobs_show, ["nonsense"], "pattern"),
        (jobs_watch, ["ftjob-" + "0" * 24], "there is no job"),
        (jobs_create, ["--method", "toy", "--set", "stepps=1"], "did you mean 'steps'"),
        (jobs_create, ["--method", "nonsense"], "method.type"),
        (jobs_create, ["--method", "toy", "--set", "steps"], "NAME=VALUE"),
        (jobs_create, ["--method", "toy", "--set", "word=[a"], "no valid YAML"),
        (jobs_create, ["--method", "toy", "--training-file", "p.tx"],
         "no file or folder p.tx on this machine"),
        (jobs_create, ["--method", "toy", "--set", "data=[a/b, c]"],
         "(a/b). There is no file or folder a/b on this machine"),
        (jobs_list, ["--url", "http://127.0.0.1:9"], "does not answer"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(run, program, words, said):
    code, printed = run(program, *words)
    assert code == 2 and said in printed and printed.count("\n") == 1


def test_login_keeps_what_the_service_accepts(run, served, token, tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFDOCTOR_TOKEN")
    monkeypatch.delenv("DIFFDOCTOR_URL")
    url = f"http://127.0.0.1:{served.port}"

    def typed(text):
        path = tmp_path / "typed"
        path.write_text(text)
        return path.open()

    monkeypatch.setattr("sys.stdin", typed("dd_wrong\n"))
    code, said = run(login, "--url", url)
    assert code == 2 and "valid token" in said and not launch.client.login_path().exists()
    monkeypatch.setattr("sys.stdin", typed(f"{token[1]}\n"))
    code, said = run(login, "--url", url)
    assert code == 0 and token[1] not in said
    assert stat.S_IMODE(launch.client.login_path().stat().st_mode) == 0o600
    assert run(jobs_list)[0] == 0
    # a kept token goes to no other address
    assert read_login("http://elsewhere.example") == Login("http://elsewhere.example", None)


def test_a_damaged_login_says_so():
    save_login(Login("http://x", None)).write_text("{")
    with pytest.raises(UserError, match="diffdoctor login"):
        read_login()


def test_tokens_by_the_command_line(run, served):
    root = ["--root", str(served.root)]
    code, said = run(token_create, *root, "--owner", "bob", "--scopes", "read", "--days", "1")
    text = next(line for line in said.splitlines() if line.startswith("dd_"))
    token_id = next(word for word in said.split() if word.startswith("token-"))
    client = Client(served.http.base_url.__str__(), text)
    assert client.jobs() == []
    with pytest.raises(UserError, match="may not write"):
        client.create("toy")
    listed = run(token_list, *root)[1]
    assert token_id in listed and "bob" in listed and text not in listed
    assert run(token_revoke, *root, token_id)[0] == 0
    with pytest.raises(UserError, match="valid token"):
        client.jobs()
    assert run(token_revoke, *root, token_id)[0] == 2
    assert run(token_create, *root, "--owner", "../x")[0] == 2


def test_a_service_that_names_files_elsewhere_is_not_believed(tmp_path):
    client = Client("http://127.0.0.1:9")
    with pytest.raises(UserError, match="outside"):
        client._fetch({"filename": "../../x", "id": "file-1", "sha256": ""}, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "x=/no/such"], "there is no /no/such"),
        (["--models", "x"], "NAME=FOLDER"),
        (["--models", "file-1=/tmp"], "NAME=FOLDER"),
        (["--models", "x=/tmp", "x=/tmp"], "given twice"),
        (["--devices", "0", "--slots", "2"], "as many devices"),
        (["--port", "99999"], "port"),
        (["--host", "203.0.113.1"], "cannot listen"),
    ],
)
def test_a_service_that_cannot_be(run, tmp_path, words, said):
    code, printed = run(serve, "--root", str(tmp_path / "root"), *words)
    assert code == 2 and said in printed
    assert not (tmp_path / "root").exists()


def test_no_command_of_the_client_needs_torch():
    names = [f"launch.commands.{one.stem}" for one in (ROOT / "launch/commands").glob("*.py")]
    program = f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
    program += "import launch.client\nassert 'torch' not in sys.modules\n"
    program += "assert 'sqlalchemy' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
