"""The released DiffDoctor detector, out of its public repository; a folder that loads here out.

    diffdoctor detector fetch --out detectors/released

The weights lie in Git LFS: the repository's address is asked for the object of a pinned sha256,
which is downloaded (a stopped download goes on), verified, and converted by `detector.convert`.
Source: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import core.config
from core.download import ask, check_url, download
from core.errors import UserError
from core.storage import alone, check_room, check_writable
from detector.convert import Origin, check_out, convert
from detector.storage import DESCRIPTION, check_segformer, load_detector, read_description

REPOSITORY = "https://github.com/ali-vilab/DiffDoctor"
KIND = "application/vnd.git-lfs+json"
LICENCE = "MIT, as its repository says (ali-vilab/DiffDoctor)"
WARNING = (
    "this detector was trained on generators from before 2024 and sees little in newer ones: "
    "run `diffdoctor detector sanity` before it treats anything."
)


class Pin(NamedTuple):
    """Which bytes, whoever offers them."""

    name: str
    sha256: str
    size: int


RELEASED = Pin(
    "ad_pytorch_model.bin",
    "574db3ea1d2296051ec3edafbb921417c65ca6a933e779075eaf622934539612",
    338_869_510,
)


class Config(core.config.Config):
    """Bring the released DiffDoctor detector here."""

    out: Path
    """Folder for the detector."""
    url: str = REPOSITORY
    """Repository that has it in its Git LFS; the bytes are verified wherever they come from."""


def main(config: Config) -> None:
    """Fetch, unless it is there; say what it is worth."""
    print(f"licence of the weights: {LICENCE}")
    folder = fetch(config.out.expanduser(), config.url)
    said = read_description(folder)
    print(f"{folder}: {check_segformer(folder).variant}, {said.sha256[:12]}")
    print(f"warning: {WARNING}")


def fetch(out: Path, url: str = REPOSITORY, pin: Pin | None = None) -> Path:
    """The folder; raises `UserError` before anything is brought if it cannot be kept."""
    pin = pin or RELEASED
    check_url(url)
    check_writable(out)
    check_out(out, pin.sha256)
    if (out / DESCRIPTION).is_file():
        load_detector(out)  # verified: it is there and whole
        return out
    store = out / ".download"
    kept = sum(path.stat().st_size for path in store.glob("*")) if store.is_dir() else 0
    check_room(out, 2 * pin.size, kept)  # the download, and the detector that it becomes
    store.mkdir(parents=True, exist_ok=True)
    with alone(out / ".fetch.lock", f"another process fetches into {out}: wait for it."):
        weights = store / pin.name
        if not weights.is_file():
            href, header = locate(url, pin)
            download(href, weights, pin.size, pin.sha256, header)
        convert(Origin(weights, {}), out, pin.sha256, licence=LICENCE, source=url, warning=WARNING)
        shutil.rmtree(store)
    return out


def locate(url: str, pin: Pin) -> tuple[str, dict[str, str]]:
    """Where Git LFS has the object now, and the headers that it wants to see."""
    address = f"{url.rstrip('/').removesuffix('.git')}.git/info/lfs/objects/batch"
    wanted = {"oid": pin.sha256, "size": pin.size}
    question = {"operation": "download", "transfers": ["basic"], "objects": [wanted]}
    said = ask(address, question, {"Accept": KIND, "Content-Type": KIND})
    try:
        found = next(one for one in said["objects"] if one["oid"] == pin.sha256)
        if "error" in found:
            raise UserError(f"{url} does not give {pin.name}: {_reason(found['error'])}.")
        action = found["actions"]["download"]
        header = {str(name): str(value) for name, value in action.get("header", {}).items()}
        return str(action["href"]), header
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise UserError(
            f"{url} does not answer as Git LFS does: check --url, or convert a copy of "
            f"{pin.name} with `diffdoctor detector convert`."
        ) from error


def _reason(error: dict[str, Any]) -> str:
    """The server's words, in one line and no longer than a line."""
    text = " ".join(str(error.get("message", "no reason is given")).split())
    return f"{text[:200]} ({error.get('code', 'no code')}); check --url or try again later"


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m detector.fetch")
