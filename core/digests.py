"""A folder of a model or of data in, the sha256 that names its content out."""

import hashlib
from pathlib import Path

from core.storage import sha256_file


def model_digest(folder: Path) -> str:
    """Of every config and weight of a model's folder, or of its one file, by relative name."""
    total = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    for path in (path for path in files if path.suffix in (".json", ".safetensors")):
        total.update(f"{path.relative_to(folder)}:{sha256_file(path)}\n".encode())
    return total.hexdigest()


def model_name(folder: Path) -> str:
    """The folder's name and its digest: two models are not taken for one."""
    return f"{folder.resolve().name}@{model_digest(folder)[:12]}"


def data_digest(folder: Path) -> str:
    """Of a store its manifests, which name all digests in it; of a plain folder every file."""
    total = hashlib.sha256()
    manifests = sorted(folder.glob("*.manifest.jsonl"))
    files = manifests or sorted(path for path in folder.rglob("*") if path.is_file())
    for path in (path for path in files if path.name[0] != "."):
        total.update(f"{path.relative_to(folder)}:{sha256_file(path)}\n".encode())
    return total.hexdigest()
