"""A server that speaks Git LFS with a small object: what comes whole is kept, and nothing else."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from core import download as downloading
from core.config import run_program
from core.errors import UserError
from detector import fetch
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import load_detector, read_description
from tests.detector.test_convert import old_names


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.bin"
    torch.save(old_names(SegformerDetector(SegformerConfig(), seed=4).network.state_dict()), path)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE", 0.01)
    monkeypatch.setattr(downloading, "CHUNK", 1 << 14)


class Lfs(ThreadingHTTPServer):
    """Faults are counted down; `asked` holds the path and range of every request."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.asked = content, []
        self.oid = hashlib.sha256(content).hexdigest()
        self.busy, self.cut, self.hops, self.ranges, self.pace = 0, [], 0, True, 0.0
        self.error = self.batch = self.onward = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/owner/name"

    @property
    def pin(self):
        return fetch.Pin("weights.bin", self.oid, len(self.content))


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, code, content=b"", **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self):
        lfs = self.server
        lfs.asked.append((self.path, self.headers["Accept"]))
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if lfs.busy:
            lfs.busy -= 1
            return self.answer(503)
        if lfs.batch is not None:
            return self.answer(200, lfs.batch)
        (one,) = question["objects"]
        href = lfs.url.replace("/owner/name", "/object")
        found = {"actions": {"download": {"href": href, "header": {"X-Ticket": "7"}}}}
        said = {"objects": [{**one, **({"error": lfs.error} if lfs.error else found)}]}
        return self.answer(200, json.dumps(said).encode())

    def do_GET(self):
        lfs, start = self.server, 0
        lfs.asked.append((self.path, self.headers.get("Range")))
        if lfs.hops:
            lfs.hops -= 1
            return self.answer(302, Location=lfs.onward or self.path)
        if self.headers["X-Ticket"] != "7":
            return self.answer(403)
        if lfs.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        body, stop = lfs.content[start:], lfs.cut.pop(0) if lfs.cut else None
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            whole = len(lfs.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.end_headers()
        for at in range(0, len(body[:stop]), 1 << 14):
            self.wfile.write(body[:stop][at : at + (1 << 14)])
            time.sleep(lfs.pace)


@pytest.fixture
def lfs(weights):
    with Lfs(weights) as server:
        yield server
        server.shutdown()


def ranges(lfs):
    return [said for path, said in lfs.asked if path == "/object"]


def refused(lfs, out, cure, pin=None):
    with pytest.raises(UserError, match=cure) as caught:
        fetch.fetch(out, lfs.url, pin or lfs.pin)
    assert "\n" not in str(caught.value) and not (out / "detector.json").exists()


def test_the_program_brings_a_detector_and_warns(lfs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "RELEASED", lfs.pin)
    words = ["--out", str(tmp_path / "out"), "--url", lfs.url]
    run_program(fetch.main, fetch.Config, words)
    said = capsys.readouterr().out
    assert "MIT" in said and "before 2024" in said and "diffdoctor detector sanity" in said
    assert lfs.asked[0] == ("/owner/name.git/info/lfs/objects/batch", fetch.KIND)
    images = torch.rand(1, 3, 64, 64)
    own = SegformerDetector(SegformerConfig(), seed=4).eval()
    assert torch.equal(load_detector(tmp_path / "out")(images), own(images))
    card = read_description(tmp_path / "out").card
    assert card["converted"]["sha256"] == lfs.oid and card["source"] == lfs.url
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "detector.json",
        "detector.safetensors",
    ]
    asked = len(lfs.asked)
    run_program(fetch.main, fetch.Config, words)  # it is there
    assert len(lfs.asked) == asked


def test_the_pin_is_the_released_file():
    assert fetch.RELEASED.size == 338869510 and fetch.RELEASED.sha256.startswith("574db3ea1d22")
    assert fetch.Config(out="x").url == "https://github.com/ali-vilab/DiffDoctor"


