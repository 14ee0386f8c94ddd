"""Hostile text in every word that a request may say: in no command, no script, no line of either.

Commands are really run: a shell script in Python's place writes down the words that it is given,
and one in `sbatch`'s place runs the batch script that it is given.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from core.config import load_config
from launch.commands import token_create
from launch.folder import Job
from launch.launchers.local import Local
from launch.launchers.slurm import Slurm
from launch.methods import METHODS, Method
from launch.service.states import Event, State
from launch.trainer import Trainer
from tests.launch.house import Answers, bearer, house
from tests.launch.served import until
from tests.launch.test_requests import sent
from tests.launch.toy import METHOD, Config

RUNS = (
    "$(touch {s})", "`touch {s}`", "; touch {s};", "| touch {s}", "&& touch {s}", "\ntouch {s}\n",
    "\r\ntouch {s}\r\n", "' ; touch {s} #", '" ; touch {s} #', "$'\\n'touch {s}", ">({s})",
    "\n#SBATCH --wrap='touch {s}'\n", "\n#!/bin/sh\ntouch {s}\n", "\nEOF\ntouch {s}\n",
    '!!python/object/apply:os.system ["touch {s}"]', "!!python/object/new:os.system [touch {s}]",
    "{{{{ cycler.__init__.__globals__.os.system('touch {s}') }}}}", "<(touch {s})",
    "__import__('os').system('touch {s}')", "${{IFS}}touch${{IFS}}{s}", "() {{ :; }}; touch {s}",
    "\n- !!python/name:os.system\n", "--wrap=touch {s}",
)  # fmt: skip
ODD = (
    "", " ", "\t", "\n", "\r", "\0", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff",
    "\ufffe", "\ud800", "\udcff", "\U0001f600", "\xe9", "e\u0301", "\xdf", "'", '"', "\\", "\\n",
    "$", "%j", "%%", "{0.__class__}", "{folder}", "{out}", "%(message)s", "-", "--", "-c", "~",
    "--config=/etc/passwd", "~root", "*", "?", "[a]", "/", "../..", "@/etc/passwd", "#", ": ",
    "- ", "&a", "*a", "!", "null", "yes", "1e3", "0x10", "2001-01-01", "=", ",", "|", "<b>",
    "&amp;", "]]>", "a" * 300, "export=ALL", "LD_PRELOAD=/x.so", "---\n", "...\n", "? ",
    "%TAG ! x\n", "\\u0000",
)  # fmt: skip


def hostile(draw, sentinel):
    """A word of one to four pieces, at least one of which would run in some shell or reader."""
    pieces = draw.choices(ODD, k=draw.randint(0, 3)) + [draw.choice(RUNS).format(s=sentinel)]
    draw.shuffle(pieces)
    return json.loads(json.dumps("".join(pieces)))  # two halves of a character are one in JSON


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A service with the toy, a folder of stand-ins on PATH, and the sentinel's name."""
    stand_ins, said = tmp_path / "bin", tmp_path / "said"
    stand_ins.mkdir()
    scripts = {
        "python": f'printf "%s\\0" "$@" >> {said}\n',
        "srun": "exit 1\n",  # submitit wants it to be there
        "sbatch": f'cat "$1" > {tmp_path}/script\nbash "$1" && echo "Submitted batch job 7"\n',
    }
    for name, lines in scripts.items():
        (stand_ins / name).write_text(f"#!/bin/sh\n{lines}")
        (stand_ins / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_ins}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(stand_ins / "python"))
    monkeypatch.setitem(METHODS, "toy", Method(**METHOD))
    with house(tmp_path / "root") as (service, client):
        service.requests.checker = Answers()
        service.supervisor.launchers = {"local": Local(), "slurm": Slurm()}
        yield service, client, said, tmp_path / "sentinel"


def request_of(text):
    return {
        "method": {"type": "toy", "toy": {"word": text, "steps": 1}},
        "suffix": text[:64],
        "metadata": {text[:64] or "x": text[:512]},
    }


def told(client, headers, text, turn):
    """Two of the other places where a request takes a word; nothing may break."""
    form = {"authorization": headers["authorization"]}
    name, body = quote(text, safe="", errors="replace"), {"method": {"type": "toy", "toy": {}}}
    plain = text.encode(errors="replace").decode()
    key = {**headers, "idempotency-key": plain.encode()}
    places = (
        lambda: client.get(f"/v1/methods/{name}/schema", headers=headers),
        lambda: client.get(f"/v1/files/{name}", headers=headers),
        lambda: client.get(f"{JOBS}/{name}/events?after={name}", headers=headers),
        lambda: client.get(f"{JOBS}?after={name}", headers=headers),
        lambda: posted(client, headers, {"method": {"type": text, text: {}}}),
        lambda: posted(client, headers, {"method": {"type": "toy", "toy": {text: text}}}),
        lambda: posted(client, headers, {**body, "model": text[:256]}),
        lambda: posted(client, headers, {**body, "training_file": text[:256]}),
        lambda: posted(client, headers, {**body, text: text}),
        lambda: posted(client, key, body) if set(plain.encode()) <= PRINTED else None,
        lambda: sent(client, form, f"{plain}.txt", plain.encode()),
        lambda: sent(client, form, purpose=plain),
    )
    asked = [places[(2 * turn + i) % len(places)]() for i in range(2)]
    return {one.status_code for one in asked if one is not None}


