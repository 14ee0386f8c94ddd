"""A base model and prompts in, a shard store of its images out, which nobody has labelled yet.

    diffdoctor data synthesize --base FOLDER --prompts prompts.jsonl --out store --n-per-prompt 2

Image j of a prompt depends on the base, the seed, the prompt and j alone: running again, or with
more prompts, repeats nothing. OUT/synthesis.json keeps the settings that the images follow from.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from tqdm import tqdm

import core.config
from base_models.foreign import Draw, check_foreign, open_foreign
from base_models.guidance import check_guidance
from base_models.load import FAMILIES, load_base, locate, pipeline_class
from base_models.sample import sample
from base_models.sizes import check_steps, checked_size, usual_size, usual_steps
from core.contracts import Images
from core.digests import model_name
from core.errors import UserError
from core.images import to_uint8
from core.samples import Record, Sample
from core.seeds import mix
from core.shard_writer import ShardWriter
from core.storage import check_writable, write_atomic
from data_balancing.prompt_file import PromptLine, read_prompt_lines
from detector.measure import device

NOISE = 121
"""What a draw is for; see `core.seeds`."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SETTINGS = "synthesis.json"
Size = tuple[int | None, int | None]
"""Height and width in pixels; None leaves it to a pipeline that is of no family here."""


class Config(core.config.Config):
    """Which base draws how many images of which prompts."""

    base: str
    """A pipeline folder or a Hub id; of a folder any pipeline of diffusers that draws prompts."""
    prompts: Path
    """A .jsonl file with `prompt` and `category`, or a .txt with a prompt a line."""
    out: Path
    """Folder of the store."""
    n_per_prompt: int = Field(2, ge=1, le=10_000)
    """Images of each prompt."""
    seed: int = Field(0, ge=0)
    """Another one gives other images of the same prompts."""
    height: int | None = Field(None, ge=8)
    """Pixels. None: the base's own."""
    width: int | None = Field(None, ge=8)
    """Pixels. None: the base's own."""
    steps: int | None = Field(None, ge=1, le=1000)
    """Sampler steps: 4 of FLUX schnell, 28 of dev and 25 of any other, unless given."""
    guidance: float | None = Field(None, ge=0)
    """None: the base's own."""
    batch: int = Field(4, ge=1)
    """Images drawn at once."""
    shard_size: int = Field(100, ge=1)
    """Images of a shard: what an interruption costs at most."""
    licence: str = ""
    """Under which the base lets its images be used; written into every record."""
    dtype: str = Field("fp32", pattern="^(fp32|bf16)$")
    """Of the base's weights: `fp32` or `bf16`, which takes half the memory."""
    device: str = "auto"
    """`auto`, or a torch device."""


def main(config: Config) -> None:
    """Draw what is not there yet."""
    lines = read_prompt_lines(config.prompts)
    check_writable(config.out)
    known = check_drawing(config.base, config.height, config.width, config.guidance, config.steps)
    size: Size = config.height, config.width
    if known:
        size = usual_size(config.base, *size)
    place, folder = device(config.device), locate(config.base)
    steps = config.steps or usual_steps(config.base)
    generator = model_name(folder)
    drawn = {"height": size[0], "width": size[1]}
    drawn |= {"guidance": config.guidance, "dtype": config.dtype}
    claim(config.out, {"generator": generator, "steps": steps, **drawn})
    plan = records(lines, config.n_per_prompt, config.seed, generator, config.licence)
    with ShardWriter(config.out, config.shard_size) as writer:
        missing = [record for record in plan if record.key not in writer]
        if not missing:
            return
        draw = (open_known if known else open_other)(folder, config, place, size, steps)
        with tqdm(total=len(plan), initial=len(plan) - len(missing), desc="synthesize") as bar:
            for part in batches(missing, config.batch, config.shard_size):
                prompts, seeds = [r.prompt for r in part], [r.seed or 0 for r in part]
                images = draw(prompts, seeds)
                for level, record in zip(to_uint8(images), part, strict=True):
                    writer.write(Sample(record.key, level, None, record))
                bar.update(len(part))
    print(f"{config.out}: {len(missing)} new images of {len(plan)}")


def check_drawing(
    base: str,
    height: int | None,
    width: int | None,
    guidance: float | None,
    steps: int | None = None,
) -> bool:
    """Whether the base is of a family here; raises `UserError` for one that cannot draw so."""
    path = Path(base).expanduser()
    family = FAMILIES.get(pipeline_class(path)) if path.is_dir() else None
    if path.is_dir() and family is None:
        check_foreign(path, guidance)
        return False
    if family is not None and not family.prompted:
        raise UserError(f"{path} takes no prompt: give a base that draws what it is asked for.")
    checked_size(base, height, width)
    check_steps(base, steps or usual_steps(base))
    check_guidance(base, guidance)
    return True


def open_known(folder: Path, config: Config, place: torch.device, size: Size, steps: int) -> Draw:
    options: dict[str, Any] = {} if config.guidance is None else {"guidance": config.guidance}
    model = load_base(str(folder), place, DTYPES[config.dtype], **options)

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        how: dict[str, Any] = {"steps": steps, "height": size[0], "width": size[1]}
        return sample(model, prompts, seeds, batch=len(seeds), **how)

    return draw


def open_other(folder: Path, config: Config, place: torch.device, size: Size, steps: int) -> Draw:
    return open_foreign(
        folder,
        place,
        DTYPES[config.dtype],
        steps=steps,
        height=size[0],
        width=size[1],
        guidance=config.guidance,
    )


def records(
    lines: Sequence[PromptLine], each: int, seed: int, generator: str, licence: str = ""
) -> list[Record]:
    """Who the images are: a prompt given twice is one; keys and seeds follow from its text."""
    texts: dict[str, PromptLine] = {}
    for line in lines:
        texts.setdefault(line.prompt.strip(), line)
    found = []
    for text, line in texts.items():
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        for j in range(each):
            found.append(
                Record(
                    key=f"{number:016x}-{seed}-{j}",
                    source="pseudo",
                    category=line.category,
                    prompt=text,
                    generator=generator,
                    seed=mix(NOISE, seed, number, j) % 2**32,  # torch keeps 32 bits
                    licence=licence,
                )
            )
    return found


def batches(plan: Sequence[Record], batch: int, shard_size: int) -> Iterator[list[Record]]:
    """The plan in batches that end where a shard does: a batch may tell in an image's last bits,
    and a store that was interrupted between two shards shall hold the same bytes."""
    for start in range(0, len(plan), shard_size):
        shard = plan[start : start + shard_size]
        yield from (list(shard[at : at + batch]) for at in range(0, len(shard), batch))


def claim(out: Path, settings: dict) -> None:
    """Make the store's folder, or find the same settings there; `UserError` for any other."""
    path, text = out / SETTINGS, json.dumps(settings, indent=2) + "\n"
    if path.is_file():
        if path.read_text() != text:
            raise UserError(f"{out} holds images of other settings ({path}); choose another --out.")
        return
    if out.is_dir() and any(one.name[0] != "." for one in out.iterdir()):
        raise UserError(f"{out} holds other files; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor data synthesize")