def test_other_bytes_are_not_kept(lfs, tmp_path):
    lfs.content = lfs.content[:-1] + b"x"
    refused(lfs, tmp_path / "out", "another sha256", fetch.Pin("w.bin", lfs.oid, len(lfs.content)))
    assert not list((tmp_path / "out" / ".download").iterdir())


def test_more_bytes_than_pinned_are_refused(lfs, tmp_path):
    refused(lfs, tmp_path / "out", "gives more than", fetch.Pin("w.bin", lfs.oid, 1000))


@pytest.mark.parametrize("known", [True, False])
def test_a_connection_that_ends_early_is_gone_on_with(lfs, tmp_path, known, capsys):
    lfs.cut, lfs.ranges = [100_000, 0], known
    load_detector(fetch.fetch(tmp_path / "out", lfs.url, lfs.pin))
    assert ranges(lfs) == [None, "bytes=100000-", "bytes=100000-" if known else None]
    assert "trying again" in capsys.readouterr().out


def test_a_server_that_is_busy_is_asked_again(lfs, tmp_path):
    lfs.busy = 2
    load_detector(fetch.fetch(tmp_path / "out", lfs.url, lfs.pin))
    lfs.busy = 99
    refused(lfs, tmp_path / "other", "answered 503")
    assert lfs.busy == 99 - downloading.ATTEMPTS


def test_a_server_that_always_ends_early_is_given_up(lfs, tmp_path):
    lfs.cut, lfs.ranges = [50_000] * 99, False
    refused(lfs, tmp_path / "out", "run the same command again")
    assert len(ranges(lfs)) == downloading.ATTEMPTS


def test_what_the_batch_says_of_the_object_is_told(lfs, tmp_path):
    lfs.error = {"code": 404, "message": "Object does not\nexist"}
    refused(lfs, tmp_path / "out", r"Object does not exist \(404\)")
    for content in (b"<html>", b"[]", b"{}", b'{"objects": [3]}', b'{"objects": []}'):
        lfs.batch = content
        refused(lfs, tmp_path / "out", "does not answer as")


def test_redirects_are_few_and_stay_on_https(lfs, tmp_path):
    lfs.hops = 3
    load_detector(fetch.fetch(tmp_path / "out", lfs.url, lfs.pin))
    lfs.hops = 99
    refused(lfs, tmp_path / "far", "answered 302")
    lfs.hops, lfs.onward = 1, "http://example.com/object"
    refused(lfs, tmp_path / "plain", "no https address")


@pytest.mark.parametrize("url", ["http://example.com/a", "ftp://127.0.0.1/a", "file:///etc", "a"])
def test_only_https(tmp_path, url):
    with pytest.raises(UserError, match="no https address"):
        fetch.fetch(tmp_path / "out", url)
    assert not (tmp_path / "out").exists()


def test_without_room_nothing_is_asked(lfs, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(lfs, tmp_path / "out", "disk full")
    assert not lfs.asked and not (tmp_path / "out").exists()


def test_an_unreachable_server(tmp_path):
    with Lfs(b"x") as closed:
        closed.shutdown()
    refused(closed, tmp_path / "out", "check the connection")


PROGRAM = """
import sys
from pathlib import Path
from core import download
from detector import fetch
out, url, name, sha256, size = sys.argv[1:]
download.CHUNK = 1 << 14
fetch.fetch(Path(out), url, fetch.Pin(name, sha256, int(size)))
"""


def test_killed_half_way_it_goes_on(lfs, tmp_path):
    lfs.pace, out = 0.05, tmp_path / "out"
    words = [sys.executable, "-c", PROGRAM, str(out), lfs.url, *map(str, lfs.pin)]
    part = out / ".download" / ".weights.bin.part"
    child = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            if part.is_file() and part.stat().st_size > 50_000:
                break
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    held = part.stat().st_size
    assert 50_000 < held < len(lfs.content)
    lfs.pace = 0
    load_detector(fetch.fetch(out, lfs.url, lfs.pin))
    assert ranges(lfs) == [None, f"bytes={held}-"]
