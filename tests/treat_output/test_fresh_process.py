"""Every family's exported files, opened by plain pipelines in a process without this project."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from tests.base_models.families import CASES, HEIGHT, PROMPTS, WIDTH, draw
from tests.chain import with_adapters
from tests.tiny import T5_TOKENS
from tests.treat_output import lora_files as files
from tests.treat_output.conversions import deltas
from treat import export
from treat.lora import load_lora_state, lora_state
from treat.lora_kinds import KINDS

ARCHITECTURES = {
    "flux": "schnell", "flux, guidance embedded": "dev", "sdxl": "sdxl", "sd": "sd1",
    "sd, v": "sd2-768", "sd3": "sd3", "kolors": "kolors",
}  # fmt: skip
STEPS, SEEDS = 2, (3, 4)
PROGRAM = """
import json, sys
import diffusers, safetensors.torch, torch
from peft.tuners.lora import LoraLayer

opened = ""
for job in json.loads(sys.argv[1]):
    if job["base"] != opened:
        opened = job["base"]
        pipeline = getattr(diffusers, job["pipeline"]).from_pretrained(opened)
        pipeline.set_progress_bar_config(disable=True)
    if job["file"]:
        pipeline.load_lora_weights(job["folder"], weight_name=job["file"])
    found = {}
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.lora_A
            a, b = (half[adapter].weight.detach().float() for half in (layer.lora_A, layer.lora_B))
            found[name] = b @ a * layer.scaling[adapter]
    seeds = [torch.Generator().manual_seed(seed) for seed in job["seeds"]]
    found["images"] = pipeline(generator=seeds, output_type="pt", **job["call"]).images.contiguous()
    safetensors.torch.save_file(found, job["out"])
    if job["file"]:
        pipeline.unload_lora_weights()
strangers = {"treat", "base_models", "core", "detector"} & set(sys.modules)
assert not strangers, strangers
"""


def jobs_of(case, folder):
    """One for the base alone, and one for each file in fp32 and bf16."""
    model = CASES[case].model()
    call = {"prompt": PROMPTS, "height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS,
            "guidance_scale": model.guidance}  # fmt: skip
    if KINDS[ARCHITECTURES[case]].prefix == "transformer.":
        call["max_sequence_length"] = T5_TOKENS
    shared = {"pipeline": KINDS[ARCHITECTURES[case]].pipeline, "base": str(folder / "base"),
              "call": call, "seeds": SEEDS}  # fmt: skip
    yield {**shared, "file": "", "folder": "", "out": str(folder / "base.out")}
    for dtype in ("fp32", "bf16"):
        for file in sorted(path.name for path in (folder / dtype).glob("*.safetensors")):
            out = str(folder / f"{dtype}-{file}.out")
            yield {**shared, "folder": str(folder / dtype), "file": file, "out": out}


class Treated:
    """What the trainer holds of one family, and what the fresh process found."""

    def __init__(self, case, folder):
        self.case, self.folder = case, folder
        CASES[case].pipeline().save_pretrained(folder / "base")
        pipeline = type(CASES[case].pipeline()).from_pretrained(folder / "base")
        model = with_adapters(CASES[case].model(pipeline))
        self.state, self.prefix = lora_state(model.network), KINDS[ARCHITECTURES[case]].prefix
        source = {self.prefix + name: one for name, one in self.state.items()}
        lora = files.save(folder / "trained.safetensors", source)
        for dtype in ("fp32", "bf16"):
            given = {"run": lora, "out": folder / dtype, "dtype": dtype}
            export.main(export.Config(architecture=ARCHITECTURES[case], **given))
        self.images, self.deltas = draw(model, seeds=SEEDS, steps=STEPS), deltas(pipeline)
        self.halves = {name: one.to(torch.bfloat16).float() for name, one in self.state.items()}
        load_lora_state(model.network, self.halves)
        self.rounded = draw(model, seeds=SEEDS, steps=STEPS)

    def found(self, dtype):
        """Images and deltas by each file."""
        paths = sorted(self.folder.glob(f"{dtype}*.out"))
        return [safetensors.torch.load_file(path) for path in paths]


@pytest.fixture(scope="module")
def treated(tmp_path_factory):
    """All families, drawn in one process."""
    folder = tmp_path_factory.mktemp("fresh")
    worlds = {}
    for index, case in enumerate(ARCHITECTURES):
        (folder / str(index)).mkdir()
        worlds[case] = Treated(case, folder / str(index))
    jobs = [job for one in worlds.values() for job in jobs_of(one.case, one.folder)]
    words = [sys.executable, "-c", PROGRAM, json.dumps(jobs)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unexpected keys" not in done.stderr and "missing keys" not in done.stderr
    return worlds


def same(left, right):
    """Of images in 0..1: the last bits of float32 are not the same in every process (4e-7 seen)."""
    return (left - right).abs().max() <= 1e-6


every = pytest.mark.parametrize("case", ARCHITECTURES)


@every
def test_the_fp32_files_hold_the_trainers_deltas_and_draw_its_images(treated, case):
    one = treated[case]
    (base,), found = one.found("base"), one.found("fp32")
    assert len(found) == (2 if one.prefix == "unet." else 1)  # PEFT's names, and kohya's
    for there in found:
        images = there.pop("images")
        assert same(images, one.images) and not same(images, base["images"])
        assert there.keys() == one.deltas.keys()
        assert all(torch.equal(there[name], one.deltas[name]) for name in there)


@every
def test_the_bf16_files_are_the_masters_rounded(treated, case):
    one = treated[case]
    found = one.found("bf16")
    assert len(found) == (2 if one.prefix == "unet." else 1)
    for there in found:
        assert same(there.pop("images"), one.rounded)
        for name, delta in there.items():
            a, b = (one.halves[f"{name}.lora_{half}.weight"] for half in "AB")
            assert torch.equal(delta, b @ a), name
    written = safetensors.torch.load_file(one.folder / "bf16" / export.WEIGHTS)
    assert written.keys() == {one.prefix + name for name in one.halves}
    for name, half in one.halves.items():
        assert torch.equal(written[one.prefix + name], half.to(torch.bfloat16))
