"""`diffdoctor convert` on FLUX: q, k and v in one module and apart again."""

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from tests.base_models.families import CASES
from tests.chain import with_adapters
from tests.treat_output import lora_files as files
from tests.treat_output.conversions import (
    TRUE,
    converted,
    equal,
    flux,
    loaded,
    read,
    same,
    true_size,
)
from treat import convert, verify
from treat.lora import lora_state
from treat.lora_files import flux as flux_names


def test_q_k_and_v_of_different_a_are_packed_block_diagonally(tmp_path, capsys):
    source = files.save(tmp_path / "flux.safetensors", flux())
    kohya = converted(source, "kohya", tmp_path)
    assert "rank 4 grows to 16" in capsys.readouterr().out
    qkv = "lora_unet_double_blocks_0_img_attn_qkv"
    written, peft = read(kohya), read(source)
    assert written[f"{qkv}.lora_down.weight"].shape == (12, files.WIDTH)
    assert written[f"{qkv}.alpha"] == 12
    delta = files.delta(*(written[f"{qkv}.lora_{half}.weight"] for half in ("down", "up")))
    parts = [f"transformer.transformer_blocks.0.attn.to_{one}.lora_" for one in "qkv"]
    each = [files.delta(peft[f"{one}A.weight"], peft[f"{one}B.weight"]) for one in parts]
    assert torch.equal(delta, torch.cat(each))
    assert same(converted(kohya, "peft", tmp_path), source)
    report = verify.examine(kohya)
    assert report.verdicts[0].whole and report.findings == []


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_few_bits_stay_what_they_are(tmp_path, dtype):
    source = files.save(tmp_path / "a.safetensors", {n: t.to(dtype) for n, t in flux().items()})
    again = converted(converted(source, "kohya", tmp_path), "peft", tmp_path)
    assert {t.dtype for t in read(again).values()} == {dtype}
    wide = ({n: t.float() for n, t in read(path).items()} for path in (again, source))
    assert equal(*wide)


def test_one_a_for_all_is_kept_once(tmp_path):
    source = files.save(tmp_path / "flux.safetensors", flux(shared=True))
    kohya = converted(source, "kohya", tmp_path)
    qkv = "lora_unet_double_blocks_0_img_attn_qkv"
    assert read(kohya)[f"{qkv}.lora_down.weight"].shape == (4, files.WIDTH)
    assert same(converted(kohya, "peft", tmp_path), source)


@pytest.mark.parametrize("lost", ["to_k", "to_q", "proj_mlp"])
def test_a_part_that_was_not_trained_is_left_as_it_was(tmp_path, lost):
    tensors = {name: one for name, one in flux().items() if lost not in name}
    source = files.save(tmp_path / "flux.safetensors", tensors)
    kohya = converted(source, "kohya", tmp_path)
    assert same(converted(kohya, "peft", tmp_path), source)


def test_ranks_that_differ_are_packed_too(tmp_path):
    tensors = flux()
    q = "transformer.transformer_blocks.0.attn.to_q.lora_"
    tensors[f"{q}A.weight"] = tensors[f"{q}A.weight"][:1]
    tensors[f"{q}B.weight"] = tensors[f"{q}B.weight"][:, :1]
    source = files.save(tmp_path / "flux.safetensors", tensors)
    assert same(converted(converted(source, "kohya", tmp_path), "peft", tmp_path), source)


def test_nothing_learned_comes_back_as_it_was(tmp_path):
    tensors = {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in flux(shared=True).items()}
    source = files.save(tmp_path / "flux.safetensors", tensors)
    assert same(converted(converted(source, "kohya", tmp_path), "peft", tmp_path), source)


