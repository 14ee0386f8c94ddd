"""In: a pipeline folder or a Hub id. Out: the `DiffusionModel` of its family, all files checked.

A Hub id may name a revision (a branch, a tag or a commit): `owner/name@revision`, as the Hub's own
file addresses have it. So whatever keeps a base's name keeps its revision.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffusers
import huggingface_hub
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from base_models import flux, kolors, sd, sd3, sdxl, unconditional, unet
from base_models.networks import classes, open_network, quietly
from core.contracts import DiffusionModel
from core.errors import UserError
from core.storage import read_json


class Family(NamedTuple):
    """How a kind of pipeline becomes a model."""

    wrap: Callable[..., Any]
    """A loaded pipeline and the family's options -> `DiffusionModel`."""
    grain: Callable[[int], int]
    """Pixels on the side of a latent cell -> what the sides of an image must divide by."""
    autoencoder: str | None = "vae"
    """Its folder; None: the base draws pixels."""
    halving: str | None = None
    """Folder of a network that asks for cells which divide by its own halvings."""
    prompted: bool = True
    """Whether it reads what it is asked to draw."""
    guidance: Literal["halves", "told"] | None = "halves"
    """`halves`: by a second prediction, of the empty prompt; `told`: a number that the network
    reads where its config has `guidance_embeds`."""


FAMILIES = {
    "FluxPipeline": Family(flux.Flux.from_pipeline, flux.grain, guidance="told"),
    "StableDiffusionXLPipeline": Family(sdxl.from_pipeline, unet.grain),
    "StableDiffusionPipeline": Family(sd.from_pipeline, unet.grain),
    "StableDiffusion3Pipeline": Family(sd3.StableDiffusion3, sd3.grain),
    "KolorsPipeline": Family(kolors.from_pipeline, unet.grain),
    "DDPMPipeline": Family(unconditional.pixels, unconditional.grain, None, "unet", False, None),
    "DDIMPipeline": Family(unconditional.pixels, unconditional.grain, None, "unet", False, None),
    "LDMPipeline": Family(unconditional.latents, unconditional.grain, "vqvae", "unet", False, None),
}
"""By `_class_name` in model_index.json, which is also the class in diffusers."""
LIBRARIES = {"diffusers", "transformers", "kolors"}
"""Components of any other library would be code from strangers (`kolors` is within diffusers)."""
SINGLE_FILE = {"StableDiffusionXLPipeline", "StableDiffusionPipeline"}
"""Families whose checkpoints also go about as one file with every network in it."""
UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}
"""Components that no drawing here needs: neither checked nor loaded."""
MAX_HEADER = 100 * 1024 * 1024
DTYPES = set(
    "BOOL U8 I8 U16 I16 F16 BF16 U32 I32 F32 U64 I64 F64 C64 "
    "F4 F6_E2M3 F6_E3M2 F8_E4M3 F8_E5M2 F8_E8M0".split()
)
"""Of safetensors; with others diffusers takes the file for a pickle and says something else."""
PATTERNS = ["*.json", "*.txt", "*.model", "*/*.safetensors"]
VARIANTS = ["*.bin", "*.fp16.*", "*.non_ema.*"]
"""Second copies of the same weights."""


def load_base(
    base: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> DiffusionModel:
    """Open a base model, frozen. Raise `UserError` before any weight is read if files are missing.

    `base`: a pipeline folder, a Hub id (perhaps with `@revision`), or a .safetensors file that
    stands in a folder with the configs and tokenizers of its family. `options` go to the family's
    wrapper (FLUX: `guidance`, `text_tokens`; SD 3 besides `learn_empty`; the UNets: `guidance`,
    `learn_empty`).

    Switches cuDNN's attention off in this process: on an H100, under torch 2.11 with CUDA 13.0, its
    gradient ended FLUX's first backward pass with an illegal memory access.
    """
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"dtype is {dtype!r}; give torch's own, such as torch.bfloat16.")
    torch.backends.cuda.enable_cudnn_sdp(False)
    path = locate(base)
    name = check_base(path)
    return FAMILIES[name].wrap(_open(name, path, dtype), **options).to(device)


def locate(base: str, weights: bool = True) -> Path:
    """Where the base is; fetched from the Hub if need be, perhaps without its weights."""
    path = Path(base).expanduser()
    return path if path.exists() else _download(base, weights)


def repository(base: str) -> tuple[str, str | None]:
    """What a Hub id names without its revision, and the revision if it names one."""
    name, _, revision = base.partition("@")
    return name, revision or None


def read_parts(path: Path) -> tuple[str, Path, dict[str, tuple[str, str]]]:
    """The family, the folder of the configs, and library and class of every part that is used."""
    family, folder = check_base(path, weights=False), config_folder(path)
    index, unused = _read_index(folder), left_out(folder)
    used = {n: e for n, e in index.items() if isinstance(e, list) and n not in unused}
    return family, folder, {name: (entry[0], entry[1]) for name, entry in used.items()}


