"""Pushing to a hub that stands on this machine: what arrives, and what each refusal says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from core import hub
from core.errors import UserError


class Hub(ThreadingHTTPServer):
    """Just enough of the hub's protocol: create, preupload (everything regular), commit."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.calls, self.files, self.status = [], {}, {}
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_GET(self):
        self.answer(b"")

    def answer(self, body):
        call = self.path.split("?")[0]
        self.server.calls.append((call, self.headers.get("Authorization")))
        kind = call.rsplit("/", 2)[-2] if "/models/" in call else call.rsplit("/", 1)[-1]
        status = self.server.status.get(kind, self.server.status.get("all", 200))
        said = {"error": "no"} if status != 200 else self.said(kind, body)
        content = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def said(self, kind, body):
        if kind == "create":
            return {"url": f"{self.server.url}/me/x", "id": "me/x"}
        if kind == "preupload":
            files = json.loads(body)["files"]
            return {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                              for one in files]}  # fmt: skip
        if kind == "commit":
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.server.files[one["value"]["path"]] = one["value"]["content"]
            url = f"{self.server.url}/me/x/commit/0"
            return {"commitUrl": url, "commitOid": "0" * 40, "success": True}
        return {"sha": "0" * 40, "id": "me/x", "siblings": []}

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    one = Hub()
    threading.Thread(target=one.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_a_token")
    monkeypatch.setattr(constants, "ENDPOINT", one.url)  # as HF_ENDPOINT does at import
    made = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made(endpoint=one.url))
    yield one
    one.shutdown()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/config.json").write_text("{}")
    (tmp_path / ".half.tmp").write_text("unfinished")
    return tmp_path


def test_the_folder_arrives_whole_and_without_hidden_files(server, folder):
    assert hub.push(folder, "me/x", "words") == f"{server.url}/me/x"
    assert set(server.files) == {"README.md", "inner/config.json"}
    calls = (
        "repos/create",
        "validate-yaml",
        "models/me/x/preupload/main",
        "models/me/x/commit/main",
    )
    ours = [call for call in server.calls if call[0] in {f"/api/{name}" for name in calls}]
    assert ours == [(f"/api/{name}", "Bearer hf_a_token") for name in calls], server.calls


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("all", 401, "does not accept the token.*hf auth login"),
        ("all", 403, "may not write to me/x.*repository of your own"),
        ("preupload", 403, "may not write to me/x"),
        ("commit", 403, "may not write to me/x"),
    ],
)
def test_a_refusal_is_one_sentence_with_its_cure(server, folder, kind, status, words):
    server.status[kind] = status
    with pytest.raises(UserError, match=words) as caught:
        hub.push(folder, "me/x", "words")
    assert "\n" not in str(caught.value) and "hf_a_token" not in str(caught.value)
    assert not server.files


def test_no_token_is_said_before_anything(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no token to push to me/x with.*hf auth login"):
        hub.check_push("me/x")
    for name in ("me", "a/b/c", "me/two words"):
        with pytest.raises(UserError, match="OWNER/NAME"):
            hub.check_push(name)


def test_no_connection_is_said(folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be reached"):
        hub.push(folder, "me/x", "words")


@pytest.mark.parametrize("error", [RuntimeError("no route"), ValueError("Invalid metadata")])
def test_what_the_transport_or_the_cards_check_raises_is_a_sentence(folder, monkeypatch, error):
    class Broken:
        def create_repo(self, *words, **options):
            raise error

    monkeypatch.setattr(huggingface_hub, "HfApi", Broken)
    with pytest.raises(UserError, match=f"written but not pushed .*{error}.*push again"):
        hub.push(folder, "me/x", "words")
