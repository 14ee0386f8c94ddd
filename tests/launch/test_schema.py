"""The service against its own OpenAPI, by schemathesis: all checks, requests in sequence too."""

import json
import os
import re
import subprocess
import sys

import pytest

from launch.commands.of_root import OfRoot
from tests.launch.served import Served
from tests.launch.test_kills import end_all

JOBS = "/v1/fine_tuning/jobs"
RUNS = [{"type": "toy", "toy": {"steps": 1, "seconds": 0}},
        {"type": "toy", "toy": {"steps": 40, "seconds": 0.1}},
        {"type": "toy", "toy": {"fault": "error"}}]  # fmt: skip
LEFT_OUT = "positive_data_acceptance"
"""What the schema allows may still name a file that is not there: 400 is right."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    base = tmp_path_factory.mktemp("schema")
    token = OfRoot(root=base / "root").tokens(new=True).create("ada", ("read", "write"), 1)[1]
    served = Served(base, "--models", f"thing={base}", token=token)
    served.http.headers["authorization"] = f"Bearer {token}"
    served.http.post(JOBS, json={"method": RUNS[0], "dry_run": True})  # its checker is started
    yield served
    served.kill()
    end_all(served)


def narrowed(spec):
    """The same, with jobs that really run and are then asked for: what is drawn is seldom one."""
    body = spec["components"]["schemas"]["CreateJob"]["properties"]
    for name in ("model", "training_file", "validation_file", "hyperparameters", "dry_run"):
        del body[name]
    body["method"] = {"enum": RUNS}
    links = {}
    for path, operations in spec["paths"].items():
        for verb, one in operations.items():
            if "{job_id}" in path:
                value = {"job_id": "$response.body#/id"}
                links[f"{verb}{len(links)}"] = {
                    "operationId": one["operationId"],
                    "parameters": value,
                }
    spec["paths"][JOBS]["post"]["responses"]["200"]["links"] = links
    return spec


def examined(served, spec, folder, phases, number):
    """Exit code and report of schemathesis."""
    (folder / "openapi.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(folder / "openapi.json")]
    command += ["--url", f"http://127.0.0.1:{served.port}", "--phases", phases, "--no-color"]
    command += ["--header", f"Authorization: Bearer {served.token}", "--checks", "all"]
    command += ["--exclude-checks", LEFT_OUT, "--max-examples", str(number)]
    command += ["--request-timeout", "60"]
    environment = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "examples")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


COUNTS = [pytest.param(1, id="1"), pytest.param(300, id="300", marks=pytest.mark.trial)]


@pytest.mark.parametrize("number", COUNTS)
def test_every_operation_answers_as_it_is_described(served, tmp_path, number):
    spec = served.http.get("/openapi.json").json()
    phases = "fuzzing" if number == 1 else "coverage,fuzzing"
    code, report = examined(served, spec, tmp_path, phases, number)
    print(report[-3000:])
    assert code == 0, report
    operations = sum(map(len, spec["paths"].values()))
    assert re.search(rf"Tested: +{operations}\b", report)


@pytest.mark.parametrize("number", COUNTS)
def test_sequences_of_requests_are_answered_as_described(served, tmp_path, number):
    spec = narrowed(served.http.get("/openapi.json").json())
    code, report = examined(served, spec, tmp_path, "stateful", number)
    print(report[-3000:])
    assert code == 0, report
    assert number == 1 or not re.search(r"API Links: +0 covered", report)


def test_control_an_answer_that_is_not_described_is_seen(served, tmp_path):
    spec = served.http.get("/openapi.json").json()
    shape = spec["components"]["schemas"]["Files"]
    shape["properties"]["object"] = {"const": "nonsense"}
    answer = {"description": "", "content": {"application/json": {}}}
    spec["paths"] = {
        "/v1/files": {"get": spec["paths"]["/v1/files"]["get"]},
        "/version": {"get": {"security": [{"token": []}], "responses": {"200": answer}}},
    }
    code, report = examined(served, spec, tmp_path, "fuzzing", 2)
    assert code == 1 and "Response violates schema" in report
    assert "API accepts requests without authentication" in report
