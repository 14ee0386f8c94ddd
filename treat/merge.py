"""A base's folder and adapters in; a pipeline folder with their sum in its weights out.

Only the network's files are written anew, one after the other, so that the memory needed is the
largest of them; every other file is carried over byte for byte. What is left out would still hold
the untreated network: its other variants and formats, and whole-model files beside the folders.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from base_models.load import check_base, check_safetensors, locate
from core import storage
from core.errors import UserError
from core.storage import read_json
from treat.combine import Part

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"
CARD, BASE_CARD = "README.md", "README.base.md"
PICKLED = {".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5"}
MODELS = PICKLED | {".safetensors", ".gguf", ".onnx", ".onnx_data", ".pb", ".xml"}
"""Endings of files with weights, or a graph around them."""
LOCAL = {".git", ".cache", ".huggingface"}
"""What tools leave in a downloaded folder."""
WIDE = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
"""Weights that can be added to."""
CODES = {"F8_E4M3", "F8_E5M2", "I8", "U8"}
"""As safetensors names what quantised weights are kept in."""


class Base(NamedTuple):
    """A base that an adapter can be merged into, checked; no weight was read."""

    folder: Path
    network: str
    """`unet` or `transformer`: the folder of what is changed."""
    files: dict[str, dict[str, tuple[int, ...]]]
    """The network's weight files, and the shapes in each."""


def open_base(base: str, network: str, parts: Sequence[Part]) -> Base:
    """Check the base and that every module is in it; raises `UserError` before any weight is read.

    For a base in few bits too: its weights are codes with scales, which nothing can be added to
    without rounding all of them again.
    """
    folder = locate(base)
    if folder.is_file():
        raise UserError(
            f"{folder} is a single file, and merging writes a pipeline folder: name the folder of "
            "its pipeline (diffusers: from_single_file, then save_pretrained)."
        )
    check_base(folder)
    own = folder / network
    if not (own / "config.json").is_file():
        raise UserError(f"{folder} has no {network}: the adapter is of another base.")
    if "quantization_config" in read_json(own / "config.json"):
        raise quantised(own)
    files = {name: check_safetensors(own / name) for name in weight_files(own)}
    if any(dtypes(own / name) & CODES for name in files):
        raise quantised(own)
    check_parts(files, parts)
    return Base(folder, network, files)


def dtypes(path: Path) -> set[str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def quantised(folder: Path) -> UserError:
    return UserError(
        f"{folder} is quantised, and codes with scales cannot be added to without rounding every "
        "weight again: merge into the base in bf16 or fp32 (--base), and quantise the result."
    )


def weight_files(folder: Path, file: str = WEIGHTS) -> list[str]:
    """Those that `from_pretrained` reads without a variant, by their index where there is one."""
    index = folder / f"{file}.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        if any(Path(str(name)).name != name for name in names):
            raise UserError(f"{index} names files elsewhere: download the base again.")
    else:
        names = [file]
    lost = [name for name in names if not (folder / name).is_file()]
    if lost or not names:
        raise UserError(
            f"{folder} has no {(lost or [file])[0]}: save the base without a variant and with "
            "safetensors (save_pretrained), or download it again."
        )
    return names


def check_parts(files: Mapping[str, Mapping[str, tuple[int, ...]]], parts: Sequence[Part]) -> None:
    """Raise `UserError` unless every module of every part is there, with its sides."""
    shapes = {name: shape for one in files.values() for name, shape in one.items()}
    for part in parts:
        for module in part.adapter.modules:
            a, b = halves(part, module)
            shape = shapes.get(f"{module}.weight")
            if shape is None:
                raise UserError(f"the base has no module '{module}': {part.path} is of another.")
            if shape != (b.shape[0], a.shape[1]):
                raise UserError(f"'{module}' has other sides in this base: {part.path} is not its.")


def halves(part: Part, module: str) -> tuple[Tensor, Tensor]:
    tensors = part.adapter.tensors
    return tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]


# Writing


