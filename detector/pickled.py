"""A file that torch.save wrote in; its tensors by name out: the one place that opens a pickle.

Torch's own restricted reader (`weights_only`) builds tensors and nothing else. It works in a child
process that can neither reach the network nor start a program, and what it read comes back as
safetensors; a file may not make more of itself than it holds.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from core.errors import UserError
from core.storage import check_room

REFUSED = 3
"""Exit code of the child for a file that it does not take; the reason is on stderr."""
NESTED = ("state_dict", "model")
"""Entries under which training programs keep the weights."""
FENCED = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "ctypes.")
"""Audit events (PEP 578) that end the reading."""
MINUTES = 10


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` or `.pth`; raises `UserError` for whatever else the file holds."""
    with tempfile.TemporaryDirectory(prefix="diffdoctor-") as folder:
        check_room(Path(folder), path.stat().st_size)
        target = Path(folder) / "tensors.safetensors"
        words = [sys.executable, "-P", "-m", "detector.pickled", str(path.resolve()), str(target)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60 * MINUTES)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{path} was not read in {MINUTES} minutes: copy it again.") from error
        if done.returncode == REFUSED:
            raise UserError(f"{path} {done.stderr.strip().splitlines()[-1]}")
        if done.returncode:
            raise UserError(f"{path} cannot be read: it is damaged, copy or download it again.")
        return safetensors.torch.load(target.read_bytes())


def main(source: Path, target: Path) -> int:
    """What the child does."""
    sys.addaudithook(_fence)
    try:
        loaded = torch.load(
            source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source)
        )
    except Exception:  # whatever a damaged or hostile file can cause; nothing of it goes on
        return _refuse("is damaged or holds more than tensors: copy or download it again.")
    nested = loaded if isinstance(loaded, dict) else {}
    found = next((nested[n] for n in NESTED if isinstance(nested.get(n), dict)), loaded)
    wrong = _fault(found, source.stat().st_size)
    if wrong:
        return _refuse(wrong)
    packed = torch.contiguous_format  # whatever layout in memory it was saved in
    own = {name: tensor.detach().clone(memory_format=packed) for name, tensor in found.items()}
    safetensors.torch.save_file(own, target)
    return 0


def _fault(found: Any, held: int) -> str | None:
    """Why this is no plain table of tensors, as the end of a sentence."""
    if not isinstance(found, dict) or not found:
        return "holds no weights by name: name the file of a state dict."
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"holds more than weights ({name!r}): save the state dict alone."
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            return f"holds {name!r} in a form that is not read: save it as a plain tensor."
    if sum(value.numel() * value.element_size() for value in found.values()) > held:
        return "would grow beyond its own size: copy or download it again."
    return None


def _fence(event: str, _arguments: tuple) -> None:
    if event.startswith(FENCED):
        raise PermissionError(event)


def _refuse(reason: str) -> int:
    print(reason, file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
