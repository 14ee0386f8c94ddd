"""SDXL's single file: diffusers gives the folder back, bit for bit; the names are the release's."""

import importlib.util
import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
import yaml
from diffusers.loaders import single_file_utils as readers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from base_models.load import load_base
from benchmarks.full_shapes import FULL
from benchmarks.full_shapes import outline as full_size
from core.errors import UserError
from tests.base_models.families import CASES, draw
from tests.chain import with_adapters
from tests.tiny import unets
from tests.treat_output import lora_files as files
from treat import export, single_file
from treat.lora import add_lora, lora_state
from treat.lora_kinds import kohya_named


def sdxl(**options):
    """Its text encoders have different widths, by which diffusers tells them apart."""
    return unets.tiny_sdxl(first_width=8, **options)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """A merged pipeline's folder in bf16, with its single file."""
    folder = tmp_path_factory.mktemp("sdxl")
    pipeline = sdxl()
    pipeline.save_pretrained(folder / "base")
    state = lora_state(with_adapters(CASES["sdxl"].model(pipeline)).network)
    lora = files.save(folder / "lora.safetensors", {f"unet.{n}": t for n, t in state.items()})
    given = {"run": lora, "base": str(folder / "base"), "merge": True, "single_file": True}
    export.main(export.Config(**given, out=folder / "treated"))
    return folder / "treated"


def read(path):
    return safetensors.torch.load_file(path)


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def test_diffusers_readers_give_the_folder_back(merged):
    whole = read(merged / "treated.safetensors")
    configs = {part: json.loads((merged / part / "config.json").read_text())
               for part in single_file.PARTS}  # fmt: skip
    folder = {part: read(merged / part / file) for part, file in single_file.PARTS.items()}
    assert {one.dtype for one in folder["unet"].values()} == {torch.bfloat16}
    assert {one.dtype for one in folder["vae"].values()} == {torch.float32}
    again = readers.convert_ldm_unet_checkpoint(dict(whole), configs["unet"])
    assert same(again, folder["unet"])
    assert same(readers.convert_ldm_vae_checkpoint(dict(whole), configs["vae"]), folder["vae"])
    first = readers.convert_ldm_clip_checkpoint(dict(whole))
    first = {name.removeprefix("text_model."): one for name, one in first.items()}
    assert same(first, folder["text_encoder"])
    model = CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"]))
    second = readers.convert_open_clip_checkpoint(model, dict(whole), single_file.OPENCLIP)
    assert same(second, folder["text_encoder_2"])
    numbers = sum(one.numel() for state in folder.values() for one in state.values())
    assert sum(one.numel() for one in whole.values()) == numbers  # and nothing else is in it


def test_it_opens_to_the_folders_pipeline(merged):
    alone, folder = load_base(str(merged / "treated.safetensors")), load_base(str(merged))
    assert torch.equal(draw(alone), draw(folder))
    with safetensors.safe_open(merged / "treated.safetensors", framework="pt") as file:
        said = file.metadata()
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert str(merged.parent) not in json.dumps(said)
    assert "`treated.safetensors`" in (merged / "README.md").read_text()


def test_a_network_that_predicts_v_says_so(tmp_path):
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    for scheduler, said in ((unets.euler(), set()), (unets.euler(**options), {"v_pred", "ztsnr"})):
        sdxl(scheduler=scheduler).save_pretrained(tmp_path)
        single_file.write(tmp_path, "a.safetensors", {})
        assert {"v_pred", "ztsnr"} & read(tmp_path / "a.safetensors").keys() == said
        load_base(str(tmp_path / "a.safetensors"))


