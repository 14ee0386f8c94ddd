"""What an operator sees: figures for Prometheus, and logs that hold no secret."""

import json
import logging
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from launch.service import logs
from launch.service.logs import Json, Text, hide
from launch.service.states import Event
from launch.service.tokens import PREFIX
from tests.launch.house import NAMES, bearer, house
from tests.launch.test_store import job as row_of


@pytest.fixture
def made(tmp_path):
    with house(tmp_path / "root") as found:
        yield found


def figures(text):
    return {
        (one.name, *sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_figures_are_those_of_the_table(made):
    service, client = made
    headers = bearer(service)
    for _ in range(3):
        job_id = service.jobs.create_job(row_of("bob"))[0]["id"]
    service.jobs.change(job_id, Event.VALIDATED)
    service.jobs.begin(job_id, 1, 1, "local")
    answer = client.get("/metrics", headers=headers)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = figures(answer.text)
    assert found[("diffdoctor_jobs", ("status", "validating_files"))] == 2
    assert found[("diffdoctor_jobs", ("status", "running"))] == 1
    assert found[("diffdoctor_jobs", ("status", "failed"))] == 0
    assert found[("diffdoctor_slots",)] == found[("diffdoctor_slots_used",)] == 1
    assert found[("process_resident_memory_bytes",)] > 1e6
    assert "bob" not in answer.text and job_id not in answer.text


def test_requests_are_counted_by_their_route_and_not_by_their_path(made):
    service, client = made
    headers = bearer(service)
    for i in range(50):
        client.get(f"/v1/files/file-{i}", headers=headers)
        client.get(f"/nowhere/{i}", headers=headers)
    client.get("/v1/files")
    client.request("BREW", "/health")
    text = client.get("/metrics", headers=headers).text
    found = figures(text)

    def count(method, route, status):
        labels = ("method", method), ("route", route), ("status", status)
        return found[("diffdoctor_requests_total", *labels)]

    assert count("GET", "/v1/files/{file_id}", "404") == 50
    assert count("GET", "none", "404") == 50 and count("GET", "/v1/files", "401") == 1
    assert "file-7" not in text and "nowhere" not in text and "BREW" not in text
    assert len(text.splitlines()) < 200


def test_figures_need_a_token(made):
    service, client = made
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=bearer(service, scopes=("write",))).status_code == 403
    assert client.get("/metrics", headers=bearer(service)).status_code == 200  # control


# Logs

TOKEN = PREFIX + "a1B2" * 11
SAID = [
    (f"Authorization: Bearer {TOKEN}", TOKEN),
    (f"token {TOKEN} is odd", TOKEN),
    ("cannot connect to postgresql+psycopg://ada:s3same@host/name", "s3same"),
    ("connection failed: password=s3same host=x", "s3same"),
    ('{"api_key": "s3same"}', "s3same"),
    ("authorization: Basic czNzYW1l", "czNzYW1l"),
]


def record(message, fault=None, **fields):
    made = logging.LogRecord("diffdoctor.x", 30, "x.py", 1, message, (), fault)
    made.fields = fields
    return made


@pytest.mark.parametrize(("message", "secret"), SAID)
def test_no_line_holds_a_secret(message, secret):
    assert secret in logging.Formatter().format(record(message))  # control
    try:
        raise ValueError(message)
    except ValueError as error:
        fault = type(error), error, error.__traceback__
    for formatter in (Text(logs.PLAIN), Json()):
        for one in (record(message), record("x", fault), record("x", url=message)):
            line = formatter.format(one)
            assert secret not in line and "s3same" not in line
            assert one.exc_info is None or "ValueError" in line


def test_what_is_no_secret_stays():
    said = "GET http://127.0.0.1:8765/v1/files of dd_short by ada@host: 3 passed"
    assert hide(said) == said


def test_a_line_of_json_is_one_line_whatever_is_in_it(capsys):
    root = logging.getLogger()
    before = root.handlers[:], logs.requests.level
    try:
        logs.set_up("json")
        logging.getLogger("diffdoctor.service").error("two\nlines %s", '"quoted"')
        logs.answered("GET", "/v1/files", 200, 0.0123)
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        logs.set_up("text")
        logs.answered("GET", "/v1/files", 200, 0.0123)
        assert capsys.readouterr().err == ""
    finally:
        root.handlers[:], _ = before
        logs.requests.setLevel(before[1])
    assert [line["message"] for line in lines] == ['two\nlines "quoted"', "answered"]
    assert lines[0]["level"] == "error" and lines[0]["time"].endswith("+00:00")
    assert (lines[1]["route"], lines[1]["status"], lines[1]["ms"]) == ("/v1/files", 200, 12.3)


def test_libraries_speak_in_our_log(tmp_path):
    """A fault that the server and the queue meet themselves: in JSON, without its secret."""
    script = f"""
import logging, sys
from launch.service import logs, serving
from launch.service.dispatch import Dispatcher
logs.set_up("json")
queue = Dispatcher("sqlite:///{tmp_path}/jobs.sqlite", print)
queue.start()
serving.uvicorn.Config(None, **serving.QUIET)
for name in ("dbos", "uvicorn.error"):
    logging.getLogger(name).error("cannot reach postgresql://ada:s3same@host")
    logging.getLogger(name).info("chatter")
queue.stop()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["dbos", "uvicorn.error"]
    assert "s3same" not in done.stderr + done.stdout and "host" in done.stderr


def test_requests_reach_the_log_without_their_words(tmp_path, caplog):
    with house(tmp_path / "root", open_to=NAMES) as (_, client), caplog.at_level(logging.INFO):
        client.get("/v1/files/file-sesame?after=sesame", headers={"x-more": "sesame"})
    lines = [Json().format(one) for one in caplog.records if one.name == "diffdoctor.requests"]
    assert len(lines) == 1 and "sesame" not in lines[0]
    assert json.loads(lines[0])["route"] == "/v1/files/{file_id}"


def test_a_service_holds_as_many_connections_as_it_may():
    program = """
import resource
from launch.service.serving import hold_many
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
hold_many()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