def test_fused_weights_of_others_are_taken_apart(tmp_path):
    """One A for q, k and v, as kohya trains it; and ComfyUI's own prefix."""
    for prefix in ("lora_unet_", "diffusion_model."):
        source = files.save(tmp_path / "fused.safetensors", files.fused(prefix, alpha=8.0))
        out = tmp_path / f"{prefix}.safetensors"
        convert.main(convert.Config(file=source, to="peft", out=out))
        again, a_and_b = read(out), list(files.fused(prefix).values())[:2]
        parts = [f"transformer.transformer_blocks.0.attn.to_{one}.lora_" for one in "qkv"]
        each = [files.delta(again[f"{one}A.weight"], again[f"{one}B.weight"]) for one in parts]
        assert torch.equal(torch.cat(each), 2 * files.delta(*a_and_b))


def test_diffusers_takes_apart_what_was_packed(tmp_path):
    source = files.save(tmp_path / "flux.safetensors", true_size())
    kohya = converted(source, "kohya", tmp_path)
    theirs = FluxPipeline.lora_state_dict(str(kohya))
    assert equal(theirs, read(source))


def test_diffusers_loads_flux_from_kohyas_names(tmp_path):
    """Into a tiny FLUX: double blocks only, for its reader fixes the sides of the single ones."""
    state = lora_state(with_adapters(CASES["flux"].model()).network)
    tensors = {f"transformer.{n}": t for n, t in state.items() if not n.startswith("single")}
    source = files.save(tmp_path / "flux.safetensors", tensors)
    CASES["flux"].pipeline().save_pretrained(tmp_path / "base")
    kohya = converted(source, "kohya", tmp_path, base=str(tmp_path / "base"))
    assert equal(loaded("flux", kohya), loaded("flux", source))


def test_shift_and_scale_change_places(tmp_path):
    a, b = files.pair(0, 2 * TRUE, TRUE, 1)
    names = [f"transformer.norm_out.linear.lora_{half}.weight" for half in "AB"]
    source = files.save(tmp_path / "flux.safetensors", dict(zip(names, (a, b), strict=True)))
    kohya = converted(source, "kohya", tmp_path)
    theirs = FluxPipeline.lora_state_dict(str(kohya))
    assert torch.equal(theirs["norm_out.linear.lora_B.weight"], b)
    assert same(converted(kohya, "peft", tmp_path), source)


def test_flux_keeps_alphas_that_would_round(tmp_path):
    """As tensors: diffusers and ComfyUI read them beside FLUX's PEFT names."""
    state = lora_state(with_adapters(CASES["flux"].model()).network)
    modules = sorted({name.rsplit(".", 2)[0] for name in state})
    tensors = {}
    for index, module in enumerate(modules):
        place = "lora_transformer_" + module.replace(".", "_")
        tensors[f"{place}.lora_down.weight"] = state[f"{module}.lora_A.weight"]
        tensors[f"{place}.lora_up.weight"] = state[f"{module}.lora_B.weight"]
        tensors[f"{place}.alpha"] = torch.tensor(3.0 if index % 2 else 5.0)
    source = files.save(tmp_path / "onetrainer.safetensors", tensors)
    out = converted(source, "peft", tmp_path)
    found = loaded("flux", out)
    for index, module in enumerate(modules):
        pair = state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"]
        wanted = files.delta(*pair, 3.0 if index % 2 else 5.0)
        assert torch.allclose(found[module].double(), wanted, rtol=1e-5, atol=1e-7)
    assert verify.examine(out).findings == []


def test_wrong_prefixes_are_mended(tmp_path):
    bare = {name.removeprefix("transformer."): one for name, one in flux().items()}
    source = files.save(tmp_path / "bare.safetensors", bare)
    assert same(converted(source, "peft", tmp_path), files.save(tmp_path / "f.safetensors", flux()))


def test_every_module_of_flux_is_held_by_the_original_code():
    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
    names = [n for n, one in network.named_modules() if isinstance(one, torch.nn.Linear)]
    assert len(names) > 30
    for name in names:
        whole = flux_names.holder(name)
        assert whole is not None and name in whole.holds
        assert flux_names.fused("lora_unet_" + whole.place) == whole
        assert flux_names.underscored(name.replace(".", "_")) == name
        if len(whole.holds) > 1:
            sides = [network.get_submodule(one).weight.shape[0] for one in whole.holds]
            assert sides == flux_names.rows(whole, network.get_submodule(name).weight.shape[1])