def test_shards_and_older_names_are_read(tmp_path):
    pipeline = sdxl()
    pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    sharded = single_file.tensors(tmp_path)
    pipeline.save_pretrained(tmp_path / "whole")
    assert same(sharded, single_file.tensors(tmp_path / "whole"))
    vae = tmp_path / "whole/vae" / single_file.NETWORK
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = read(vae)
    for new, old in older.items():
        state = {name.replace(f".{new}.", f".{old}."): one for name, one in state.items()}
    safetensors.torch.save_file(state, vae)
    encoder = tmp_path / "whole/text_encoder_2" / single_file.ENCODER
    positions = {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    safetensors.torch.save_file(read(encoder) | positions, encoder)
    assert same(sharded, single_file.tensors(tmp_path / "whole"))


def test_what_has_no_such_file_is_refused(tmp_path):
    given = {"run": tmp_path / "lora.safetensors", "out": tmp_path / "out", "single_file": True}
    with pytest.raises(UserError, match="add --merge"):
        export.main(export.Config(**given))
    CASES["kolors"].pipeline().save_pretrained(tmp_path / "kolors")
    with pytest.raises(UserError, match="a KolorsPipeline, and only SDXL"):
        single_file.check(tmp_path / "kolors")
    sdxl().save_pretrained(tmp_path / "base")
    config = tmp_path / "base/unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": [1, 2]}))
    with pytest.raises(UserError, match="unequal lengths"):
        single_file.check(tmp_path / "base")
    (tmp_path / "base/vae" / single_file.NETWORK).unlink()
    with pytest.raises(UserError, match="has no diffusion_pytorch_model"):
        single_file.check(tmp_path / "base")
    unets.tiny_sdxl().save_pretrained(tmp_path / "alike")  # as the miniature's
    with pytest.raises(UserError, match="both text encoders .* wide.*: leave out --single-file"):
        single_file.check(tmp_path / "alike")
    with pytest.raises(UserError, match="no place for 'encoder_hid_proj"):
        single_file.unet_name("encoder_hid_proj.weight", {"layers_per_block": 2})


# At true size, against lists that others keep


def listed(name):
    """The tensors of one of sd-mecha's model descriptions, which is read and not run."""
    found = importlib.util.find_spec("sd_mecha")
    assert found, "`make test` installs it; by hand: pip install --no-deps sd-mecha"
    folder = Path(next(iter(found.submodule_search_locations)))
    text = (folder / f"extensions/builtin/model_configs/{name}.yaml").read_text()
    parts = yaml.CSafeLoader(text).get_single_data()["components"].values()
    return {name: said for part in parts for name, said in part.items()}


def encoder(kind, width, layers, heads):
    with torch.device("meta"):
        return kind(CLIPTextConfig(
            vocab_size=49408, hidden_size=width, intermediate_size=4 * width, projection_dim=width,
            num_hidden_layers=layers, num_attention_heads=heads,
        ))  # fmt: skip


@pytest.fixture(scope="module")
def true_size():
    return full_size(FULL["sdxl"], torch.float16)


def test_names_and_shapes_are_those_of_the_published_file(true_size):
    states = {
        "unet": true_size.network.state_dict(),
        "vae": true_size.vae.state_dict(),
        "text_encoder": encoder(CLIPTextModel, 768, 12, 12).state_dict(),
        "text_encoder_2": encoder(CLIPTextModelWithProjection, 1280, 32, 20).state_dict(),
    }
    written = single_file.original(states, true_size.network.config, levels=4)
    published = listed("sdxl-sgm")
    assert all(list(one.shape) == published[name]["shape"] for name, one in written.items())
    # What need not be there: the schedule's tables, position ids, CLIP's own temperature.
    assert {name for name, said in published.items() if not said.get("optional")} <= set(written)


def test_every_kohya_name_is_in_sd_mechas_list(true_size):
    """As that package forms them: a prefix, and a weight's name with `_` for its dots."""
    names = [n.removesuffix(".weight") for n in listed("sdxl-kohya_but_diffusers")]
    known = {"lora_" + name.replace(".", "_") for name in names}
    add_lora(true_size.network, 4, true_size.lora_targets("attention+mlp"), seed=1)
    places = {name.split(".")[0] for name in kohya_named(lora_state(true_size.network))}
    assert len(places) == 700 and places <= known