def posted(client, headers, body):
    return client.post(JOBS, content=json.dumps(body), headers=headers)


def commands(service, said, job_id, launcher, attempt):
    """The words that launcher and trainer run for a job, and the SLURM script."""
    said.unlink(missing_ok=True)
    service.supervisor.launcher = launcher
    service.supervisor.start(job_id, attempt)
    folder = service.supervisor.folder(job_id)
    until(said.is_file, 20)
    job = Job.read(folder)
    Trainer(folder, attempt).run_program(job, job.programs[0])
    words = said.read_text().replace(str(folder), "FOLDER").split("\0")
    return words, job.programs[0].settings


PRINTED = set(range(33, 127))
JOBS = "/v1/fine_tuning/jobs"
EXPECTED = ["-P", "-m", "launch.trainer", "FOLDER", "1", "-P", "-m", "tests.launch.toy",
            "--config", "FOLDER/.settings.yaml", ""]  # fmt: skip


@pytest.mark.parametrize("number", [15, pytest.param(2000, marks=pytest.mark.trial)])
def test_no_word_of_a_request_is_run(world, tmp_path, number):
    service, client, said, sentinel = world
    drawn = int.from_bytes(os.urandom(4))
    print(f"seed {drawn}")
    draw = random.Random(drawn)
    headers = {**bearer(service), "content-type": "application/json"}
    ran, statuses, scripts = 0, set(), set()
    for turn in range(number):
        text = hostile(draw, sentinel)
        statuses |= told(client, headers, text, turn)
        answer = posted(client, headers, request_of(text))
        statuses.add(answer.status_code)
        if answer.status_code == 200:
            launcher = ("local", "slurm")[turn % 2]
            job_id = answer.json()["id"]
            service.supervisor.check(job_id)
            words, settings = commands(service, said, job_id, launcher, 1)
            assert words == EXPECTED, ascii(text)
            assert round_trips(service, client, headers, job_id, settings, text), ascii(text)
            if launcher == "slurm":
                script = (tmp_path / "script").read_text().replace(job_id, "ID")
                scripts.add(script.replace(str(service.root), "ROOT"))
            end(service, job_id)
            ran += 1
        assert not sentinel.exists(), ascii(text)
    assert statuses <= {200, 400, 401, 404, 405}, statuses
    assert ran > number * 0.7
    without_names = {"\n".join(s for s in one.splitlines() if ".slurm" not in s) for one in scripts}
    assert len(without_names) == 1, "a script differs from another"


def round_trips(service, client, headers, job_id, settings, text):
    """What was said is what is stored, shown, written for the trainer and read by the program."""
    folder = service.supervisor.folder(job_id)
    shown = client.get(f"{JOBS}/{job_id}", headers=headers).json()
    asked = request_of(text)
    return (
        settings["word"]
        == yaml.safe_load((folder / ".settings.yaml").read_text())["word"]
        == load_config(Config, folder / ".settings.yaml").word
        == shown["method"]["toy"]["word"]
        == shown["hyperparameters"]["word"]
        == text
        and shown["user_provided_suffix"] == asked["suffix"]
        and shown["metadata"] == asked["metadata"]
    )


def end(service, job_id):
    """Give its slot free: nothing runs."""
    service.jobs.change(job_id, Event.CANCEL)
    service.jobs.change(job_id, Event.STOPPED, 1, ended={})
    assert service.jobs.job(job_id)["state"] == State.CANCELLED


def test_control_text_in_a_script_is_run(tmp_path):
    """The same words where a template would have put them: in most places they would have run."""
    sentinel, ran = tmp_path / "sentinel", 0
    for piece in RUNS:
        text = piece.format(s=sentinel)
        script = tmp_path / "script"
        script.write_text(f"#!/bin/sh\n#SBATCH --job-name={text}\necho {text}\n")
        subprocess.run(["bash", script], capture_output=True)
        ran += sentinel.exists()
        sentinel.unlink(missing_ok=True)
    assert ran >= 10


def test_control_a_reader_that_is_not_safe_runs_it(tmp_path):
    sentinel = tmp_path / "sentinel"
    text = f'!!python/object/apply:os.system ["touch {sentinel}"]'
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(f"word: {text}")
    yaml.unsafe_load(f"word: {text}")
    assert sentinel.exists()


OWNERS = ["ada; id", "$(id)", "a\nb", "../a", "", "-a", "a" * 65, "é", "a b"]


@pytest.mark.parametrize("owner", OWNERS)
def test_an_owner_is_a_plain_name(owner, tmp_path):
    with pytest.raises(ValueError):
        token_create.Config(root=tmp_path, owner=owner)
    assert token_create.Config(root=Path(tmp_path), owner="ada@lab.example").owner  # control