def check_out(out: Path, need: int) -> None:
    """Raise `UserError` unless the folder is new (or empty) and the disk has room."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already: name a new folder with --out.")
    if out == Path.cwd():
        raise UserError(f"{out} is the current folder, which a merge would replace: name another.")
    storage.check_writable(out.parent)
    storage.check_room(out, need, freed=left_behind(out))


def staging_of(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.merging")


def left_behind(out: Path) -> int:
    """Bytes of a stopped run, which the next one removes first."""
    found = staging_of(out).rglob("*")
    return sum(path.stat().st_size for path in found if path.is_file() and not path.is_symlink())


def size(base: Base, dtype: torch.dtype) -> int:
    """Bytes that the merged folder takes."""
    return network_size(base, dtype) + sum(path.stat().st_size for path in carried(base))


def network_size(base: Base, dtype: torch.dtype) -> int:
    """Bytes of the merged network."""
    numbers = sum(torch.Size(s).numel() for one in base.files.values() for s in one.values())
    return numbers * dtype.itemsize


def carried(base: Base) -> list[Path]:
    """Every file of the base that is copied as it is."""
    return [path for path in files_of(base) if not untreated(path, base)]


def left_out(base: Base) -> list[str]:
    """Files that neither are copied nor have a merged counterpart."""
    own = {base.folder / base.network / name for name in (*base.files, INDEX)}
    lost = [path for path in files_of(base) if untreated(path, base) and path not in own]
    return [str(path.relative_to(base.folder)) for path in lost]


def files_of(base: Base) -> list[Path]:
    walked = os.walk(base.folder, followlinks=True)  # parts may be links to another base's
    found = sorted(Path(folder) / name for folder, _, names in walked for name in names)
    return [path for path in found if not LOCAL & set(path.relative_to(base.folder).parts)]


def untreated(path: Path, base: Base) -> bool:
    """Whether it would hold the network without the adapter, in whatever format."""
    inner = path.relative_to(base.folder).parts
    own = inner[0] == base.network
    return ((own or len(inner) == 1) and path.suffix in MODELS) or (
        own and path.name.endswith(".index.json")
    )


def write(
    base: Base,
    out: Path,
    parts: Sequence[Part],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    extra: Mapping[str, bytes],
    further: Callable[[Path], None] | None = None,
) -> int:
    """Fill a folder beside `out` and rename it when it is whole; bytes of the network.

    `metadata` goes into the header of each of the network's files, `extra` are further files by
    their names, `further` writes more into the filled folder. What a stopped run left beside `out`
    is removed first.
    """
    staging = staging_of(out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with storage.alone(staging.with_suffix(".lock"), f"another merge is writing {out}: wait."):
        try:
            if staging.exists():
                storage.remove_tree(staging)
            copy(base, staging)
            total = sum(
                rewrite(
                    base.folder / base.network / name,
                    staging / base.network,
                    parts,
                    dtype,
                    metadata,
                )
                for name in base.files
            )
            write_index(base, staging / base.network, total)
            for name, content in extra.items():
                storage.write_file(staging / name, content)
            if further:
                further(staging)
            check_base(staging)
            for folder in [*(one for one in staging.rglob("*") if one.is_dir()), staging]:
                storage.sync_folder(folder)
            storage.primitives.rename(staging, out.absolute())
            storage.sync_folder(out.absolute().parent)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, OSError):
                storage.raise_if_full(error, out.absolute(), size(base, dtype))
            raise
    return total


def copy(base: Base, staging: Path) -> None:
    """Links are followed: the Hub's cache is full of them."""
    (staging / base.network).mkdir(parents=True)
    for path in carried(base):
        inner = path.relative_to(base.folder)
        target = staging / (BASE_CARD if inner == Path(CARD) else inner)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        synced(target)


def rewrite(
    source: Path, folder: Path, parts: Sequence[Part], dtype: torch.dtype, said: Mapping[str, str]
) -> int:
    """One file of the network with the sum in it; bytes of its tensors."""
    with safetensors.safe_open(source, framework="pt") as file:
        metadata = {"format": "pt", **(file.metadata() or {}), **said}
        tensors = {
            name: merged(file.get_tensor(name), name, parts, dtype)
            for name in file.keys()  # noqa: SIM118
        }
    safetensors.torch.save_file(tensors, folder / source.name, metadata=metadata)
    synced(folder / source.name)
    return sum(one.numel() * one.element_size() for one in tensors.values())


def merged(weight: Tensor, name: str, parts: Sequence[Part], dtype: torch.dtype) -> Tensor:
    """W + sum_k w_k B_k A_k in float32, rounded once; raises `UserError` where it is not finite."""
    if weight.dtype not in WIDE:
        return weight
    module, total = name.removesuffix(".weight"), weight
    for part in parts:
        there = name.endswith(".weight") and f"{module}.lora_A.weight" in part.adapter.tensors
        if there and part.weight != 0:
            a, b = (half.float() for half in halves(part, module))
            total = total.float() + part.weight * (b @ a)
    if total is not weight and not bool(total.isfinite().all()):
        if not bool(weight.isfinite().all()):
            raise UserError(f"'{name}' of the base is not finite: download the base again.")
        raise UserError(
            f"'{module}' is not finite once merged: run `diffdoctor verify` on its LoRA."
        )
    return total.to(dtype).contiguous()


def write_index(base: Base, folder: Path, total: int) -> None:
    """The index of a sharded network, with its new size."""
    source = base.folder / base.network / INDEX
    if source.is_file():
        said = read_json(source)
        said["metadata"] = {**(said.get("metadata") or {}), "total_size": total}
        storage.write_file(folder / INDEX, (json.dumps(said, indent=2) + "\n").encode())


def synced(path: Path) -> None:
    """On the disk, and readable to whom new files are: safetensors' are their owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    storage.sync_folder(path)  # fsync of any handle
