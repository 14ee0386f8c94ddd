"""ComfyUI's own loader on exported files, FLUX and SDXL at true size on the meta device.

ComfyUI is GPL and no package: it is neither copied nor imported here, but run as it lies in a
checkout that DIFFDOCTOR_COMFYUI names, in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks.full_shapes import FULL
from benchmarks.full_shapes import outline as full_size
from tests.treat_output import lora_files as files
from treat import export, single_file
from treat.lora import add_lora, lora_state

CHECKOUT = os.environ.get("DIFFDOCTOR_COMFYUI", "")
pytestmark = pytest.mark.skipif(
    not CHECKOUT, reason="name a checkout of ComfyUI: DIFFDOCTOR_COMFYUI=/path/to/ComfyUI"
)
RANK = 2
FLUX_SHAPES = {
    "img_in.weight": (3072, 64), "txt_in.weight": (3072, 4096),
    "vector_in.in_layer.weight": (3072, 768), "final_layer.linear.weight": (64, 3072),
    **{f"double_blocks.{i}.img_attn.norm.key_norm.scale": (128,) for i in range(19)},
    **{f"single_blocks.{i}.norm.key_norm.scale": (128,) for i in range(38)},
}  # fmt: skip
"""Of FLUX.1-schnell, as much as ComfyUI looks at to know it."""
PROGRAM = """
import json, logging, sys
checkout, job = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, checkout)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import safetensors.torch, torch
import comfy.lora, comfy.lora_convert, comfy.model_detection

shapes = json.load(open(job["shapes"]))
state = {n: torch.empty(shape, device="meta") for n, shape in shapes.items()}
prefix = job["prefix"]
config = comfy.model_detection.model_config_from_unet(state, prefix)
model = config.get_model(state, prefix, device="meta")
own = model.state_dict()
names = sorted(n.removeprefix("diffusion_model.") for n in own if n.startswith("diffusion_model."))
said = {"model": type(model).__name__, "names": names, "files": {}}
places = comfy.lora.model_lora_keys_unet(model, {})
warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger().addHandler(handler)
for path in job["files"]:
    lora = comfy.lora_convert.convert_lora(safetensors.torch.load_file(path))
    patches = comfy.lora.load_lora(lora, places)
    strengths, lost = set(), []
    for target, patch in patches.items():
        name, offset = target[:2] if isinstance(target, tuple) else (target, None)
        up, down, alpha = patch.weights[:3]
        strengths.add(1.0 if alpha is None else alpha / down.shape[0])
        sides = list(own[name].shape[:2]) if name in own else []
        if offset and sides:
            sides[offset[0]] = offset[2]
        if sides != [up.shape[0], down.shape[1]]:
            lost.append(name)
    for target in job["changed"]:
        found = {str(t): p for t, p in patches.items()}[target]
        up, down = found.weights[:2]
        zero = torch.zeros(up.shape[0], down.shape[1])
        made = comfy.lora.calculate_weight([(1.0, found, 1.0, None, None)], zero, target)
        safetensors.torch.save_file({"change": made}, path + ".change")
    said["files"][path] = {"patches": len(patches), "strengths": sorted(strengths), "lost": lost}
said["warnings"] = warnings
json.dump(said, open(job["out"], "w"))
"""


def comfyui(folder, **job):
    """What ComfyUI says of files."""
    words = [sys.executable, "-c", PROGRAM, CHECKOUT]
    job["out"] = str(folder / "said.json")
    done = subprocess.run([*words, json.dumps(job)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(Path(job["out"]).read_text())


def trained(base, prefix, folder, alpha):
    """A LoRA file of every module that is trained, on the true sides; scale alpha / RANK."""
    model = full_size(FULL[base], torch.float16)
    add_lora(model.network, RANK, model.lora_targets("attention+mlp"), seed=0)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        prefix + name: torch.randn(one.shape, generator=draw) * 0.01
        for name, one in lora_state(model.network).items()
    }
    settings = {f"{prefix}r": RANK, f"{prefix}lora_alpha": alpha}
    path = folder / "trained.safetensors"
    files.save(path, tensors, {"lora_adapter_metadata": json.dumps(settings)})
    return model, tensors, path


@pytest.mark.parametrize("alpha", [RANK, 3 * RANK])
@pytest.mark.parametrize("base", ["flux", "sdxl"])
def test_every_key_loads_at_the_right_strength(base, alpha, tmp_path):
    """At alpha = rank, and where another alpha was folded away."""
    prefix, kind = ("transformer.", "schnell") if base == "flux" else ("unet.", "sdxl")
    model, tensors, lora = trained(base, prefix, tmp_path, alpha)
    given = {"run": lora, "dtype": "fp32", "architecture": kind}
    export.main(export.Config(**given, out=tmp_path / "out"))
    if base == "flux":
        shapes, start, file = FLUX_SHAPES, "", export.WEIGHTS
        target = "('diffusion_model.double_blocks.0.img_attn.qkv.weight', (0, 0, 3072))"
        module = "transformer_blocks.0.attn.to_q"
    else:
        config = model.network.config
        shapes = {single_file.UNET + single_file.unet_name(name, config): list(one.shape)
                  for name, one in full_size(FULL[base], torch.float16).network.state_dict().items()
                  }  # fmt: skip
        start, file = single_file.UNET, export.KOHYA
        target = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
        module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    (tmp_path / "shapes.json").write_text(json.dumps(shapes))
    path = str(tmp_path / "out" / file)
    said = comfyui(tmp_path, shapes=str(tmp_path / "shapes.json"), prefix=start, files=[path],
                   changed=[target])  # fmt: skip
    assert said["model"] == {"flux": "Flux", "sdxl": "SDXL"}[base] and said["warnings"] == []
    assert said["files"][path] == {
        "patches": len(tensors) // 2, "strengths": [1.0], "lost": [],
    }  # fmt: skip
    if base == "sdxl":  # and the single file's names are those of ComfyUI's own UNet
        assert said["names"] == sorted(name.removeprefix(start) for name in shapes)
    change = safetensors.torch.load_file(path + ".change")["change"]
    a, b = (tensors[f"{prefix}{module}.lora_{half}.weight"] for half in "AB")
    torch.testing.assert_close(change, (b @ a) * (alpha / RANK), rtol=1e-5, atol=1e-8)
