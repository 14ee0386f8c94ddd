"""`diffdoctor convert`: the same changes in other names, and diffusers reads them again."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from core.errors import UserError
from diffdoctor import cli
from tests.base_models.families import CASES
from tests.chain import with_adapters
from tests.treat_output import lora_files as files
from tests.treat_output.conversions import (
    converted,
    equal,
    flux,
    header,
    loaded,
    read,
    same,
    true_size,
)
from treat import convert, verify
from treat.lora import lora_state
from treat.lora_files.names import dotted, from_sgm

UNETS = ["sdxl", "sd"]


@pytest.fixture(scope="module", params=UNETS)
def unet(request, tmp_path_factory):
    """The case, and an adapter of its tiny base in PEFT names."""
    state = lora_state(with_adapters(CASES[request.param].model()).network)
    folder = tmp_path_factory.mktemp(request.param)
    tensors = {f"unet.{name}": one for name, one in state.items()}
    return request.param, files.save(folder / "peft.safetensors", tensors)


def test_diffusers_reads_the_same_changes_from_kohyas_names(unet, tmp_path):
    case, source = unet
    kohya = converted(source, "kohya", tmp_path)
    assert equal(loaded(case, kohya), loaded(case, source))
    assert same(converted(kohya, "peft", tmp_path), source)
    assert verify.examine(kohya).findings == []
    alphas = [one for name, one in read(kohya).items() if name.endswith(".alpha")]
    assert len(alphas) == len(read(source)) // 2
    assert all(one.dtype == torch.float32 and one == 4 for one in alphas)


@pytest.mark.parametrize("alpha", [1, 2, 8, 16])
def test_a_scale_is_folded(unet, tmp_path, alpha):
    case, source = unet
    modules = sorted({name[5:].rsplit(".", 2)[0] for name in read(source)})
    said = files.settings(modules, "unet.", lora_alpha=alpha)
    scaled = files.save(tmp_path / "scaled.safetensors", read(source), said)
    kohya = converted(scaled, "kohya", tmp_path)
    again = converted(kohya, "peft", tmp_path)
    wanted = loaded(case, scaled)
    assert equal(loaded(case, kohya), wanted) and equal(loaded(case, again), wanted)
    assert json.loads(header(again)["lora_adapter_metadata"])["unet.lora_alpha"] == 4
    assert verify.examine(kohya).findings == []


def test_a_scale_that_would_round_is_kept(unet, tmp_path):
    case, source = unet
    modules = sorted({name[5:].rsplit(".", 2)[0] for name in read(source)})
    said = files.settings(modules, "unet.", lora_alpha=3)
    scaled = files.save(tmp_path / "scaled.safetensors", read(source), said)
    kohya = converted(scaled, "kohya", tmp_path)
    assert {float(t) for n, t in read(kohya).items() if n.endswith("alpha")} == {3.0}
    again = converted(kohya, "peft", tmp_path)
    assert same(again, source)
    assert json.loads(header(again)["lora_adapter_metadata"])["unet.lora_alpha"] == 3
    assert equal(loaded(case, kohya), loaded(case, scaled))
    assert equal(loaded(case, again), loaded(case, scaled))


def test_ranks_that_differ_go_without_alphas(unet, tmp_path):
    """With them, diffusers would take the commonest for all attention (see `downstream`)."""
    case, source = unet
    tensors = read(source)
    for name in [name for name in tensors if "attn1.to_q" in name]:
        tensors[name] = tensors[name][:2] if "lora_A" in name else tensors[name][:, :2]
    uneven = files.save(tmp_path / "uneven.safetensors", tensors)
    kohya = converted(uneven, "kohya", tmp_path)
    assert not any(name.endswith(".alpha") for name in read(kohya))
    assert equal(loaded(case, kohya), loaded(case, uneven))
    assert same(converted(kohya, "peft", tmp_path), uneven)


def test_alphas_that_differ_are_mended_or_refused(tmp_path):
    tensors = files.sound("kohya-unet")
    first = next(name for name in tensors if name.endswith(".alpha"))
    source = files.save(tmp_path / "a.safetensors", tensors | {first: torch.tensor(8.0)})
    again = read(converted(source, "peft", tmp_path))
    place = first.removesuffix(".alpha")
    b = again["unet." + dotted(place) + ".lora_B.weight"]
    assert torch.equal(b, 2 * tensors[f"{place}.lora_up.weight"])
    source = files.save(tmp_path / "b.safetensors", tensors | {first: torch.tensor(3.0)})
    with pytest.raises(UserError, match="do not fold"):
        converted(source, "peft", tmp_path)
    assert not (tmp_path / "b-peft.safetensors").exists()


def test_bf16_stays_bf16(tmp_path):
    tensors = {n: t.bfloat16() for n, t in files.sound("kohya-unet").items()}
    tensors |= {n: torch.tensor(1.0).bfloat16() for n in tensors if n.endswith(".alpha")}
    again = read(converted(files.save(tmp_path / "a.safetensors", tensors), "peft", tmp_path))
    assert {one.dtype for one in again.values()} == {torch.bfloat16}
    for name, up in tensors.items():
        if name.endswith("lora_up.weight"):
            module = dotted(name.removesuffix(".lora_up.weight"))
            assert torch.equal(again[f"unet.{module}.lora_B.weight"] * 4, up)


def test_a_scale_of_three_quarters_is_kept_even_where_b_would_hold_it(tmp_path):
    """3/4 B may be exact, and yet 3/4 B times A rounds otherwise than 3/4 of B A."""
    tensors = files.sound("kohya-unet")
    tensors |= {n: torch.ones_like(t) for n, t in tensors.items() if "lora_up" in n}
    tensors |= {n: torch.tensor(3.0) for n in tensors if n.endswith(".alpha")}
    again = converted(files.save(tmp_path / "a.safetensors", tensors), "peft", tmp_path)
    assert json.loads(header(again)["lora_adapter_metadata"])["unet.lora_alpha"] == 3


def test_a_fold_that_would_leave_the_range_is_not_done(tmp_path):
    tensors = {n: t.half() if "lora" in n.split(".", 1)[1] else t
               for n, t in files.sound("kohya-unet").items()}  # fmt: skip
    tensors |= {n: torch.tensor(2.0**20) for n in tensors if n.endswith(".alpha")}
    again = converted(files.save(tmp_path / "a.safetensors", tensors), "peft", tmp_path)
    assert json.loads(header(again)["lora_adapter_metadata"])["unet.lora_alpha"] == 2**20


# UNets' names


@pytest.mark.parametrize("depth", [[1, 2, 10], [1, 1, 1]])
def test_every_module_of_a_full_unet_is_found_again(depth):
    with torch.device("meta"):
        network = UNet2DConditionModel(
            block_out_channels=(32, 64, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=depth,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
            use_linear_projection=depth[1] == 2,
        )
    layers = torch.nn.Linear, torch.nn.Conv2d
    names = [name for name, one in network.named_modules() if isinstance(one, layers)]
    assert len(names) > 200
    for name in names:
        assert dotted("lora_unet_" + name.replace(".", "_")) == name


def test_the_original_blocks_as_diffusers_reads_them(tmp_path):
    blocks = {
        f"{block}_{inner}"
        for block in ("input_blocks_4", "input_blocks_7", "output_blocks_2", "output_blocks_5")
        for inner in (
            "0_in_layers_2", "0_emb_layers_1", "0_out_layers_3", "0_skip_connection",
            "1_proj_in", "1_proj_out", "1_transformer_blocks_1_attn1_to_q",
            "1_transformer_blocks_0_attn2_to_out_0", "1_transformer_blocks_0_ff_net_0_proj",
        )
    }  # fmt: skip
    blocks |= {
        "input_blocks_3_0_op", "output_blocks_2_2_conv", "middle_block_0_in_layers_2",
        "middle_block_1_transformer_blocks_9_ff_net_2", "middle_block_2_out_layers_3",
        "middle_block_1_proj_in",
    }  # fmt: skip
    tensors = files.named(sorted(blocks), "lora_unet_", files.KOHYA, 4.0)
    source = files.save(tmp_path / "sgm.safetensors", tensors)
    again = read(converted(source, "peft", tmp_path))
    config = SimpleNamespace(layers_per_block=2)
    theirs, _ = StableDiffusionXLPipeline.lora_state_dict(str(source), unet_config=config)
    pipeline = {}
    for name, tensor in theirs.items():
        name = name.replace(".processor.", ".").replace("_lora.", ".lora.")
        name = name.replace("to_out.lora", "to_out.0.lora")
        pipeline[name.replace("lora.down", "lora_A").replace("lora.up", "lora_B")] = tensor
    assert equal(again, pipeline)


def test_names_from_before_peft(tmp_path):
    tensors = files.old({name: files.pair(i) for i, name in enumerate(files.UNET)})
    source = files.save(tmp_path / "old.safetensors", tensors)
    sound = files.save(tmp_path / "sound.safetensors", files.sound("peft-unet"))
    assert same(converted(source, "peft", tmp_path), sound)


def test_names_of_no_module_are_refused(tmp_path):
    assert from_sgm("lora_unet_middle_block_7_in_layers_2") is None
    tensors = files.named(["output_blocks_0_0_a-b"], "lora_unet_", files.KOHYA, 4.0)
    with pytest.raises(UserError, match="no module"):
        converted(files.save(tmp_path / "a.safetensors", tensors), "peft", tmp_path)


# What is refused, and the header


def test_what_cannot_be_held_is_refused(tmp_path):
    wide = {n: torch.cat([t, t]) if "to_q.lora_B" in n else t for n, t in flux().items()}
    cases = {
        "other sides than FLUX": (wide, "kohya"),
        "of FLUX or of SD 3": (
            {n: t for n, t in flux().items() if "single" not in n}, "kohya"),
        "has no module": (files.named(["single_transformer_blocks.0.attn.x"], "transformer."),
                          "kohya"),
        "text encoder": (files.sound("kohya-unet") | {
            f"lora_te1_x.{half}.weight": torch.ones(2, 2) for half in files.KOHYA}, "peft"),
        "a base's own weight": (flux() | {"transformer.proj_out.weight": torch.ones(2, 2)}, "peft"),
        "no part of a LoRA": (flux() | {"transformer.x.lora_C.weight": torch.ones(2, 2)}, "peft"),
        "B without its A": (
            {n: t for n, t in flux().items() if n != next(iter(flux()))}, "kohya"),
        "integer|whole numbers": ({n: t.to(torch.int8) for n, t in flux().items()}, "kohya"),
        "no kohya naming of sd3": (
            files.named(["transformer_blocks.0.attn2.to_q"], "transformer."), "kohya"),
    }  # fmt: skip
    for sentence, (tensors, to) in cases.items():
        source = files.save(tmp_path / "source.safetensors", tensors)
        with pytest.raises(UserError, match=sentence):
            converted(source, to, tmp_path)
        assert not (tmp_path / f"source-{to}.safetensors").exists()


def test_a_base_of_another_family_is_refused(tmp_path):
    for case in ("sdxl", "sd3"):
        CASES[case].pipeline().save_pretrained(tmp_path / case)
        source = files.save(tmp_path / "flux.safetensors", flux())
        with pytest.raises(UserError, match="is of flux"):
            converted(source, "peft", tmp_path, base=str(tmp_path / case))
    content = convert.read(source)
    with pytest.raises(UserError, match="is a MochiPipeline"):
        convert.base_family("MochiPipeline", "base", content)


def test_kolors_is_a_base_of_a_unet_as_sdxl_is(tmp_path):
    CASES["kolors"].pipeline().save_pretrained(tmp_path / "kolors")
    source = files.save(tmp_path / "unet.safetensors", files.sound("peft-unet"))
    named = converted(source, "kohya", tmp_path, base=str(tmp_path / "kolors"))
    without = files.save(tmp_path / "again.safetensors", files.sound("peft-unet"))
    assert same(named, converted(without, "kohya", tmp_path))


def test_scales_of_the_metadata_that_mean_nothing_are_refused(tmp_path):
    for changes, sentence in (
        ({"lora_alpha": "32"}, "no number"),
        ({"lora_alpha": 0}, "not above zero"),
        ({"use_dora": True}, "use_dora"),
    ):
        said = files.settings(files.FLUX, "transformer.", **changes)
        source = files.save(tmp_path / "a.safetensors", flux(), said)
        with pytest.raises(UserError, match=sentence):
            converted(source, "peft", tmp_path)


def test_an_alpha_unsaid_is_pefts(tmp_path):
    said = files.settings(files.FLUX, "transformer.", lora_alpha=None)
    source = files.save(tmp_path / "a.safetensors", flux(), said)
    again = read(converted(source, "peft", tmp_path))
    name = f"transformer.{files.FLUX[0]}.lora_B.weight"
    assert torch.equal(again[name], 2 * flux()[name])


def test_numbers_that_are_none_are_warned_of(tmp_path, capsys):
    tensors = {n: t * torch.nan if "proj_mlp.lora_B" in n else t for n, t in flux().items()}
    converted(files.save(tmp_path / "a.safetensors", tensors), "kohya", tmp_path)
    assert "warning: NaN" in capsys.readouterr().out


def test_nothing_is_overwritten(tmp_path):
    source = files.save(tmp_path / "a.safetensors", flux())
    before = source.read_bytes()
    with pytest.raises(UserError, match="there already"):
        convert.main(convert.Config(file=source, to="kohya", out=source))
    assert source.read_bytes() == before
    with pytest.raises(UserError, match="create it first"):
        convert.main(convert.Config(file=source, to="kohya", out=tmp_path / "no/a.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(before[:-1])
    with pytest.raises(UserError, match="cannot be read .*copy or download it again"):
        converted(tmp_path / "torn.safetensors", "kohya", tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(source), "--to", "kohya", "--out", str(source)])
    assert stop.value.code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "torn.safetensors"]


def test_the_header_is_carried_over_and_its_hashes_recompute(tmp_path):
    said = {
        "modelspec.title": "Hands", "ss_network_dim": "4", "ss_network_alpha": "4.0",
        "sshs_model_hash": "old", "sshs_legacy_hash": "old", "modelspec.hash_sha256": "0xold",
    }  # fmt: skip
    tensors = files.sound("kohya-unet")
    source = files.save(tmp_path / "a.safetensors", tensors, said)
    out = converted(source, "peft", tmp_path)
    assert header(out)["modelspec.title"] == "Hands" and "old" not in header(out).values()
    assert verify.examine(out, None, ("diffusers",)).findings == []
    assert "lora_adapter_metadata" not in header(converted(out, "kohya", tmp_path))


def test_hashes_of_a_file_that_reaches_to_the_legacy_bytes(tmp_path):
    said = {"sshs_model_hash": "old", "sshs_legacy_hash": "old", "ss_steps": "5", "note": "é"}
    source = files.save(tmp_path / "a.safetensors", true_size(rank=12), said)
    out = converted(source, "peft", tmp_path)
    assert out.stat().st_size > 0x110000
    assert not {one.code for one in verify.examine(out).findings}
    content = bytearray(out.read_bytes())
    content[0x108000] ^= 1
    out.write_bytes(content)
    (finding,) = (one for one in verify.examine(out).findings if one.code == "hash")
    assert set(finding.places) == {"sshs_model_hash", "sshs_legacy_hash"}