def _open(name: str, path: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a checked folder or file."""
    pipeline, folder = getattr(diffusers, name), config_folder(path)
    unused = left_out(folder)
    if folder == path:
        found = classes(read_parts(path)[2])
        networks = {part: open_network(cls, path / part, dtype) for part, cls in found.items()}
        with quietly():
            return pipeline.from_pretrained(path, local_files_only=True, **networks, **unused)
    broken = UserError(f"{path} does not fit the configs beside it, or is no whole {name}.")
    try:
        loaded = pipeline.from_single_file(
            str(path), config=str(folder), torch_dtype=dtype, local_files_only=True, **unused
        )
    except (KeyError, ValueError, NotImplementedError, SingleFileComponentError) as error:
        raise broken from error
    networks = [part for part in loaded.components.values() if isinstance(part, torch.nn.Module)]
    if any(tensor.is_meta for network in networks for tensor in network.parameters()):
        raise broken  # a tensor that the file lacks stays without memory
    return loaded


def left_out(folder: Path) -> dict[str, None]:
    """The components that are not loaded: unused here, or absent (SD 3 without its T5)."""
    entries = {n: entry for n, entry in _read_index(folder).items() if isinstance(entry, list)}
    return {n: None for n, entry in entries.items() if n in UNUSED or entry[:1] in ([], [None])}


def config_folder(path: Path) -> Path:
    """Where the configs are: a single file has them beside it."""
    return path.parent if path.is_file() else path


def check_base(path: Path, weights: bool = True) -> str:
    """The family of a complete pipeline; every safetensors header agrees with its file's size.

    Without `weights` the configs are enough.
    """
    folder = config_folder(path)
    family = pipeline_class(path)
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{folder} holds a {family}, and only these can be treated: {known}.")
    if folder != path and weights:
        _check_single_file(path, family)
    check_components(path, weights)
    return family


def check_prompts(base: str, given: bool) -> None:
    """Raise `UserError` where a base reads prompts and none are `given`, or it reads none and some
    are; no weights are read."""
    reads = reads_prompts(base)
    if reads and not given:
        raise UserError(f"{base} draws what it is asked for: give --prompts FILE.")
    if given and not reads:
        raise UserError(f"{base} reads no prompts: leave --prompts out.")


def reads_prompts(base: str) -> bool:
    """Whether a base draws what it is asked for; no weights are read."""
    return FAMILIES[check_base(locate(base, weights=False), weights=False)].prompted


def pipeline_class(path: Path) -> str:
    """What `model_index.json` says: a class of diffusers, perhaps of no family here."""
    return str(_read_index(config_folder(path)).get("_class_name"))


def check_components(path: Path, weights: bool = True) -> None:
    """Raise `UserError` for parts that are missing, damaged, or made of strangers' code."""
    folder, index = config_folder(path), _read_index(config_folder(path))
    single = folder != path
    for name, entry in index.items():
        given = isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
        if given and name not in UNUSED:
            _check_component(folder / name, library=entry[0], weights=weights and not single)


def _check_single_file(path: Path, family: str) -> None:
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is no .safetensors file: convert it (pickles are not opened).")
    if family not in SINGLE_FILE:
        raise UserError(f"A {family} is opened from its whole folder, not from a single file.")
    check_safetensors(path)


def _names_repository(base: str) -> bool:
    name, at, revision = base.partition("@")
    whole = bool(revision) or not at  # `owner/name@` has lost what it should say
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and whole


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no model_index.json: name the folder that save_pretrained wrote, a "
            "single file among the configs of its family, or a Hub id such as "
            "black-forest-labs/FLUX.1-schnell."
        )
    return read_json(path)


def _check_component(folder: Path, library: str, weights: bool) -> None:
    if library not in LIBRARIES:
        raise UserError(
            f"{folder.name} needs code from '{library}', which is never run: "
            "use a base made of diffusers' and transformers' own classes."
        )
    files = list(folder.glob("*")) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} is missing or empty: copy or download the base again.")
    for path in files:
        if path.suffix == ".json":
            read_json(path)
    if weights and (folder / "config.json").is_file():
        _check_weights(folder)


def _check_weights(folder: Path) -> None:
    weights = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        weights |= set(read_json(index).get("weight_map", {}).values())
    if not weights:
        raise UserError(
            f"{folder} has no .safetensors weights: save the base with safe_serialization=True "
            "(pickled .bin files are not opened)."
        )
    for name in sorted(weights):
        check_safetensors(folder / name)


def check_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes by name; `UserError` unless the header parses and names the bytes there are."""
    if not path.is_file():
        raise UserError(f"{path} is missing: copy or download the base again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        header = file.read(length) if length <= min(size, MAX_HEADER) else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        end = max(entry["data_offsets"][1] for entry in entries.values())
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        known = all(entry["dtype"] in DTYPES for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is damaged: copy or download it again.") from error
    if not known:
        raise UserError(f"{path} holds numbers of an unknown kind: copy or download it again.")
    if size != 8 + length + end:
        raise UserError(
            f"{path} is damaged ({size} bytes instead of {8 + length + end}): "
            "copy or download it again."
        )
    return shapes


def _download(base: str, weights: bool = True) -> Path:
    """A snapshot of a Hub repository; one sentence for whatever keeps it away."""
    if not _names_repository(base):
        raise UserError(f"There is no base model {base}: check the path.")
    name, revision = repository(base)
    unwanted = VARIANTS if weights else [*VARIANTS, "*.safetensors"]
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=PATTERNS, ignore_patterns=unwanted
        )
    except GatedRepoError as error:
        raise UserError(
            f"{base} is gated: accept its licence at https://huggingface.co/{name} "
            "and log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no revision {revision}: name a branch, a tag or a commit of "
            f"https://huggingface.co/{name}/commits."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{base} is neither a folder nor a model on the Hub: check the name."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{base} cannot be fetched from the Hub now: check the connection, or name a folder."
        ) from error
    if weights and not any(Path(folder).glob("*/*.safetensors")):
        raise UserError(
            f"{base} has come without .safetensors weights: check the connection (an estimate "
            "fetches the configs alone); pickled .bin files are not opened."
        )
    return Path(folder)
