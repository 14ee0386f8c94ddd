"""Who is let in: every route, every kind of token, hosts and origins, sizes, and owners apart."""

import pytest
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.routing import Route as BareRoute

from launch.service import pages_routes
from launch.service.app import ROUTES, make_app
from launch.service.guard import PUBLIC, Route, add_routes, policies
from launch.service.shelf import RESULT
from launch.service.states import State
from tests.launch.house import NAMES, bearer, filled, house

SHELLS = {"/", "/new", "/jobs/{job_id}"}
"""Pages without data: what they show, their script asks of the API."""
STATIC = {one.path for one in pages_routes.static_routes()}
OPEN = {"/health", "/version", "/docs", "/openapi.json", *SHELLS, *STATIC}
JOB = {"method": {"type": "export", "export": {"run": "thing"}}, "training_file": "thing"}


@pytest.fixture
def made(tmp_path):
    with house(tmp_path / "root", models={"thing": tmp_path}) as found:
        yield found


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    base = tmp_path_factory.mktemp("kept")
    with house(base / "root", models={"thing": base}) as found:
        yield found


@pytest.mark.parametrize("path", sorted(OPEN))
def test_health_version_and_pages_without_data_are_for_anybody(kept, path):
    service, client = kept
    answer = client.get(filled(path))
    assert answer.status_code == 200 and str(service.root) not in answer.text
    if path != "/health":
        assert answer.content == client.get(filled(path), headers=bearer(service)).content


def test_nothing_else_is_public():
    assert {one.path for one in ROUTES if one.policy.scope is None} == OPEN


async def bare(request):
    return PlainTextResponse("secret")


def test_a_route_without_a_policy_is_never_served(made, tmp_path):
    service, _ = made
    with pytest.raises(TypeError):
        Route("GET", "/more", bare)  # pyright: ignore
    for extra in (BareRoute("/more", bare), Mount("/static", routes=[BareRoute("/x", bare)])):
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        add_routes(app, ROUTES)
        assert len(policies(app, ROUTES)) == len(ROUTES)  # control
        app.router.routes.append(extra)
        with pytest.raises(RuntimeError, match="has no policy"):
            policies(app, ROUTES)
    with pytest.raises(RuntimeError, match="has no policy"):
        policies(FastAPI(), ROUTES)  # its own docs, which anybody could read
    make_app(service, None, (*ROUTES, Route("GET", "/more", bare, PUBLIC)))  # control


def test_on_this_machine_no_token_is_needed_until_one_is_made(tmp_path):
    with house(tmp_path / "root", open_to=NAMES) as (service, client):
        assert client.get("/v1/files").status_code == 200
        token_id, token = service.tokens.create("ada", ("read",), None)
        assert client.get("/v1/files").status_code == 401
        headers = {"authorization": f"Bearer {token}"}
        assert client.get("/v1/files", headers=headers).status_code == 200
        service.tokens.revoke(token_id)
        assert client.get("/v1/files").status_code == 401  # the last one gone opens no door


@pytest.mark.parametrize("names", [NAMES, None])
def test_without_its_database_the_service_is_busy_not_broken(tmp_path, monkeypatch, names):
    with house(tmp_path / "root", open_to=names) as (service, client):
        mine = bearer(service)

        def away(*_):
            raise OperationalError("SELECT", {}, Exception("no connection"))

        monkeypatch.setattr(service.tokens, "any", away)
        monkeypatch.setattr(service.tokens, "caller", away)
        for path in ("/v1/files", "/health"):
            answer = client.get(path, headers=mine)
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["type"] == "server_error"
            assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def unlocked(tmp_path_factory):
    with house(tmp_path_factory.mktemp("unlocked") / "root", open_to=NAMES) as found:
        yield found


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8765"}, 200),
        ({"host": "[::1]:8765"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://127.0.0.1:8765"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
    ],
)
def test_pages_of_elsewhere_do_not_reach_an_open_service(unlocked, headers, status):
    for path in ("/v1/files", "/health"):
        assert unlocked[1].get(path, headers=headers).status_code == status


def test_a_foreign_origin_is_refused_with_a_token_too(made):
    service, client = made
    headers = {**bearer(service), "origin": "http://evil.example"}
    assert client.get("/v1/files", headers=headers).status_code == 403


def test_a_body_has_a_limit_whatever_it_says_of_itself(made):
    service, client = made
    headers = bearer(service)

    def lots():
        for _ in range(40):
            yield b" " * 65536

    address = "/v1/fine_tuning/jobs"
    said = client.post(address, content=b" " * (2 << 20), headers=headers)
    unsaid = client.post(address, content=lots(), headers=headers)  # chunked: no length
    assert (said.status_code, unsaid.status_code) == (413, 413)
    lie = client.post(address, content=b"{}", headers={**headers, "content-length": "x"})
    assert lie.status_code in (400, 413)
    read = False

    def body():
        nonlocal read
        read = True
        yield b"x"

    assert client.post("/v1/files", content=body()).status_code == 401
    # without a token the body of an upload does not reach the disk
    assert list((service.root / "incoming").iterdir()) == []


