"""A program's state in, a folder that is whole or absent out, and the newest whole one back.

checkpoints/step-00000123/
    <stem>.safetensors   weights, optimizer, EMA, random states as bytes
    state.json           cursors and versions
    manifest.json        sha256 and size of each file; written last
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from core import storage
from core.errors import UserError
from core.states import optimizer_tensors, pack_rng, restore_optimizer, unpack_rng

__all__ = [
    "Checkpoint",
    "load",
    "load_newest",
    "optimizer_tensors",
    "pack_rng",
    "prune",
    "restore_optimizer",
    "save",
    "steps",
    "unpack_rng",
]

FORMAT = 1
KEEP = 2
_NAME = re.compile(r"(?:\.retired-)?step-(\d{8,})")
_STEM = re.compile(r"[A-Za-z0-9_-]+")
_FILE = re.compile(r"[A-Za-z0-9_-]+\.safetensors|state\.json")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` steps: tensors by file stem, and JSON state."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path


class DamagedCheckpoint(Exception):
    """The files do not match the manifest; the message says which and how."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = KEEP,
    best: int | None = None,
    pinned: Collection[int] = (),
) -> Path:
    """Commit `folder/step-<step>/` and prune all but the last `keep`, `best` and `pinned`.

    After a stop at any moment the newest verified checkpoint is the former or the new one.
    Saving a step again replaces it. Raises `UserError` ("disk full: path, need, free") when
    there is no room; what was saved before then still loads.
    """
    target = _path(Path(folder), step)
    files = _serialise(step, tensors, state)
    staging = target.with_name(f".staging-{target.name}")
    try:
        _sweep(target.parent)
        storage.primitives.mkdir(staging)
        for name, content in files.items():
            storage.write_file(staging / name, content)
        storage.sync_folder(staging)
        if target.exists():
            storage.primitives.rename(target, _retired(target))
        storage.primitives.rename(staging, target)
        storage.sync_folder(target.parent)
        _sweep(target.parent)
        prune(target.parent, keep, {*pinned} | ({best} if best is not None else set()))
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        storage.raise_if_full(error, target, sum(map(len, files.values())))
        raise UserError(
            f"cannot save {target} ({error.strerror}); mend the disk and run the same command "
            "again: what was saved before still loads."
        ) from error
    return target


def load_newest(folder: Path, report: Callable[[str], None] | None = None) -> Checkpoint | None:
    """The newest checkpoint whose every byte verifies, or None where none was ever saved.

    A damaged one is renamed `quarantine-...`, never deleted, and named to `report` (stderr
    without one). Otherwise nothing is changed, so a reader may call it while a run goes on.
    Raises `UserError` when there were checkpoints and all are damaged.
    """
    folder = Path(folder)
    for step in reversed(steps(folder)):
        path = _existing(folder, step)
        try:
            return _read(path, step)
        except DamagedCheckpoint as error:
            if _quarantine(path):  # else the run that owns it has just pruned it
                message = f"damaged checkpoint {path.name} set aside: {error}"
                report(message) if report else print(f"warn: {message}", file=sys.stderr)
    damaged = sorted(path.name for path in folder.glob("quarantine-*"))
    if damaged:
        raise UserError(
            f"every checkpoint in {folder} is damaged ({', '.join(damaged)}); "
            "restore one from a copy, or remove the folder to begin afresh."
        )
    return None


