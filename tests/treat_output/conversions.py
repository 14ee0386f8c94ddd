"""What tests of conversions share: how files are read again, by us and by diffusers."""

import safetensors
import safetensors.torch
import torch
from peft.tuners.lora import LoraLayer

from tests.base_models.families import CASES
from tests.treat_output import lora_files as files
from treat import convert


def converted(source, to, folder, **options):
    out = folder / f"{source.stem}-{to}.safetensors"
    convert.main(convert.Config(file=source, to=to, out=out, **options))
    return out


def read(path):
    return safetensors.torch.load_file(path)


def header(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def same(left, right):
    left, right = read(left), read(right)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def deltas(pipeline):
    """Of every weight that a loaded adapter changes, as peft itself computes it."""
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    layers = {n: one for n, one in network.named_modules() if isinstance(one, LoraLayer)}
    return {name: one.get_delta_weight(next(iter(one.lora_A))) for name, one in layers.items()}


def loaded(case, path):
    pipeline = CASES[case].pipeline()
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    return deltas(pipeline)


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def flux(rank=files.RANK, shared=False):
    tensors = files.sound("peft-transformer")
    for name in [name for name in tensors if "lora_A" in name and shared]:
        tensors[name] = files.pair(99)[0]
    return tensors


TRUE = 3072


def true_size(rank=2):
    """One single block of FLUX's own sides, which diffusers' reader insists on."""
    block = "transformer.single_transformer_blocks.3."
    tensors = {}
    for index, inner in enumerate(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")):
        a, b = files.pair(index, TRUE * (4 if inner == "proj_mlp" else 1), TRUE, rank)
        tensors |= {f"{block}{inner}.lora_A.weight": a, f"{block}{inner}.lora_B.weight": b}
    a, b = files.pair(7, TRUE, TRUE, rank)
    tensors |= {"transformer.transformer_blocks.1.attn.to_add_out.lora_A.weight": a}
    return tensors | {"transformer.transformer_blocks.1.attn.to_add_out.lora_B.weight": b}
