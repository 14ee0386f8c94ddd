"""The service from Python, without torch: jobs and files as dicts, errors as sentences.

    client = Client("http://127.0.0.1:8765")
    job = client.create(
        "pixel_reward", {"detector": "first", "steps": 60}, training_file=Path("prompts.txt")
    )
    for event in client.watch(job["id"]):
        print(event["message"])
    client.download(job["id"], Path("result"))

OpenAI's own client speaks to the same addresses.
"""

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from core.errors import UserError
from core.storage import write_atomic
from launch import archives

DEFAULT = "http://127.0.0.1:8765"
JOBS = "/v1/fine_tuning/jobs"
FINAL = {"succeeded", "failed", "cancelled"}
AGAIN = 1.0
"""Seconds before a stream that broke is taken up again."""
SILENCE = 45.0
"""Seconds after which a stream that says nothing is broken; the service speaks every 15."""


class Login(NamedTuple):
    """Where the service is, and by which right it is used."""

    url: str
    token: str | None


def login_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "diffdoctor/login.json"


def save_login(login: Login) -> Path:
    """For this person's eyes only."""
    path = login_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    write_atomic(path, (json.dumps(login._asdict(), indent=2) + "\n").encode())
    path.chmod(0o600)
    return path


def read_login(url: str | None = None) -> Login:
    """DIFFDOCTOR_URL and DIFFDOCTOR_TOKEN, else what `diffdoctor login` kept, else this machine.

    A kept token is for the kept address alone.
    """
    kept = Login(DEFAULT, None)
    try:
        kept = Login(**json.loads(login_path().read_text()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{login_path()} is damaged: run `diffdoctor login` again.") from error
    address = (url or os.environ.get("DIFFDOCTOR_URL") or kept.url).rstrip("/")
    token = kept.token if address == kept.url else None
    return Login(address, os.environ.get("DIFFDOCTOR_TOKEN") or token)


class Unreached(UserError):
    """The service did not answer: whether it did what was asked is not known."""


class Client:
    """One service; every call raises `UserError` with its words where it refuses."""

    def __init__(self, url: str = DEFAULT, token: str | None = None):
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self.url = url.rstrip("/")
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=300)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def create(
        self,
        method: str,
        settings: Mapping[str, Any] | None = None,
        key: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """A new job. A `Path` among the values, a file or folder of this machine, is uploaded
        first, and removed again where no job comes of it. `key` (a new one by default) makes
        asking again harmless."""
        body = {"method": {"type": method, method: dict(settings or {})}, **more}
        headers = {"idempotency-key": key or secrets.token_hex(16)}
        sent: list[str] = []
        try:
            made = self._json("POST", JOBS, json=self._sent(body, sent), headers=headers)
        except Unreached:  # the job may be there all the same
            raise
        except UserError:
            self._take_back(sent)
            raise
        if more.get("dry_run"):
            self._take_back(sent)
        return made

    def jobs(self, limit: int = 20, after: str | None = None) -> list[dict[str, Any]]:
        """The newest first."""
        asked = {"limit": limit, **({"after": after} if after else {})}
        return self._json("GET", JOBS, params=asked)["data"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"{JOBS}/{job_id}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"{JOBS}/{job_id}/cancel")

    def pause(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"{JOBS}/{job_id}/pause")

    def resume(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"{JOBS}/{job_id}/resume")

    def sample(self, job_id: str) -> dict[str, Any]:
        """Have a running job draw its pictures after the step it is in."""
        return self._json("POST", f"{JOBS}/{job_id}/sample")

    def save(self, job_id: str) -> dict[str, Any]:
        """Have a running job save a checkpoint after the step it is in."""
        return self._json("POST", f"{JOBS}/{job_id}/save")

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        return self._json("GET", f"{JOBS}/{job_id}/checkpoints", params={"limit": 100})["data"]

    def models(self) -> list[dict[str, Any]]:
        return self._json("GET", "/v1/models")["data"]

    def methods(self) -> list[dict[str, Any]]:
        return self._json("GET", "/v1/methods")["data"]

    def watch(self, job_id: str, last: str | None = None) -> Iterator[dict[str, Any]]:
        """Every event from the first (or after `last`) on, until the job has ended.

        A connection that breaks, as when the service is started anew, is taken up again.
        """
        while True:
            try:
                for kind, event in self._stream(job_id, last):
                    if kind == "done":
                        return
                    last = event["id"]
                    yield event
            except httpx2.TransportError:
                pass
            time.sleep(AGAIN)

    def log(self, job_id: str, after: int = 0) -> tuple[str, int]:
        """What the program printed, and where to go on."""
        found = self._json("GET", f"{JOBS}/{job_id}/log", params={"after": after})
        return found["text"], found["next"]

    def upload(self, path: Path, purpose: str = "fine-tune") -> dict[str, Any]:
        """A file, or a folder as a .zip."""
        if path.is_dir():
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(folder) / f"{path.resolve().name}.zip"
                archives.pack(path, archive)
                return self.upload(archive, purpose)
        try:
            with path.open("rb") as stream:
                form = {"file": (path.name, stream, "application/octet-stream")}
                return self._json("POST", "/v1/files", files=form, data={"purpose": purpose})
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}).") from error

    def files(self, limit: int = 100, after: str | None = None) -> list[dict[str, Any]]:
        """What was uploaded and what jobs made, the newest first."""
        asked = {"limit": limit, **({"after": after} if after else {})}
        return self._json("GET", "/v1/files", params=asked)["data"]

    def delete_file(self, file_id: str) -> None:
        """Refused while a job that has not ended uses it."""
        self._json("DELETE", f"/v1/files/{file_id}")

    def download(self, job_id: str, folder: Path) -> list[Path]:
        """Everything that a job made, verified, below a folder."""
        job = self.job(job_id)
        names = job["result_files"]
        if not names:
            raise UserError(_nothing(job))
        return [self._fetch(self._json("GET", f"/v1/files/{one}"), folder) for one in names]

    def _sent(self, value: Any, sent: list[str]) -> Any:
        """Ids of what was uploaded in the place of paths; `sent` gets them too."""
        if isinstance(value, Path):
            sent.append(self.upload(value)["id"])
            return sent[-1]
        if isinstance(value, Mapping):
            return {name: self._sent(inner, sent) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._sent(one, sent) for one in value]
        return value

    def _take_back(self, sent: list[str]) -> None:
        for one in sent:
            with contextlib.suppress(UserError):  # a job uses it after all
                self.delete_file(one)

    def _fetch(self, file: dict[str, Any], folder: Path) -> Path:
        target = (folder / file["filename"]).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise UserError(f"the service names a file outside of {folder}: {file['filename']!r}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        part, sha = target.with_name(f".{target.name}.part"), hashlib.sha256()
        address = f"/v1/files/{file['id']}/content"
        try:
            with self._http.stream("GET", address) as answer, part.open("wb") as stream:
                _check(answer)
                for chunk in answer.iter_bytes():
                    sha.update(chunk)
                    stream.write(chunk)
            if sha.hexdigest() != file["sha256"]:
                raise UserError(f"{file['filename']} arrived damaged: download it again.")
            part.rename(target)
        except httpx2.TransportError as error:
            raise self._unreached(error) from error
        finally:
            part.unlink(missing_ok=True)
        return target

    def _stream(self, job_id: str, last: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        headers = {"accept": "text/event-stream", **({"last-event-id": last} if last else {})}
        waits = httpx2.Timeout(300, read=SILENCE)
        address = f"{JOBS}/{job_id}/events"
        with self._http.stream("GET", address, headers=headers, timeout=waits) as answer:
            _check(answer)
            kind = ""
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    yield kind, {} if kind == "done" else json.loads(value)

    def _json(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise self._unreached(error) from error
        _check(answer)
        return answer.json()

    def _unreached(self, error: Exception) -> "Unreached":
        return Unreached(
            f"{self.url} does not answer ({error or type(error).__name__}): is `diffdoctor serve` "
            "running there, and is the address right (`diffdoctor login`)?"
        )


def _nothing(job: Mapping[str, Any]) -> str:
    """Why a job has no results, and what to do about it."""
    told = f"the job {job['id']} "
    if job["status"] == "succeeded":
        return f"{told}has no files any more: the service keeps them for a time."
    if job["status"] == "cancelled":
        return f"{told}was cancelled: create it anew."
    if job["status"] not in FINAL:
        return f"{told}has made nothing yet: it is {job['status']} (`diffdoctor jobs watch`)."
    why = f" ({job['error']['message'].rstrip('.')})" if job.get("error") else ""
    return f"{told}has failed{why}: see `diffdoctor jobs logs`, and create it anew."


def _check(answer: httpx2.Response) -> None:
    """Raises `UserError` with the service's own sentence."""
    if answer.is_success:
        return
    answer.read()
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the service answered {answer.status_code}."
    raise UserError(str(message))
