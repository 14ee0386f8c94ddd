"""Pages of elsewhere in a person's browser, and markup in what is uploaded or named."""

import json

import pytest

from launch.service.guard import Guard
from launch.service.tokens import LOCAL
from tests.launch.house import NAMES, bearer, filled, house
from tests.launch.test_guard import JOB

EVIL = "evil.example"
HOSTS = [
    EVIL, f"{EVIL}:8765", f"127.0.0.1.{EVIL}", f"localhost.{EVIL}:8765", f"127.0.0.1@{EVIL}",
    f"{EVIL}#127.0.0.1", f"{EVIL}?127.0.0.1", f"{EVIL}/127.0.0.1", "127.0.0.1 .example", "",
    ":8765", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.2", "0.0.0.0", "[::]",
    "[::ffff:127.0.0.1]", "10.0.0.7:8765", "192.168.0.1", "169.254.169.254", "localhost.",
    "xlocalhost", "local-host", "ip6-localhost", "127.0.0.1,evil.example", "[fe80::1]",
    "metadata.google.internal", "127.0.0.1.nip.io:8765", "xn--lcalhost-x3b", "\u24dbocalhost",
    "127.0.0.1%00.evil.example", "*", "%", "..", "-", "a" * 300, "user:pass@evil.example",
    "[::1].evil.example", "[::1", "::1", "host\tname", "127.0.0.1\\.evil.example", "LOCALHOST.x",
]  # fmt: skip
ORIGINS = [
    "null", "", "*", f"http://{EVIL}", f"https://{EVIL}", f"http://{EVIL}:8765", "file://",
    "http://127.0.0.1", "http://127.0.0.1:1", "http://127.0.0.1:87650", "https://127.0.0.1:87",
    "http://localhost:8765", "http://[::1]:8765", f"http://127.0.0.1:8765.{EVIL}", "127.0.0.1:8765",
    f"http://127.0.0.1:8765@{EVIL}", f"http://{EVIL}#127.0.0.1:8765", f"http://{EVIL}/127.0.0.1:8765",
    f"http://127.0.0.1.{EVIL}:8765", "http://user@127.0.0.1:8765", "chrome-extension://abcdefghijk",
    "moz-extension://1", "data:", "blob:http://evil.example/1", "about:blank", "javascript:0",
    "http://127.0.0.1:8765, http://evil.example", "http://127.0.0.1:8765 http://evil.example",
    "http:127.0.0.1:8765", "http:/127.0.0.1:8765", "//evil.example", "http://0.0.0.0:8765",
    "http://127.1:8765", "http://2130706433:8765", "http://127.0.0.1:8765\\@evil.example",
    "HTTP://EVIL.EXAMPLE", "http://evil.example:80", "https://evil.example:443", "ws://evil.example",
    "http://xn--127-8cd.0.0.1:8765", "http://127.0.0.1:08765", "http://127.0.0.1:8765.",
    "http://[127.0.0.1]:8765", "http://localhost", "http://[::1]",
]  # fmt: skip
PATHS = [
    ("GET", "/v1/files"), ("GET", "/health"), ("GET", "/"), ("POST", "/v1/fine_tuning/jobs"),
    ("DELETE", "/v1/files/x"), ("GET", "/static/job.js"), ("OPTIONS", "/v1/files"),
]  # fmt: skip
MARKUP = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</title><svg onload=alert(1)>",
    "javascript:alert(1)", "{{7*7}}", "${alert(1)}", "<!--", "]]><x>", "&lt;script&gt;",
    "' onmouseover='alert(1)", "<style>@import '//evil.example'</style>", "\u202e<b>",
    "<iframe src=//x>",
]  # fmt: skip
PAGES = {
    "html": b"<!doctype html><script>fetch('/v1/files')</script>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "xml": b"<?xml version='1.0'?><?xml-stylesheet href='x'?><x/>",
    "pdf": b"%PDF-1.7 /JS (app.alert(1))",
    "swf": b"CWS\x0a",
    "image with a page behind": b"\x89PNG\r\n\x1a\n<script>alert(1)</script>",
}


