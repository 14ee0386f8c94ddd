"""An address, a size and a sha256 in; that very file out, or a sentence that says why not.

What has come stays in `.NAME.part` and is gone on with, by this run or by the next one. Nothing is
taken over plain http, except from this machine.
"""

import http.client
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tqdm import tqdm

from core.errors import UserError
from core.storage import check_room, raise_if_full, sha256_file, sync_folder

T = TypeVar("T")

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
ATTEMPTS = 5
"""Attempts in a row that may bring nothing new."""
PAUSE = 1.0
"""Seconds before the second attempt; twice as long before each further one."""
TIMEOUT = 60
"""Seconds without an answer or a byte."""
REDIRECTS = 5
CHUNK = 1 << 20
MAX_JSON_BYTES = 1_000_000
BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which it is worth asking again."""
AGAIN = "run the same command again later: what has come stays"


def check_url(url: str) -> None:
    """Raise `UserError` for anything but https, or http on this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.hostname and parts.scheme == "https":
        return
    if parts.hostname not in LOOPBACK or parts.scheme != "http":
        raise UserError(f"{url} is no https address: give one that is.")


def ask(url: str, question: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """POST JSON, and the JSON object that comes back; raises `UserError`."""
    check_url(url)
    request = urllib.request.Request(url, json.dumps(question).encode(), dict(headers))

    def once() -> bytes:
        with _opener(url).open(request, timeout=TIMEOUT) as answer:
            return answer.read(MAX_JSON_BYTES)

    content = next(_tried(url, lambda: iter([once()])))
    try:
        said = json.loads(content)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise UserError(f"{url} does not answer as it should: check the address.")
    return said


def download(
    url: str, target: Path, size: int, sha256: str, headers: Mapping[str, str] | None = None
) -> Path:
    """`target`, complete and verified; raises `UserError`, and then `target` is not there."""
    check_url(url)
    part = target.with_name(f".{target.name}.part")
    if _held(part) > size:
        part.unlink()
    check_room(part.parent, size - _held(part))
    start = _held(part)
    with tqdm(
        total=size, initial=start, unit="B", unit_scale=True, desc=target.name, mininterval=0.5
    ) as bar:
        for held in _tried(url, lambda: _receive(url, part, size, headers or {}), size, start):
            bar.update(held - bar.n)
    found = sha256_file(part)
    if found != sha256:
        part.unlink()
        raise UserError(
            f"{url} gave a file of another sha256 ({found[:12]} instead of {sha256[:12]}): "
            "it is not kept; check the address, or try again."
        )
    part.rename(target)
    sync_folder(target.parent)
    return target


def _tried(
    url: str, work: Callable[[], Iterator[T]], size: int | None = None, best: int = 0
) -> Iterator[T]:
    """What the work yields, begun again after a fault; bytes held, where a `size` is to be reached.

    Only what goes beyond all earlier attempts counts as new.
    """
    lost = 0
    while size is None or best < size:
        try:
            for value in work():
                if isinstance(value, int) and value > best:
                    best, lost = value, 0
                yield value
            if size is None or best >= size:
                return
            reason = "the connection ended early"
        except HTTPError as error:
            if error.code not in BUSY:
                raise UserError(f"{url} answered {error.code}: {_cure(error.code)}.") from error
            reason = f"the server answered {error.code}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        lost += 1
        if lost >= ATTEMPTS:
            raise UserError(f"{url} cannot be fetched ({reason}): check the connection, {AGAIN}.")
        pause = PAUSE * 2 ** (lost - 1)
        tqdm.write(f"{reason}: trying again in {pause:.0f} s ({lost} of {ATTEMPTS - 1})")
        time.sleep(pause)


def _receive(url: str, part: Path, size: int, headers: Mapping[str, str]) -> Iterator[int]:
    """Append what is still missing; yields the bytes held after each piece."""
    held = _held(part)
    more = {"Range": f"bytes={held}-"} if held else {}
    request = urllib.request.Request(url, headers={**headers, **more})
    with _opener(url).open(request, timeout=TIMEOUT) as answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {held}-"
        )
        if held and not goes_on:
            held = 0  # a server that knows no ranges begins anew
        with part.open("ab" if held else "wb", buffering=0) as file:
            while piece := answer.read(CHUNK):
                held += len(piece)
                if held > size:
                    part.unlink()
                    raise UserError(f"{url} gives more than {size} bytes: check the address.")
                _write(file.fileno(), piece, part, size)
                yield held
            os.fsync(file.fileno())


def _write(handle: int, piece: bytes, part: Path, size: int) -> None:
    view = memoryview(piece)
    try:
        while view:
            view = view[os.write(handle, view) :]
    except OSError as error:
        raise_if_full(error, part, size)
        raise UserError(f"cannot write {part} ({error.strerror}): name another --out.") from error


def _held(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _cure(code: int) -> str:
    return f"{AGAIN}, or check the address" if code in (401, 403) else "check the address"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A few, to permitted addresses; what identifies us stays with the host it was meant for."""

    max_redirections = REDIRECTS

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[override]
        check_url(newurl)
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            found.remove_header("Authorization")
        return found


def _opener(url: str) -> urllib.request.OpenerDirector:
    """No proxy stands between this machine and itself."""
    direct = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []
    return urllib.request.build_opener(_Redirects, *direct)
