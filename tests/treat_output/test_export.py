"""What the trainer holds is what plain diffusers loads: same images, same bits."""

import json
import shutil
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import FluxPipeline

from core import checkpoint
from core.errors import UserError
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import digest as detector_digest
from detector.storage import save_detector
from tests.tiny import SIZE, save_tiny
from treat import export, export_header
from treat.adapter import Adapter, attach, read_adapter
from treat.arms import Draw, Sampling, draw_images, encode, load_arm
from treat.lora import add_lora, lora_parameters, lora_state
from treat.lora_files.names import TRANSFORMER

PROMPTS, SEEDS = ["a hand", "a face, blue eyes"], [3, 4]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def network(base):
    model = load_arm(sampling(base), None)
    add_lora(model.network, 4, model.lora_targets("attention+mlp"), seed=1)
    draw = torch.Generator().manual_seed(0)
    for weight in lora_parameters(model.network):
        weight.data = torch.randn(weight.shape, generator=draw) * 0.2
    return model


@pytest.fixture(scope="module")
def run(base, network, tmp_path_factory):
    """A run folder as `diffdoctor treat` leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "treat"
    (folder / "checkpoints").mkdir(parents=True)
    state = lora_state(network.network)
    for step in (5, 9):
        tensors = {"adapter": {name: tensor * (step / 5) for name, tensor in state.items()}}
        checkpoint.save(folder / "checkpoints", step, tensors, {})
    (folder / "config.yaml").write_text(
        f"base: {base}\nlearning_rate: 0.001\nseed: 7\nwidth: {SIZE}\nheight: {SIZE}\n"
    )
    (folder / "summary.json").write_text(json.dumps({"best_step": 5}))
    return folder


def sampling(base, batch=1):
    return Sampling(str(base), 2, SIZE, SIZE, batch, "cpu", "fp32")


def ours(model, base):
    images = draw_images(
        model, encode(model, list(map(Draw, PROMPTS, SEEDS)), "cpu"), SEEDS, sampling(base)
    )
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def plain(base, lora=None):
    """What diffusers draws by itself; in a process of its own: `test_fresh_process`."""
    pipeline = FluxPipeline.from_pretrained(base)
    if lora:
        pipeline.load_lora_weights(lora, weight_name=export.WEIGHTS)
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "height": SIZE, "width": SIZE, "output_type": "np"}
    call["max_sequence_length"] = pipeline.tokenizer_2.model_max_length
    images = [
        pipeline(prompt, generator=torch.Generator().manual_seed(seed), **call).images[0]
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    return (np.stack(images) * 255).round().astype(np.uint8)


def test_a_plain_pipeline_draws_the_trainers_images_by_the_fp32_file(base, network, run, tmp_path):
    export.main(export.Config(run=run, out=tmp_path / "lora", dtype="fp32"))
    mine = ours(network, base)
    assert (plain(base, tmp_path / "lora") == mine).all()
    assert (plain(base) != mine).any()  # the adapter does something


def test_bf16_file_is_the_masters_rounded(run, network, tmp_path):
    export.main(export.Config(run=run, out=tmp_path))
    written = safetensors.torch.load_file(tmp_path / "pytorch_lora_weights.safetensors")
    masters = lora_state(network.network)
    assert {name.removeprefix(TRANSFORMER) for name in written} == set(masters)
    for name, tensor in masters.items():
        assert torch.equal(written[TRANSFORMER + name], tensor.to(torch.bfloat16))


def test_the_evaluations_arm_is_the_trainers_network(base, network, run):
    model = load_arm(sampling(base), read_adapter(run))
    assert (ours(model, base) == ours(network, base)).all()


def test_step_is_chosen(run, network, tmp_path):
    export.main(export.Config(run=run, out=tmp_path, step="last", dtype="fp32"))
    name = next(iter(lora_state(network.network)))
    again = read_adapter(tmp_path)
    assert again.step == 9
    assert torch.equal(again.tensors[name], lora_state(network.network)[name] * (9 / 5))
    assert read_adapter(run / "checkpoints" / "step-00000005").digest == read_adapter(run).digest


def test_header(run, tmp_path):
    export.main(export.Config(run=run, out=tmp_path, title="Steady hands", license="apache-2.0"))
    file = (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", file[:8])
    said = json.loads(file[8 : 8 + length])["__metadata__"]
    assert all(isinstance(value, str) for value in said.values())
    assert said["format"] == "pt"
    assert said["modelspec.architecture"] == "flux-1-schnell/lora"
    assert said["modelspec.title"] == "Steady hands"
    assert said["modelspec.resolution"] == f"{SIZE}x{SIZE}"
    assert said["ss_network_dim"] == "4" and float(said["ss_network_alpha"]) == 4.0
    assert said["ss_seed"] == "7" and said["ss_steps"] == "5" == said["diffdoctor.step"]
    whole = export_header.digest(file[8 + length :])
    assert said["sshs_model_hash"] == whole and said["modelspec.hash_sha256"] == "0x" + whole
    assert len(said["sshs_legacy_hash"]) == 8
    settings = json.loads(said["lora_adapter_metadata"])
    assert settings["transformer.r"] == settings["transformer.lora_alpha"] == 4
    assert str(run.parent) not in json.dumps(said) and "/" not in said["ss_output_name"]


def test_card(run, tmp_path):
    export.main(export.Config(run=run, out=tmp_path, title="Steady hands"))
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nbase_model: tiny\nbase_model_relation: adapter\n")
    assert "# Steady hands" in text and "load_lora_weights" in text
    assert str(run.parent) not in text


def test_what_it_was_trained_beside_is_named(run, tmp_path):
    config, said = run / "config.yaml", "Load it with hands.safetensors"
    settings = config.read_text()
    try:
        config.write_text(settings + "beside: adapters/hands.safetensors\n")
        export.main(export.Config(run=run, out=tmp_path / "beside"))
    finally:
        config.write_text(settings)
    export.main(export.Config(run=run, out=tmp_path / "alone"))
    for folder, named in (("beside", True), ("alone", False)):
        file = (tmp_path / folder / "pytorch_lora_weights.safetensors").read_bytes()
        assert (said.encode() in file) == named
        assert (said in (tmp_path / folder / "README.md").read_text()) == named


def test_foreign_scale_is_folded(run, tmp_path):
    """alpha = 2 rank in the header: B doubles, and the file written again says alpha = rank."""
    source = read_adapter(run)
    tensors = {TRANSFORMER + name: tensor for name, tensor in source.tensors.items()}
    settings = {"transformer.r": 4, "transformer.lora_alpha": 8}
    path = tmp_path / "foreign.safetensors"
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    export.main(export.Config(run=path, out=tmp_path / "out", dtype="fp32"))
    again = read_adapter(tmp_path / "out")
    for name, tensor in source.tensors.items():
        factor = 2.0 if name.endswith("lora_B.weight") else 1.0
        assert torch.equal(again.tensors[name], tensor * factor)


def test_an_export_that_is_replaced_is_told(run, tmp_path, capsys):
    told = []
    for dtype in ("fp32", "bf16"):
        export.main(export.Config(run=run, out=tmp_path, dtype=dtype))
        told.append("in place of an earlier export" in capsys.readouterr().out)
    assert told == [False, True]


def test_nothing_of_others_is_overwritten(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        export.main(export.Config(run=run, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_it_is_read_from_is_never_written_over(run, tmp_path):
    first = tmp_path / "first"
    export.main(export.Config(run=run, out=first, dtype="fp32"))
    content = (first / export.WEIGHTS).read_bytes()
    for path in (first, first / export.WEIGHTS):
        with pytest.raises(UserError, match="would be lost: name another --out"):
            export.main(export.Config(run=path, out=first, scale=0.5, architecture="schnell"))
    assert (first / export.WEIGHTS).read_bytes() == content
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        export.main(export.Config(run=run, out=tmp_path / "mine"))
    with pytest.raises(UserError, match="is a file"):
        export.main(export.Config(run=run, out=tmp_path / "mine/README.md/below"))


def test_another_programs_file_of_the_same_name_stays(run, tmp_path):
    content = safetensors.torch.save({"x": torch.zeros(1)})
    (tmp_path / export.WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="holds other files"):
        export.main(export.Config(run=run, out=tmp_path))
    assert (tmp_path / export.WEIGHTS).read_bytes() == content


def test_an_earlier_export_outlives_a_full_disk(run, tmp_path, monkeypatch):
    given = {"run": run, "out": tmp_path / "out"}
    export.main(export.Config(**given, title="first"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="disk full"):
        export.main(export.Config(**given, title="second", dtype="fp32"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"r": 2, "lora_alpha": 2, "alpha_pattern": {"x": 8}}, "strengths of its own"),
        ({"r": 2, "lora_alpha": 2, "use_rslora": True}, "strengths of its own"),
        ({"r": 2, "lora_alpha": [2]}, "cannot be read"),
        ([1], "cannot be read"),
    ],
)
def test_strengths_that_one_number_does_not_say(tmp_path, settings, says):
    path = tmp_path / "lora.safetensors"
    pair = {"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 2)}
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    safetensors.torch.save_file(pair, path, metadata=metadata)
    with pytest.raises(UserError, match=says):
        read_adapter(path)


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"name": 1}'])
@pytest.mark.parametrize("name", ["run.json", "summary.json"])
def test_a_runs_damaged_notes(run, tmp_path, name, note):
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / name).write_text(note)
    with pytest.raises(UserError, match="damaged|no best step|run of 'None'"):
        read_adapter(tmp_path / "copy")


def test_an_export_that_was_stopped_is_made_by_the_same_command(run, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    given = export.Config(run=run, out=tmp_path / "out")
    with monkeypatch.context() as patched:
        write = export.write_atomic
        patched.setattr(export, "write_atomic",
                        lambda path, content: stop() if path.name == export.WEIGHTS
                        else write(path, content))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            export.main(given)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["README.md"]
    export.main(given)
    assert (tmp_path / "out" / export.WEIGHTS).is_file()


def test_figures_are_of_the_adapter_at_its_own_strength(run, tmp_path):
    for changed in ({"scale": 0.1}, {"also": (f"{run}=1",)}):
        given = {"run": run, "out": tmp_path / "out", "evaluation": tmp_path, **changed}
        with pytest.raises(UserError, match="at its own strength"):
            export.main(export.Config(**given))
    assert not (tmp_path / "out").exists()


def test_a_hub_id_keeps_its_owner(run, tmp_path):
    given = {"run": run, "base": "black-forest-labs/FLUX.1-schnell", "architecture": "schnell"}
    export.main(export.Config(**given, out=tmp_path / "out"))
    card = (tmp_path / "out/README.md").read_text()
    assert 'from_pretrained("black-forest-labs/FLUX.1-schnell")' in card


def test_a_base_that_is_neither_folder_nor_hub_id(run, tmp_path):
    with pytest.raises(UserError, match="--base nonsense is no folder here"):
        export.main(export.Config(run=run, base="nonsense", out=tmp_path / "out"))
    for folder in (tmp_path, ""):
        with pytest.raises(UserError, match=r"has no model_index\.json"):
            export.main(export.Config(run=run, base=str(folder), out=tmp_path / "out"))


def test_what_no_reader_loads_whole_is_not_called_done(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "rounded", lambda adapter, dtype: {
        name: tensor[:, :1].contiguous() if name.endswith("lora_B.weight") else tensor
        for name, tensor in adapter.tensors.items()
    })  # fmt: skip
    with pytest.raises(UserError, match="not every reader would load it whole"):
        export.main(export.Config(run=run, out=tmp_path / "out"))


@pytest.mark.parametrize(("shape", "dtype"), [((0, 8), torch.float32), ((4, 8), torch.int8)])
def test_what_is_no_adapters_numbers(tmp_path, shape, dtype):
    a = torch.zeros(shape, dtype=dtype)
    state = {"transformer.m.lora_A.weight": a, "transformer.m.lora_B.weight": a.T.contiguous()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="floating-point numbers of rank 1 or more"):
        read_adapter(tmp_path / "a.safetensors")


def test_what_is_not_finite_is_not_written(run, tmp_path):
    with pytest.raises(UserError, match=r"not finite.*smaller --scale"):
        export.main(export.Config(run=run, scale=1e40, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_strength_that_drowns_the_weights_is_told(run, tmp_path, capsys):
    export.main(export.Config(run=run, out=tmp_path / "usual"))
    usual = capsys.readouterr().out
    export.main(export.Config(run=run, scale=1e6, out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "warning: a change as large as the weights" in said
    export.main(export.Config(run=run, scale=0, out=tmp_path / "none"))
    assert "every change is zero" in capsys.readouterr().out
    assert "every change is zero" not in usual


def test_runs_of_different_bases_are_not_summed(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    settings = (other / "config.yaml").read_text()
    given = {"run": run, "also": (f"{other}=0.5",)}
    export.main(export.Config(**given, out=tmp_path / "same"))
    (other / "config.yaml").write_text(settings.replace("base: ", "base: /elsewhere"))
    with pytest.raises(UserError, match="different bases.*--base"):
        export.main(export.Config(**given, out=tmp_path / "out"))
    export.main(export.Config(**given, base="one/for-both", out=tmp_path / "said"))


def test_a_run_of_another_program_has_no_adapter(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text('{"program": "detector"}')
    with pytest.raises(UserError, match="run of 'detector'"):
        export.main(export.Config(run=run, also=(f"{tmp_path}=1",), out=tmp_path / "out"))


def test_exporting_again_is_fine(run, tmp_path):
    for _ in range(2):
        export.main(export.Config(run=run, out=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "pytorch_lora_weights.safetensors",
    ]


@pytest.mark.parametrize("step", ["7", "newest"])
def test_a_step_that_is_not_there(run, tmp_path, step):
    with pytest.raises(UserError, match="5"):
        export.main(export.Config(run=run, out=tmp_path, step=step))


def test_no_adapter(tmp_path):
    for path in (tmp_path, tmp_path / "missing.safetensors"):
        with pytest.raises(UserError, match="holds no adapter"):
            read_adapter(path)
    (tmp_path / "bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 not a header at all")
    with pytest.raises(UserError, match="no readable safetensors"):
        read_adapter(tmp_path / "bad.safetensors")
    safetensors.torch.save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="no tensor"):
        read_adapter(tmp_path / "none.safetensors")
    named = {f"x.lora_{half}.default.weight": torch.zeros(2, 2) for half in "AB"}
    safetensors.torch.save_file(named, tmp_path / "default.safetensors")
    with pytest.raises(UserError, match="diffdoctor convert .*--to peft"):
        read_adapter(tmp_path / "default.safetensors")
    whole = {"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}
    safetensors.torch.save_file(whole, tmp_path / "kohya.safetensors")
    with pytest.raises(UserError, match="diffdoctor convert .*--to peft"):
        read_adapter(tmp_path / "kohya.safetensors")


def test_adapter_of_another_base(run, base):
    source = read_adapter(run)
    strange = {"elsewhere." + name: tensor for name, tensor in source.tensors.items()}
    model = load_arm(sampling(base), None)
    with pytest.raises(UserError, match="another base"):
        attach(model.network, type(source)(strange))


def test_every_detector_that_taught_is_named_by_its_digest(tmp_path):
    folders = [
        save_detector(SegformerDetector(SegformerConfig(), seed=seed), tmp_path / str(seed), {})
        for seed in (0, 1)
    ]
    run = {"detector": str(folders[0]), "further_detectors": [str(folders[1])]}
    said = export_header.provenance(Adapter({}, run=run), {})["diffdoctor.detector_sha256"]
    said = said.split(",")
    assert said == [detector_digest(folder) for folder in folders] and said[0] != said[1]
    assert not export_header.provenance(Adapter({}), {})["diffdoctor.detector_sha256"]
