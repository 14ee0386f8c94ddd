"""What `treat.lora_files.readers` says of diffusers is what diffusers does, on tiny pipelines.

ComfyUI, Forge and sd-scripts are not at hand: of them only the counts that their sources give are
pinned here (docs/downstream.md says what was read and not run).
"""

import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from peft.tuners.lora import LoraLayer

from tests.base_models.families import CASES
from tests.chain import with_adapters
from tests.treat_output import lora_files as files
from treat import verify
from treat.lora import lora_state
from treat.lora_files.flux import holder
from treat.lora_files.readers import COMFYUI, DIFFUSERS, FORGE, KOHYA, READERS

PART = {"sdxl": "unet", "sd": "unet", "flux": "transformer", "sd3": "transformer"}
STATES = {}


def state(case):
    """peft's pairs by module, of an adapter on the tiny base."""
    if case not in STATES:
        found = lora_state(with_adapters(CASES[case].model()).network)
        modules = sorted({name.rsplit(".", 2)[0] for name in found})
        STATES[case] = {
            m: (found[f"{m}.lora_A.weight"], found[f"{m}.lora_B.weight"]) for m in modules
        }
    return dict(STATES[case])


def write(pairs, prefix, halves=("lora_A", "lora_B"), alpha=None, split="."):
    tensors = {}
    for index, (module, (a, b)) in enumerate(pairs.items()):
        place = prefix + module.replace(".", split)
        tensors |= {f"{place}.{halves[0]}.weight": a, f"{place}.{halves[1]}.weight": b}
        if alpha is not None:
            tensors[f"{place}.alpha"] = torch.tensor(alpha[index % len(alpha)])
    return tensors


def kohya(pairs, *alpha):
    return write(pairs, "lora_unet_", files.KOHYA, alpha or None, "_")


def uneven(pairs):
    """Every third of rank 2."""
    return {
        m: (a[:2], b[:, :2]) if i % 3 == 0 else (a, b)
        for i, (m, (a, b)) in enumerate(pairs.items())
    }


def without(tensors, part):
    lost = next(name for name in tensors if part in name)
    return {name: one for name, one in tensors.items() if name != lost}


def top(case, *modules):
    """Pairs for modules outside the blocks, by kohya's names of FLUX."""
    network = CASES[case].pipeline().transformer
    tensors = {}
    for module in modules:
        out, wide = network.get_submodule(module).weight.shape
        place = "lora_unet_" + holder(module).place
        tensors |= write({"": files.pair(0, out, wide)}, place, files.KOHYA, [4.0])
    return tensors


def meta(case, prefix, **changes):
    return files.settings(list(state(case)), prefix, **changes)


def qkv(prefix, split="_", halves=files.KOHYA, alpha=(6,)):
    return write({"img_attn.qkv": files.pair(0, 48, 16)}, prefix, halves, alpha, split)


def attention(case):
    return {m: pair for m, pair in state(case).items() if ".attn." in m}