def owned(service, client):
    """A job with an event and a file of its own, of each owner."""
    mine = bearer(service, "ada")
    upload = {"file": ("p.txt", b"a hand\n")}
    file = client.post("/v1/files", files=upload, data={"purpose": "fine-tune"}, headers=mine)
    job = client.post("/v1/fine_tuning/jobs", json=JOB, headers=mine)
    assert (file.status_code, job.status_code) == (200, 200), job.text
    return file.json()["id"], job.json()["id"], mine


def test_owners_do_not_see_one_another(made):
    service, client = made
    file_id, job_id, mine = owned(service, client)
    other = bearer(service, "bob")
    checked = 0
    for route in ROUTES:
        named = "{job_id}" in route.path or "{file_id}" in route.path
        if not named or route.policy.scope is None:
            continue
        path = route.path.replace("{job_id}", job_id).replace("{file_id}", file_id)
        path = path.replace("{name}", "step-00000000.png")
        answer = client.request(route.method, path, headers=other)
        assert answer.status_code == 404, path
        assert "ada" not in answer.text and "p.txt" not in answer.text
        checked += 1
    assert checked == 16
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models"):
        assert job_id not in client.get(path, headers=other).text
        assert file_id not in client.get(path, headers=other).text
    naming = {"method": {"type": "pixel_reward", "pixel_reward": {}}, "model": "thing"}
    for theirs in (file_id, job_id):
        body = {**naming, "training_file": theirs}
        answer = client.post("/v1/fine_tuning/jobs", json=body, headers=other)
        assert answer.status_code == 400 and "there is no" in answer.text
    assert client.get(f"/v1/files/{file_id}", headers=mine).status_code == 200  # control
    assert service.jobs.job(job_id)["state"] == State.VALIDATING  # nobody cancelled it


def test_answers_carry_what_browsers_need(made):
    service, client = made
    headers = bearer(service)
    page = b"<script>alert(1)</script>"
    sent = client.post(
        "/v1/files",
        files={"file": ('<img src=x onerror="x">.txt', page, "text/html")},
        data={"purpose": "fine-tune"},
        headers=headers,
    ).json()
    answer = client.get(f"/v1/files/{sent['id']}/content", headers=headers)
    assert answer.content == page
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    for one in (answer, client.get("/v1/files"), client.get("/docs", headers=headers)):
        assert one.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in one.headers["content-security-policy"]


def test_the_docs_name_every_route_and_no_other_place(made):
    service, client = made
    headers = bearer(service)
    spec = client.get("/openapi.json", headers=headers).json()
    listed = {(verb.upper(), path) for path, one in spec["paths"].items() for verb in one}
    hidden = {"/docs", "/openapi.json", *SHELLS, *STATIC}
    assert listed == {(one.method, one.path) for one in ROUTES if one.path not in hidden}
    page = client.get("/docs", headers=headers).text
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert "/v1/fine_tuning/jobs/{job_id}/pause" in page


def test_results_are_files_like_others(made):
    service, client = made
    _, job_id, mine = owned(service, client)
    folder = service.supervisor.folder(job_id)
    (folder / "export").mkdir(parents=True)
    (folder / "export/README.md").write_text("card")
    (folder / "export/.hidden").write_text("no")
    (folder / "export/link").symlink_to("/etc/passwd")
    from launch.service.shelf import result_rows

    (row,) = result_rows(service.jobs.job(job_id), folder, ["export/*", "*"], service.root)
    assert (row["filename"], row["purpose"], row["bytes"]) == ("export/README.md", RESULT, 4)


def test_a_file_in_use_stays(made):
    service, client = made
    mine = bearer(service)
    upload = {"file": ("p.txt", b"a hand\n")}
    sent = client.post("/v1/files", files=upload, data={"purpose": "fine-tune"}, headers=mine)
    file_id = sent.json()["id"]
    body = {
        "method": {"type": "pixel_reward", "pixel_reward": {}},
        "model": "thing",
        "training_file": file_id,
    }
    job = client.post("/v1/fine_tuning/jobs", json=body, headers=mine).json()
    refused = client.delete(f"/v1/files/{file_id}", headers=mine)
    assert refused.status_code == 400 and job["id"] in refused.json()["error"]["message"]
    client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel", headers=mine)
    assert client.delete(f"/v1/files/{file_id}", headers=mine).json()["deleted"]
    assert not (service.root / "files" / file_id).exists()
