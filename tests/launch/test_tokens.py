"""Tokens: every route with every kind of wrong one; made, kept as a digest, revoked, never told."""

import base64
import datetime
import re
import sqlite3
import time
from collections import Counter

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from core.errors import UserError
from launch.commands import serve, token_create
from launch.commands.of_root import OfRoot
from launch.service import serving, tokens
from launch.service.app import ROUTES
from launch.service.guard import Guard
from launch.service.tokens import LOCAL, PREFIX, digest
from tests.launch.house import bearer, filled, house
from tests.launch.served import Served
from tests.launch.test_guard import OPEN

CLOSED = [one for one in ROUTES if one.path not in OPEN]


@pytest.fixture
def made(tmp_path):
    with house(tmp_path / "root", models={"thing": tmp_path}) as found:
        yield found


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    base = tmp_path_factory.mktemp("kept")
    with house(base / "root", models={"thing": base}) as found:
        yield found


def turned_away(service):
    """Headers with what is no valid token, by what is wrong with it."""
    good = bearer(service)["authorization"]
    token = good.removeprefix("Bearer ")
    revoked_id, revoked = service.tokens.create("ada", ("read", "write"), None)
    service.tokens.revoke(revoked_id)
    said = {
        "empty": "",
        "without a token": "Bearer",
        "unknown": f"Bearer {PREFIX}{'a' * 43}",
        "of another kind": good.replace("Bearer", "Basic"),
        "cut off": good[:-1],
        "with more behind it": f"{good}x",
        "of other letters": f"Bearer {token.swapcase()}",
        "without its beginning": f"Bearer {token.removeprefix(PREFIX)}",
        "its digest": f"Bearer {digest(token)}",
        "twice": f"{good}, {good}",
        "a pattern": "Bearer %",
        "a query": "Bearer ' OR 1=1 --",
        "revoked": f"Bearer {revoked}",
        "expired": bearer(service, days=-1)["authorization"],
    }
    headers = {name: {"authorization": one} for name, one in said.items()}
    return {
        "no header": {},
        "in a cookie": {"cookie": f"authorization={token}; token={token}"},
        "in another header": {"x-api-key": token, "proxy-authorization": good},
        **headers,
    }


def admitted(app, client, wrong):
    """What answered otherwise than 401: over the app's own routes, whatever lists they came by."""
    found, asked = set(), 0
    for route in app.routes:
        assert isinstance(route, APIRoute)
        for method in route.methods:
            for headers in wrong.values():
                answer = client.request(method, filled(route.path), headers=headers)
                asked += 1
                if answer.status_code != 401:
                    found.add(route.path)
                else:
                    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert asked == len(ROUTES) * len(wrong)
    return found


def test_no_route_answers_without_a_valid_token_but_those_that_are_for_anybody(kept):
    service, client = kept
    assert admitted(client.app.app, client, turned_away(service)) == OPEN


def test_control_with_the_guard_off_every_route_is_open(kept, monkeypatch):
    async def lets_all_in(self, scope):
        scope.setdefault("state", {})["caller"] = LOCAL

    monkeypatch.setattr(Guard, "_refusal", lets_all_in)
    _, client = kept
    assert admitted(client.app.app, client, {"none": {}}) == {one.path for one in ROUTES}


def test_a_token_in_an_address_is_none(kept):
    service, client = kept
    token = bearer(service)["authorization"].removeprefix("Bearer ")
    for name in ("token", "access_token", "api_key", "authorization"):
        assert client.get("/v1/files", params={name: token}).status_code == 401


@pytest.mark.parametrize("route", CLOSED, ids=lambda one: f"{one.method} {one.path}")
def test_a_token_may_do_what_its_scopes_say(kept, route):
    service, client = kept
    path = filled(route.path)
    other = "write" if route.policy.scope == "read" else "read"
    refused = client.request(route.method, path, headers=bearer(service, scopes=(other,)))
    assert refused.status_code == 403
    answer = client.request(route.method, path, headers=bearer(service))
    assert answer.status_code not in (401, 403)


def test_what_leads_nowhere_tells_nothing_without_a_token(made):
    service, client = made
    for path in (
        "/v1",
        "/static",
        "/static/",
        "/jobs",
        "/v1/files/x/y",
        "/admin",
        "/x//health",
        "/health/",
        "/HEALTH",
    ):
        assert client.get(path, follow_redirects=False).status_code == 401, path
    assert client.get("/admin", headers=bearer(service)).status_code == 404
    for method in ("OPTIONS", "TRACE", "HEAD", "PATCH"):
        assert client.request(method, "/v1/files").status_code == 401


