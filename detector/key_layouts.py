"""Tensor names of segmentation-models-pytorch or transformers 4 in, those of transformers 5 out.

All hold the same SegFormer (mit_b0 .. mit_b5) under other names; smp keeps key and value in one
matrix. The canonical layout at rest is transformers 5's; to smp there is a way back. The released
DiffDoctor detector has the names of transformers 4.
"""

import re
from collections.abc import Callable, Iterable

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
# (pattern of the transformers 4 name, the transformers 5 name).
_BLOCK = r"segformer\.encoder\.block\.(\d)\.(\d+)"
_RENAMED_IN_5 = (
    (
        r"segformer\.encoder\.patch_embeddings\.(\d)\.(proj|layer_norm)",
        "segformer.stages.{0}.patch_embeddings.{1}",
    ),
    (r"segformer\.encoder\.layer_norm\.(\d)", "segformer.stages.{0}.layer_norm"),
    (r"decode_head\.linear_c\.(\d)\.proj", "decode_head.linear_projections.{0}.proj"),
    (r"decode_head\.(linear_fuse|batch_norm|classifier)", "decode_head.{0}"),
)
_BLOCK_IN_5 = {
    "layer_norm_1": "layernorm_before",
    "layer_norm_2": "layernorm_after",
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.self.sr": "attention.sequence_reduction.sequence_reduction",
    "attention.self.layer_norm": "attention.sequence_reduction.layer_norm",
    "attention.output.dense": "attention.o_proj",
    "mlp.dense1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
}
_ROOT = re.compile(r"(?:^|(?<=\.))(?:segformer|decode_head|encoder|decoder|segmentation_head)\.")
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


def transformers_4_to_5(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a whole state of transformers 4; raises `KeyError` for a name it does not have."""
    return {_renamed_in_5(name): tensor for name, tensor in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "transformers 4": transformers_4_to_5,
    "transformers 5": dict,
    "smp": smp_to_transformers,
}
"""How the tensors of each layout come to the canonical names."""


def layout_of(names: Iterable[str]) -> str | None:
    """The member of `LAYOUTS` whose names these are like; None for those of no SegFormer."""
    marks = {
        "segformer.encoder.": "transformers 4",
        "segformer.stages.": "transformers 5",
        "segmentation_head.": "smp",
    }
    return next((marks[m] for n in names for m in marks if n.startswith(m)), None)


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what a wrapper (`model.`, `module.`) put before every name.

    Raises `KeyError` for a name that lacks what stands before the first one.
    """
    found = _ROOT.search(next(iter(state), ""))
    prefix = "" if found is None else found.string[: found.start()]
    other = next((name for name in state if not name.startswith(prefix)), None)
    if other is not None:
        raise KeyError(other)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _renamed_in_5(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if found := re.fullmatch(_BLOCK + r"\.(.+)", module):
        stage, block, inner = found.groups()
        if inner in _BLOCK_IN_5:
            return f"segformer.stages.{stage}.blocks.{block}.{_BLOCK_IN_5[inner]}.{kind}"
    for pattern, words in _RENAMED_IN_5:
        if found := re.fullmatch(pattern, module):
            return f"{words.format(*found.groups())}.{kind}"
    raise KeyError(name)


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
