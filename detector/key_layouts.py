"""Tensor names of segmentation-models-pytorch in, those of transformers 5 out, and back.

Both libraries hold the same SegFormer (mit_b0 .. mit_b5) under other names; smp keeps key and value
in one matrix. The canonical layout at rest is transformers'.
"""

import re

import torch
from torch import Tensor

STAGES = 4

# (pattern of the smp name, the transformers name); {0}.. are the groups, in order.
_ENCODER = (
    (r"patch_embed(\d)\.proj", "patch_embeddings.proj"),
    (r"patch_embed(\d)\.norm", "patch_embeddings.layer_norm"),
    (r"norm(\d)", "layer_norm"),
    (r"block(\d)\.(\d+)\.norm1", "blocks.{1}.layernorm_before"),
    (r"block(\d)\.(\d+)\.norm2", "blocks.{1}.layernorm_after"),
    (r"block(\d)\.(\d+)\.attn\.q", "blocks.{1}.attention.q_proj"),
    (r"block(\d)\.(\d+)\.attn\.proj", "blocks.{1}.attention.o_proj"),
    (r"block(\d)\.(\d+)\.attn\.sr", "blocks.{1}.attention.sequence_reduction.sequence_reduction"),
    (r"block(\d)\.(\d+)\.attn\.norm", "blocks.{1}.attention.sequence_reduction.layer_norm"),
    (r"block(\d)\.(\d+)\.mlp\.(fc1|fc2|dwconv\.dwconv)", "blocks.{1}.mlp.{2}"),
)
_HEAD = {
    "decoder.fuse_stage.0": "decode_head.linear_fuse",
    "decoder.fuse_stage.1": "decode_head.batch_norm",
    "segmentation_head.0": "decode_head.classifier",
}
_KEY_VALUE = re.compile(r"encoder\.block(\d)\.(\d+)\.attn\.kv\.(weight|bias)")


def smp_to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename (and split key/value of) a whole `smp.Segformer` state; raises `KeyError`."""
    renamed = {}
    for name, tensor in state.items():
        if found := _KEY_VALUE.fullmatch(name):
            key, value = tensor.chunk(2, dim=0)
            renamed[_attention_name(found, "k_proj")] = key.contiguous()
            renamed[_attention_name(found, "v_proj")] = value.contiguous()
        else:
            renamed[_renamed(name)] = tensor
    return renamed


def transformers_to_smp(state: dict[str, Tensor], smp_names: list[str]) -> dict[str, Tensor]:
    """The inverse, for the names that the smp network has; raises `KeyError` for a missing one."""
    renamed = {}
    for name in smp_names:
        if found := _KEY_VALUE.fullmatch(name):
            halves = [state[_attention_name(found, half)] for half in ("k_proj", "v_proj")]
            renamed[name] = torch.cat(halves, dim=0)
        else:
            renamed[name] = state[_renamed(name)]
    return renamed


def _attention_name(found: re.Match[str], half: str) -> str:
    stage, block, kind = found.groups()
    return f"segformer.stages.{int(stage) - 1}.blocks.{block}.attention.{half}.{kind}"


def _renamed(name: str) -> str:
    """One smp name in transformers' words; raises `KeyError` where the layout has no such name."""
    module, _, kind = name.rpartition(".")
    if module in _HEAD:
        return f"{_HEAD[module]}.{kind}"
    if found := re.fullmatch(r"decoder\.mlp_stage\.(\d)\.linear", module):
        # smp counts from the deepest stage, transformers from the first.
        return f"decode_head.linear_projections.{STAGES - 1 - int(found[1])}.proj.{kind}"
    for pattern, words in _ENCODER:
        if found := re.fullmatch(r"encoder\." + pattern, module):
            stage = int(found[1]) - 1
            return f"segformer.stages.{stage}.{words.format(*found.groups())}.{kind}"
    raise KeyError(name)