FIRST = "down_blocks.1.attentions.0.transformer_blocks.0"
FILES = {
    "PEFT": ("sdxl", lambda: write(state("sdxl"), "unet."), {}),
    "PEFT, alpha 2 r": ("sdxl", lambda: write(state("sdxl"), "unet."), {"lora_alpha": 8}),
    "PEFT, alpha 0": ("sdxl", lambda: write(state("sdxl"), "unet."), {"lora_alpha": 0}),
    "PEFT, alpha a text": ("sdxl", lambda: write(state("sdxl"), "unet."), {"lora_alpha": "32"}),
    "PEFT, alpha by a pattern": ("sdxl", lambda: write(state("sdxl"), "unet."), {
        "alpha_pattern": {"mid_block.*to_q": 8, "to_.": 2}}),
    "PEFT, no alpha": ("sdxl", lambda: write(state("sdxl"), "unet."), {"lora_alpha": None}),
    "FLUX, some alphas": ("flux", lambda: {n: t for n, t in write(
        state("flux"), "transformer.", alpha=[2.0]).items()
        if "alpha" not in n or ".to_q" in n}, None),
    "PEFT, r wrong": ("sdxl", lambda: write(state("sdxl"), "unet."), {"r": 2}),
    "PEFT, a field": ("sdxl", lambda: write(state("sdxl"), "unet."), {"colour": 1}),
    "PEFT, alpha tensors": ("sdxl", lambda: write(state("sdxl"), "unet.", alpha=[4.0]), None),
    "PEFT, ranks differ": ("sdxl", lambda: write(uneven(state("sdxl")), "unet."), None),
    "PEFT, integers": ("sdxl", lambda: {n: t.long() for n, t in write(
        state("sdxl"), "unet.").items()}, None),
    "bare": ("sdxl", lambda: write(state("sdxl"), ""), None),
    "base_model": ("sdxl", lambda: write(state("sdxl"), "base_model.model."), None),
    "PEFT, DoRA": ("sdxl", lambda: write(state("sdxl"), "unet.") | {
        f"unet.{m}.lora_magnitude_vector": torch.ones(len(b)) for m, (_, b) in state("sdxl").items()
    }, None),
    "another tensor": ("sdxl", lambda: write(state("sdxl"), "unet.") | {"step": torch.ones(1)},
                       None),
    "before PEFT": ("sdxl", lambda: files.old(state("sdxl")), None),
    "kohya": ("sdxl", lambda: kohya(state("sdxl"), 4.0), None),
    "kohya, SD": ("sd", lambda: kohya(state("sd"), 4.0), None),
    "kohya, alpha 1": ("sdxl", lambda: kohya(state("sdxl"), 1.0), None),
    "kohya, int64": ("sdxl", lambda: kohya(state("sdxl"), 8), None),
    "kohya, alphas differ": ("sdxl", lambda: kohya(state("sdxl"), 8.0, 4.0, 4.0), None),
    "kohya, no alpha": ("sdxl", lambda: kohya(state("sdxl")), None),
    "kohya, ranks differ": ("sdxl", lambda: kohya(uneven(state("sdxl"))), None),
    "kohya, ranks and alphas differ": (
        "sdxl", lambda: kohya(uneven(state("sdxl")), 2.0, 4.0, 4.0), None),
    "kohya, some alphas": ("sdxl", lambda: {n: t for n, t in kohya(state("sdxl"), 8.0).items()
                                           if "mid_block" in n or "alpha" not in n}, None),
    "kohya, metadata": ("sdxl", lambda: kohya(state("sdxl"), 4.0), {}),
    "kohya, no up": ("sdxl", lambda: without(kohya(state("sdxl"), 4.0), "lora_up"), None),
    "FLUX, no B": ("flux", lambda: without(write(state("flux"), "transformer."), "lora_B"), None),
    "fused, no up": ("flux", lambda: without(qkv("lora_unet_double_blocks_0_"), "up"), None),
    "fused, no down": ("flux", lambda: without(qkv("lora_unet_double_blocks_0_"), "down"), None),
    "kohya, no down": ("sdxl", lambda: without(kohya(state("sdxl"), 4.0), "lora_down"), None),
    "kohya, an alpha alone": ("sdxl", lambda: kohya(state("sdxl"), 4.0) | {
        "lora_unet_conv_in.alpha": torch.tensor(4.0)}, None),
    "FLUX": ("flux", lambda: write(state("flux"), "transformer."), None),
    "FLUX, alpha": ("flux", lambda: write(state("flux"), "transformer.", alpha=[8.0, 4.0]), None),
    "FLUX, int64": ("flux", lambda: write(state("flux"), "transformer.", alpha=[4]), None),
    "FLUX, alpha and metadata": (
        "flux", lambda: write(state("flux"), "transformer.", alpha=[4.0]), {}),
    "FLUX, kohya's halves": (
        "flux", lambda: write(state("flux"), "transformer.", files.KOHYA, [8.0]), None),
    "FLUX, bare": ("flux", lambda: write(state("flux"), ""), None),
    "FLUX, top": ("flux", lambda: top("flux", "x_embedder", "context_embedder", "proj_out"), None),
    "FLUX, fused": ("flux", lambda: qkv("lora_unet_double_blocks_0_"), None),
    "FLUX, ComfyUI": ("flux", lambda: qkv("diffusion_model.double_blocks.0.", "."), None),
    "FLUX, ComfyUI, PEFT": ("flux", lambda: qkv(
        "diffusion_model.double_blocks.0.", ".", ("lora_A", "lora_B"), None), None),
    "FLUX, XLabs": ("flux", lambda: {
        n.replace("lora_A", "down").replace("lora_B", "up"): t
        for n, t in write({"processor.qkv_lora1": files.pair(0, 48)}, "double_blocks.0.").items()
    }, None),
    "kohya, original blocks": ("sdxl", lambda: write({
        f"{attention}_{inner}": state("sdxl")[f"{FIRST}.{attention}.{inner}"]
        for attention, inner in (("attn1", "to_q"), ("attn2", "to_v"))
    }, "lora_unet_input_blocks_3_1_transformer_blocks_0_", files.KOHYA, [8.0]), None),
    "FLUX, OneTrainer": (
        "flux", lambda: write(attention("flux"), "lora_transformer_", files.KOHYA, [4.0], "_"),
        None),
    "FLUX, OneTrainer, all": (
        "flux", lambda: write(state("flux"), "lora_transformer_", files.KOHYA, [4.0], "_"), None),
    "FLUX, diffusers' helper": ("flux", lambda: convert_state_dict_to_kohya(
        write(state("flux"), "transformer.")), None),
    "FLUX, another tensor": ("flux", lambda: write(state("flux"), "transformer.") | {
        "step": torch.ones(1)}, None),
    "FLUX, a weight of the base": ("flux", lambda: write(state("flux"), "transformer.") | {
        "transformer.proj_out.bias": torch.full((16,), 7.0)}, None),
    "a weight of the base": ("sdxl", lambda: write(state("sdxl"), "unet.") | {
        "unet.conv_in.bias": torch.ones(16)}, None),
    "SD 3, a weight of the base": ("sd3", lambda: write(state("sd3"), "transformer.") | {
        "transformer.proj_out.bias": torch.ones(16)}, None),
    "a third factor": ("sdxl", lambda: write(state("sdxl"), "unet.") | {
        f"unet.{next(iter(state('sdxl')))}.lora_C.weight": torch.ones(4, 4)}, None),
    "FLUX, a third factor": ("flux", lambda: write(state("flux"), "transformer.") | {
        f"transformer.{next(iter(state('flux')))}.lora_C.weight": torch.ones(4, 4)}, None),
    "SD 3": ("sd3", lambda: write(state("sd3"), "transformer."), None),
    "SD 3, alpha": ("sd3", lambda: write(state("sd3"), "transformer.", alpha=[8.0]), None),
}  # fmt: skip
FOLDED = ("FLUX, fused", "FLUX, ComfyUI", "FLUX, OneTrainer")
"""diffusers multiplies A by the scale there: its layers say 1."""