def load(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of one step; `UserError` if it is missing or damaged."""
    folder = Path(folder)
    path = _existing(folder, step)
    if not path.is_dir():
        present = ", ".join(map(str, steps(folder))) or "none"
        raise UserError(
            f"there is no checkpoint {path} (saved steps: {present}); name one of them."
        )
    try:
        return _read(path, step)
    except DamagedCheckpoint as error:
        raise UserError(f"{path} is damaged ({error}); choose another checkpoint.") from error


def steps(folder: Path) -> list[int]:
    """The steps of the committed checkpoints, oldest first (not verified)."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted({int(match[1]) for match in found if match})


def prune(folder: Path, keep: int, pinned: Collection[int]) -> None:
    """Remove all but the newest `keep` (at least one) and the `pinned` steps."""
    for step in steps(folder)[: -max(keep, 1)]:
        if step not in pinned:
            gone = folder / f".removed-{_path(folder, step).name}"
            # renamed first, so that nothing half-removed carries a checkpoint's name
            storage.primitives.rename(_path(folder, step), gone)
            storage.remove_tree(gone)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _retired(path: Path) -> Path:
    """Where a checkpoint waits while another of the same step takes its place."""
    return path.with_name(f".retired-{path.name}")


def _existing(folder: Path, step: int) -> Path:
    path = _path(folder, step)
    return path if path.exists() or not _retired(path).exists() else _retired(path)


def _sweep(folder: Path) -> None:
    """Finish what a stopped process left: put back or remove what it had moved aside."""
    if not folder.is_dir():
        storage.primitives.mkdir(folder)
        storage.sync_folder(folder.parent)
    for path in sorted(folder.glob(".*-step-*")):
        target = folder / path.name.split("-", 1)[1]
        if path.name.startswith(".retired-") and not target.exists():
            storage.primitives.rename(path, target)
        elif path.name.startswith((".retired-", ".staging-", ".removed-")):
            storage.remove_tree(path)


def _quarantine(path: Path) -> bool:
    """Rename a damaged checkpoint; False if it is no longer there."""
    name = f"quarantine-{path.name.removeprefix('.retired-')}"
    taken = len(list(path.parent.glob(f"{name}*")))
    try:
        storage.primitives.rename(path, path.with_name(f"{name}.{taken}" if taken else name))
    except FileNotFoundError:
        return False
    return True


def _serialise(
    step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> dict[str, bytes]:
    """File name -> content, the manifest last."""
    files = {}
    for stem, named in tensors.items():
        if not _STEM.fullmatch(stem):
            raise ValueError(f"file stem {stem!r} must be letters, digits, '-' and '_'")
        copies = {name: _copy(tensor) for name, tensor in named.items()}
        files[f"{stem}.safetensors"] = safetensors.torch.save(copies)
    files["state.json"] = json.dumps(dict(state), indent=2).encode()
    entries = {name: _entry(content) for name, content in files.items()}
    manifest = {"format": FORMAT, "step": step, "files": entries}
    files["manifest.json"] = _canonical(manifest)
    return files


def _copy(tensor: Tensor) -> Tensor:
    """A packed copy on the CPU: safetensors refuses tensors that share memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _entry(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _canonical(manifest: Any) -> bytes:
    return json.dumps(manifest, indent=2).encode()


def _read(path: Path, step: int) -> Checkpoint:
    """Verify each byte, then parse exactly the bytes that were verified."""
    entries = _manifest(path, step)
    contents = {name: _verified(path / name, entry) for name, entry in entries.items()}
    try:
        state = json.loads(contents.pop("state.json"))
        tensors = {
            name.removesuffix(".safetensors"): safetensors.torch.load(content)
            for name, content in contents.items()
        }
    except (KeyError, ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"files verify but do not parse: {error}") from error
    return Checkpoint(step, tensors, state, path)


def _manifest(path: Path, step: int) -> dict[str, Any]:
    """The manifest's file entries; its own text must be byte for byte what we would write."""
    content = _bytes(path / "manifest.json")
    try:
        manifest = json.loads(content)
        entries, said = manifest["files"], manifest["step"]
        sound = content == _canonical(manifest) and set(manifest) == {"format", "step", "files"}
        names = all(_FILE.fullmatch(name) for name in entries)
        whole = all(set(entry) == {"sha256", "bytes"} for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint("manifest.json does not parse") from error
    if not (sound and names and whole):
        raise DamagedCheckpoint("manifest.json is not as it was written")
    if manifest["format"] != FORMAT or said != step:
        raise DamagedCheckpoint(f"manifest.json is of step {said}, format {manifest['format']}")
    return entries


def _verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    content = _bytes(path)
    if len(content) != entry["bytes"]:
        raise DamagedCheckpoint(f"{path.name} has {len(content)} bytes, not {entry['bytes']}")
    if _entry(content) != entry:
        raise DamagedCheckpoint(f"{path.name} has another sha256 than the manifest says")
    return content


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedCheckpoint(f"{path.name} cannot be read ({error.strerror})") from error
