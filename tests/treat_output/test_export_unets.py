"""A UNet's adapter in both namings: plain diffusers reads either back to the bit."""

import json

import pytest
import safetensors.torch
import torch

from core.errors import UserError
from tests.base_models.families import CASES
from tests.chain import inputs, with_adapters
from tests.tiny import SIZE
from treat import export
from treat.adapter import Adapter, read_adapter
from treat.lora import lora_state
from treat.lora_files.names import TRANSFORMER, UNET
from treat.lora_kinds import KINDS, kind_of

KIND = {"sdxl": "sdxl", "sd": "sd1", "kolors": "kolors"}


@pytest.fixture(scope="module", params=list(KIND))
def treated(request, tmp_path_factory):
    """The case's name, a model with adapters and the folder of their export in fp32."""
    folder, model = tmp_path_factory.mktemp("lora"), with_adapters(CASES[request.param].model())
    source = {UNET + name: tensor for name, tensor in lora_state(model.network).items()}
    safetensors.torch.save_file(source, folder / "trained.safetensors")
    config = {"run": folder / "trained.safetensors", "out": folder / "out", "dtype": "fp32"}
    export.main(export.Config(architecture=KIND[request.param], **config))
    return request.param, model, folder / "out"


@torch.no_grad()
def drawn(model):
    noise, schedule, text = inputs(model, 2, SIZE)
    return model.step(noise, 0, schedule, text)


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", export.KOHYA])
def test_plain_pipelines_load_it(treated, file):
    case, model, folder = treated
    pipeline = CASES[case].pipeline()
    before = drawn(CASES[case].model(pipeline))
    pipeline.load_lora_weights(folder, weight_name=file)
    after = drawn(CASES[case].model(pipeline))
    assert torch.equal(after, drawn(model)) and not torch.equal(after, before)


def test_what_was_written_is_read_again(treated):
    _, model, folder = treated
    again, own = read_adapter(folder).tensors, lora_state(model.network)
    assert again.keys() == own.keys()
    assert all(torch.equal(again[name], own[name]) for name in own)


def test_kohyas_names_and_alphas(treated):
    case, model, folder = treated
    with safetensors.safe_open(folder / export.KOHYA, framework="pt") as file:
        said, names = file.metadata(), set(file.keys())
        alphas = [file.get_tensor(name) for name in names if name.endswith(".alpha")]
    assert len(names) == 3 * len(lora_state(model.network)) // 2
    assert any(name.endswith("attn1_to_out_0.lora_down.weight") for name in names)
    assert all(alpha.item() == 4.0 and alpha.dtype == torch.float32 for alpha in alphas)
    assert "lora_adapter_metadata" not in said  # with alphas, diffusers refuses the two together
    assert said.get("modelspec.architecture") == KINDS[KIND[case]].modelspec
    assert said["ss_network_module"] == "networks.lora"
    card = (folder / "README.md").read_text()
    assert KINDS[KIND[case]].pipeline in card and (export.KOHYA in card) == (case != "kolors")


def test_an_sd3s_adapter_is_read_by_its_plain_pipeline(tmp_path):
    pipeline = CASES["sd3"].pipeline()
    model = with_adapters(CASES["sd3"].model())
    source = {TRANSFORMER + name: tensor for name, tensor in lora_state(model.network).items()}
    safetensors.torch.save_file(source, tmp_path / "trained.safetensors")
    config = {"run": tmp_path / "trained.safetensors", "out": tmp_path / "out", "dtype": "fp32"}
    export.main(export.Config(architecture="sd3", **config))
    before = drawn(CASES["sd3"].model(pipeline))
    pipeline.load_lora_weights(tmp_path / "out", weight_name="pytorch_lora_weights.safetensors")
    after = drawn(CASES["sd3"].model(pipeline))
    assert torch.equal(after, drawn(model)) and not torch.equal(after, before)
    with safetensors.safe_open(tmp_path / "out" / export.WEIGHTS, framework="pt") as file:
        assert file.metadata()["ss_network_module"] == "networks.lora_sd3"
    assert "StableDiffusion3Pipeline.from_pretrained" in (tmp_path / "out/README.md").read_text()


def of(*names):
    return Adapter({f"{n}.lora_{half}.weight": torch.ones(2, 2) for n in names for half in "AB"})


def test_what_the_base_is_must_be_known_and_fit():
    unet, both = of("down_blocks.0.attn1.to_q"), of("transformer_blocks.0.attn.to_q")
    flux = of("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q")
    assert kind_of(flux, None) == KINDS["schnell"]
    with pytest.raises(UserError, match="--architecture .schnell, dev, sd3"):
        kind_of(both, None)
    assert kind_of(both, "sd3") == KINDS["sd3"]
    with pytest.raises(UserError, match="--architecture .sdxl, sd1, sd2, sd2-768, kolors"):
        kind_of(unet, None)
    with pytest.raises(UserError, match="of no schnell"):
        kind_of(unet, "schnell")
    with pytest.raises(UserError, match="of no sdxl"):
        kind_of(flux, "sdxl")
    with pytest.raises(UserError, match="neither a FLUX or SD 3 transformer nor a UNet"):
        kind_of(of("elsewhere.to_q"), "sdxl")


def test_the_runs_base_says_what_it_is(tmp_path):
    adapters = {"": of("down_blocks.0.attn1.to_q")}
    adapters["flux"] = adapters["sd3"] = of("transformer_blocks.0.attn.to_q")
    for case, name in {
        "flux": "schnell", "flux, guidance embedded": "dev", "sdxl": "sdxl", "sd": "sd1",
        "sd, v": "sd2-768", "kolors": "kolors", "sd3": "sd3",
    }.items():  # fmt: skip
        CASES[case].pipeline().save_pretrained(tmp_path / case)
        if name == "sd2-768":
            path = tmp_path / case / "unet/config.json"
            path.write_text(
                json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 1024})
            )
        adapter = adapters.get(case.split(",")[0], adapters[""])
        made_on = Adapter(adapter.tensors, run={"base": str(tmp_path / case)})
        assert kind_of(made_on, None) == KINDS[name], case