def what_diffusers_does(case, path):
    """Layers and their factors; None where it raises."""
    pipeline = CASES[case].pipeline()
    try:
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
    except (ValueError, KeyError, TypeError, RuntimeError):
        return None
    network = getattr(pipeline, PART[case])
    layers = {n: one for n, one in network.named_modules() if isinstance(one, LoraLayer)}
    return {n: round(float(next(iter(one.scaling.values()))), 6) for n, one in layers.items()}


@pytest.mark.parametrize("name", FILES)
def test_diffusers_does_what_the_table_says(tmp_path, name):
    case, tensors, changes = FILES[name]
    metadata = {} if changes is None else meta(case, f"{PART[case]}.", **changes)
    path = files.save(tmp_path / "a.safetensors", tensors(), metadata)
    report = verify.examine(path)
    said = next(one for one in report.verdicts if one.reader == DIFFUSERS)
    done = what_diffusers_does(case, path)
    assert bool(said.refuses) == (done is None)
    if done is None:
        return
    fused = 3 if name in ("FLUX, fused", "FLUX, ComfyUI", "FLUX, XLabs") else 1
    assert said.loaded * fused == len(done)
    if name in FOLDED:
        assert said.whole
    else:
        assert said.strengths == tuple(sorted(set(done.values())))
    wrong = {reader for one in report.findings for reader in one.wrong}
    assert (DIFFUSERS in wrong) == (not said.whole)