@pytest.fixture(scope="module")
def open_house(tmp_path_factory):
    """On this machine alone and without a token: what a foreign page could try to reach."""
    base = tmp_path_factory.mktemp("open")
    with house(base / "root", open_to=NAMES, models={"thing": base}) as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("made")
    with house(base / "root", models={"thing": base}) as (service, client):
        yield client, bearer(service)


def let_in(client, headers, paths=PATHS):
    """What was not refused for who asks."""
    return [
        (path, answer.status_code)
        for method, path in paths
        if (answer := client.request(method, path, headers=headers)).status_code not in (400, 403)
        or answer.json()["error"]["code"] not in ("invalid_host", "origin")
    ]


def raw(said):
    return said.encode("utf-8")


@pytest.mark.parametrize("host", HOSTS)
def test_a_foreign_host_is_refused(open_house, host):
    assert let_in(open_house[1], {"host": raw(host)}) == []


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_foreign_origin_is_refused_also_with_a_token(open_house, made, origin):
    client, headers = made
    assert let_in(open_house[1], {"origin": raw(origin)}) == []
    assert let_in(client, {**headers, "origin": raw(origin)}) == []


def test_control_with_the_guard_off_they_come_in(open_house, monkeypatch):
    assert len(HOSTS) + len(ORIGINS) + len(MARKUP) + len(PAGES) >= 100
    client = open_house[1]
    for ours in ({}, {"host": "localhost:8765"}, {"origin": "http://127.0.0.1:8765"}):
        assert len(let_in(client, ours)) == len(PATHS)  # our own pages do, with it on

    async def lets_all_in(self, scope):
        scope.setdefault("state", {})["caller"] = LOCAL

    monkeypatch.setattr(Guard, "_refusal", lets_all_in)
    assert len(let_in(client, {"host": EVIL, "origin": f"http://{EVIL}"})) == len(PATHS)


def test_two_hosts_are_none(open_house):
    twice = [("host", "127.0.0.1:8765"), ("host", EVIL)]
    assert let_in(open_house[1], twice) == []


def harmless(answer):
    """No browser takes an answer for a page of ours that runs something."""
    kind = answer.headers["content-type"].partition(";")[0]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in answer.headers
    return kind


def upload(client, headers, name, content, kind="text/html"):
    form = {"file": (name, content, kind)}
    return client.post("/v1/files", files=form, data={"purpose": "fine-tune"}, headers=headers)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_is_uploaded_is_a_download(made, name):
    client, headers = made
    for ending in ("html", "svg", "htm", "xhtml", "xml", "js", "css", "pdf", "mhtml", "png.html"):
        assert upload(client, headers, f"a.{ending}", PAGES[name]).status_code == 400
    for ending in ("txt", "png", "html.txt", "svg.png", "json"):
        sent = upload(client, headers, f"a.{ending}", PAGES[name]).json()
        answer = client.get(f"/v1/files/{sent['id']}/content", headers=headers)
        assert answer.content == PAGES[name]  # untouched
        assert harmless(answer) == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_a_name_stays_text(made, text):
    client, headers = made
    sent = upload(client, headers, f"{text}.txt", b"a hand\n")
    assert sent.status_code == 200 and harmless(sent) == "application/json"
    content = client.get(f"/v1/files/{sent.json()['id']}/content", headers=headers)
    said = content.headers["content-disposition"]
    assert harmless(content) == "application/octet-stream" and said.startswith("attachment")
    assert not set(said.partition("filename")[2]) & set("<>\r\n")
    body = {**JOB, "suffix": text[:64], "metadata": {"who": text}}
    job = client.post("/v1/fine_tuning/jobs", json=body, headers=headers)
    assert job.json()["metadata"] == {"who": text} and harmless(job) == "application/json"
    named = {"model": text, "method": {"type": text}, "training_file": text}
    for name, value in named.items():
        refused = client.post("/v1/fine_tuning/jobs", json={**JOB, name: value}, headers=headers)
        assert refused.status_code == 400 and harmless(refused) == "application/json"
    for path in ("/", "/new", "/jobs/{job_id}", "/docs"):
        page = client.get(filled(path, "x"), params={"x": text}, headers=headers)
        assert harmless(page) == "text/html" and text not in page.text
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models", "/openapi.json"):
        answer = client.get(path, headers=headers)
        assert harmless(answer) == "application/json" and json.loads(answer.text)