# Beyond this machine


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.7", False),
        ("::ffff:10.0.0.7", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_which_addresses_are_this_machine_alone(host, alone):
    assert serve.is_loopback(host) is alone


def test_beyond_this_machine_it_starts_with_a_token_only(tmp_path, monkeypatch):
    started = []

    def listens(app, service, listening, style):
        started.append(app.open_to)
        listening.close()
        service.lock.close()

    monkeypatch.setattr(serving, "serve", listens)
    config = serve.Config(root=tmp_path / "root", host="0.0.0.0", port=0)
    db = f"sqlite:///{tmp_path}/other.sqlite"
    for one, words in (
        (config, f"--root {tmp_path}/root --owner NAME"),
        (config.model_copy(update={"root": tmp_path / "a b", "db": db}),
         f"--root '{tmp_path}/a b' --db {db} --owner NAME"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=re.escape(f"`diffdoctor token create {words}`")):
            serve.main(one)
    assert started == []
    other = config.model_copy(update={"root": tmp_path / "other"})
    OfRoot(root=other.root).tokens(new=True).create("ada", ("read",), None)
    serve.main(other)  # control
    assert started == [None]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_it_may_be_called_by_the_address_at_which_it_listens(tmp_path, monkeypatch, host):
    def listens(app, service, listening, style):
        listening.close()
        for called, status in ((host, 200), ("localhost", 200), ("127.0.0.3", 403)):
            client = TestClient(app, base_url=f"http://{called}:8765")
            asked = [client.get(path).status_code for path in ("/health", "/v1/files")]
            assert asked == [status, status], called
        service.database.close()
        service.lock.close()
        answered.append(host)

    answered = []
    monkeypatch.setattr(serving, "serve", listens)
    serve.main(serve.Config(root=tmp_path / "root", host=host, port=0))
    assert answered == [host]


def test_a_token_is_of_a_service_that_there_is(tmp_path):
    """What is misspelt makes no second service, whose token nobody would take."""
    for program in (OfRoot(root=tmp_path / "typo"), OfRoot(root=tmp_path)):
        with pytest.raises(UserError, match="is no service's folder: check --root"):
            program.tokens()
    assert list(tmp_path.iterdir()) == []
    db = f"sqlite:///{tmp_path}/elsewhere.sqlite"
    root = tmp_path / "root"
    OfRoot(root=root, db=db).tokens(new=True).create("ada", ("read",), None)
    with pytest.raises(UserError, match="another database: say its --db"):
        OfRoot(root=root).tokens()
    assert OfRoot(root=root, db=db).tokens().any()  # control
    with pytest.raises(UserError, match="belongs to another root"):
        OfRoot(root=tmp_path / "third", db=db).tokens(new=True)


def test_who_makes_the_first_token_is_told_what_it_does_not_reach(tmp_path, capsys):
    assert token_create.LOCAL == LOCAL.owner
    for owner, first in (("ada", True), ("bob", False)):
        words = {"root": tmp_path / "root", "owner": owner, "new": first, "days": 2.0}
        token_create.main(token_create.Config(**words))
        said = capsys.readouterr().err
        assert ("`--owner local`" in said) == first
        assert f"valid until {datetime.date.today() + datetime.timedelta(days=2)}" in said


# How they are made and kept


def imbalance(made):
    """How far the rarest and the commonest of 256 bits are from a half, in standard errors."""
    numbers = [base64.urlsafe_b64decode(one.removeprefix(PREFIX) + "=") for one in made]
    assert {len(one) for one in numbers} == {32} and len(set(numbers)) == len(made)
    counts = Counter(i for one in numbers for i in range(256) if one[i // 8] >> i % 8 & 1)
    return max(abs(2 * counts[i] - len(made)) for i in range(256)) / len(made) ** 0.5


def test_a_token_is_256_random_bits(made, monkeypatch):
    service, _ = made

    def some():
        return [service.tokens.create("ada", ("read",), None)[1] for _ in range(100)]

    assert imbalance(some()) < 5.5  # one run in 100,000 would be beyond it
    count = iter(range(2, 1000))

    def weak(number):
        return base64.urlsafe_b64encode(next(count).to_bytes(number, "big")).rstrip(b"=").decode()

    monkeypatch.setattr(tokens.secrets, "token_urlsafe", weak)  # control
    assert imbalance(some()) > 5.5


def test_only_a_digest_of_a_token_is_kept(made):
    service, _ = made
    _, token = service.tokens.create("ada", ("read",), None)
    path = service.root / "jobs.sqlite"
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = b"".join(one.read_bytes() for one in service.root.glob("jobs.sqlite*"))
    assert token.encode() not in content and digest(token).encode() in content
    assert service.tokens.caller(token).owner == "ada"


def test_tokens_expire_and_are_revoked(made):
    service, client = made
    headers = bearer(service, days=0.5 / 86400)
    assert client.get("/v1/files", headers=headers).status_code == 200
    time.sleep(0.6)
    assert client.get("/v1/files", headers=headers).status_code == 401
    token_id, token = service.tokens.create("ada", ("read",), None)
    headers = {"authorization": f"Bearer {token}"}
    assert client.get("/v1/files", headers=headers).status_code == 200
    assert service.tokens.revoke(token_id) and not service.tokens.revoke(token_id)
    assert client.get("/v1/files", headers=headers).status_code == 401


def test_no_file_and_no_log_ever_holds_a_token(tmp_path):
    """A service that runs a job and is told its token in every wrong place as well."""
    token = OfRoot(root=tmp_path / "root").tokens(new=True).create("ada", ("read", "write"), 1)[1]
    served = Served(tmp_path, "--log", "json", token=token)
    try:
        served.http.headers["authorization"] = f"Bearer {token}"
        job = served.create(steps=1, seconds=0)
        assert served.ends(job.id).status == "succeeded"
        for path in (f"/{token}", f"/v1/files/{token}", f"/v1/files?after={token}",
                     f"/v1/fine_tuning/jobs/{job.id}/events?token={token}"):  # fmt: skip
            served.http.get(path)
        served.http.post("/v1/fine_tuning/jobs", json={"method": {"type": token}})
        served.http.post("/v1/fine_tuning/jobs", content=token)
        served.http.get("/v1/files", headers={"authorization": f"Basic {token}"})
        assert token not in served.http.get("/metrics").text
    finally:
        served.stop()
    found = [one for one in tmp_path.rglob("*") if one.is_file()]
    holding = [one for one in found if token.encode() in one.read_bytes()]
    assert holding == []
    assert b"diffdoctor.requests" in served.log.read_bytes()  # control: it was written
    assert any(digest(token).encode() in one.read_bytes() for one in found)