def test_diffusers_puts_a_weight_of_the_base_over_flux(tmp_path):
    path = files.save(tmp_path / "a.safetensors", FILES["FLUX, a weight of the base"][1]())
    pipeline = CASES["flux"].pipeline()
    before = pipeline.transformer.proj_out.bias.clone()
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    assert (pipeline.transformer.proj_out.bias == 7).all() and not (before == 7).any()
    (finding,) = verify.examine(path).findings
    assert finding.code == "base-weight" and finding.places == ("transformer.proj_out.bias",)


def test_a_half_that_is_missing_misleads_diffusers_without_a_word(tmp_path):
    tensors = write(state("sdxl"), "unet.")
    for half in ("lora_A", "lora_B"):
        path = files.save(tmp_path / f"{half}.safetensors", without(tensors, half))
        assert len(what_diffusers_does("sdxl", path)) == len(state("sdxl"))
        assert any(DIFFUSERS in one.wrong for one in verify.examine(path).findings)


def test_peft_names_with_the_adapters_name(tmp_path):
    tensors = write(state("sdxl"), "unet.", ("lora_A.default", "lora_B.default"))
    path = files.save(tmp_path / "a.safetensors", tensors)
    said = {one.reader: one for one in verify.examine(path).verdicts}
    assert said[DIFFUSERS].loaded == len(what_diffusers_does("sdxl", path))
    assert said[FORGE].loaded == 0


@pytest.mark.parametrize(
    ("naming", "loads"),
    [
        ("peft-transformer", (COMFYUI, FORGE)),
        ("kohya-unet", (COMFYUI, FORGE, KOHYA)),
        ("kohya-sgm", (COMFYUI, FORGE, KOHYA)),
        ("kohya-flux", (COMFYUI, FORGE, KOHYA)),
        ("comfy-flux", (COMFYUI, FORGE)),
        ("onetrainer-flux", (COMFYUI,)),
    ],
)
def test_who_loads_a_naming_whole_by_their_sources(tmp_path, naming, loads):
    report = verify.examine(files.save(tmp_path / "a.safetensors", files.sound(naming)))
    served = {one.reader for one in report.verdicts if one.whole} - {DIFFUSERS}
    assert served == set(loads)


def test_a_unets_attention_in_peft_names_is_passed_over(tmp_path):
    path = files.save(tmp_path / "a.safetensors", files.sound("peft-unet"))
    said = {one.reader: one for one in verify.examine(path).verdicts}
    attention = sum(".to_" in name for name in files.UNET)
    assert said[COMFYUI].dropped == said[FORGE].dropped == attention
    assert said[COMFYUI].loaded == len(files.UNET) - attention and said[KOHYA].loaded == 0


def test_a_scale_in_the_metadata_is_read_by_diffusers_alone(tmp_path):
    path = files.save(
        tmp_path / "a.safetensors",
        files.sound("peft-transformer"),
        files.settings(files.FLUX, "transformer.", lora_alpha=8),
    )
    said = {one.reader: one.strengths for one in verify.examine(path).verdicts}
    assert said[DIFFUSERS] == (2.0,) and said[COMFYUI] == said[FORGE] == (1.0,)


def test_every_reader_says_where_its_rules_are_from():
    assert set(verify.SOURCES) == set(READERS)
