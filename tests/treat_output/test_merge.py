"""A merged pipeline against base + adapter, both opened by plain diffusers, in every family."""

import json
import shutil
from types import SimpleNamespace

import pytest
import safetensors
import safetensors.torch
import torch

from core import storage
from core.errors import UserError
from tests.treat_output import lora_files as files
from tests.treat_output.merging import ARCHITECTURES, World
from treat import export, merge


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def world(request, tmp_path_factory):
    return World(request.param, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return World("flux", tmp_path_factory.mktemp("flux"))


def test_merged_in_fp32_draws_what_base_and_adapter_draw(world, tmp_path):
    merged = world.images(world.pipeline(world.export(tmp_path / "out", merge=True)))
    there = world.with_lora((world.lora, 1.0))
    assert (merged - there).abs().max() <= 1e-3
    assert (merged - world.images(world.pipeline())).abs().max() > 0.01  # and the adapter does act


def test_scale_0_is_the_base(world, tmp_path):
    out = world.export(tmp_path / "out", merge=True, scale=0.0)
    before = safetensors.torch.load_file(world.folder / "base" / world.prefix / merge.WEIGHTS)
    after = safetensors.torch.load_file(out / world.prefix / merge.WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(world.images(world.pipeline(out)), world.images(world.pipeline()))


def test_a_weighted_sum_is_the_same_in_one_file_and_merged(world, tmp_path):
    options = {"scale": 0.7, "also": (f"{world.other}=0.5",)}
    there = world.with_lora((world.lora, 0.7), (world.other, 0.5))
    merged = world.export(tmp_path / "merged", merge=True, **options)
    assert (world.images(world.pipeline(merged)) - there).abs().max() <= 1e-3
    lora = world.export(tmp_path / "lora", architecture=ARCHITECTURES[world.case], **options)
    names = [lora / export.WEIGHTS]
    if world.prefix == "unet":
        names.append(lora / export.KOHYA)
    for path in names:
        one = world.with_lora((path, 1.0))
        assert (one - there).abs().max() <= 1e-3


def test_the_sum_is_added_in_float32_and_rounded_once(flux, tmp_path):
    options = {"scale": 0.7, "also": (f"{flux.other}=0.5",), "dtype": "bf16"}
    out = flux.export(tmp_path / "out", merge=True, **options)
    before = safetensors.torch.load_file(flux.folder / "base/transformer" / merge.WEIGHTS)
    after = safetensors.torch.load_file(out / "transformer" / merge.WEIGHTS)
    other = safetensors.torch.load_file(flux.other)
    for name in flux.state:
        if name.endswith("lora_A.weight"):
            b = name.replace("lora_A", "lora_B")
            total = before[weight := name.removeprefix("transformer.").replace("lora_A.", "")]
            for state, share in ((flux.state, 0.7), (other, 0.5)):
                total = total + share * (state[b] @ state[name])
            assert torch.equal(after[weight], total.bfloat16()), weight


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_other_file_is_carried_over(flux, tmp_path, capsys):
    base = flux.folder / "base"
    left = [base / "transformer/diffusion_pytorch_model.fp16.safetensors", base / "f.safetensors"]
    for path in left:  # a variant, and the whole model in one file: both untreated
        path.write_bytes((base / "transformer" / merge.WEIGHTS).read_bytes())
    out = flux.export(tmp_path / "out", merge=True)
    assert "left out" in capsys.readouterr().out
    for path in left:
        path.unlink()
    assert files_of(out) == files_of(base) | {"README.base.md"}
    assert (out / "README.base.md").read_text() == "the base's own card"
    changed = {"README.md", "README.base.md", f"transformer/{merge.WEIGHTS}"}
    for name in files_of(out) - changed:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    card = (out / "README.md").read_text()
    assert "base_model_relation: finetune" in card and str(flux.folder) not in card
    with safetensors.safe_open(out / "transformer" / merge.WEIGHTS, framework="pt") as file:
        assert str(flux.folder) not in json.dumps(file.metadata())


def test_who_may_read_new_files_may_read_all_of_them(flux, tmp_path):
    out = flux.export(tmp_path / "out", merge=True)
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in out.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_parts_may_be_links_to_another_base(flux, tmp_path):
    """As the older grades of the miniature have them."""
    base = tmp_path / "base"
    base.mkdir()
    for path in (flux.folder / "base").iterdir():
        (base / path.name).symlink_to(path, target_is_directory=path.is_dir())
    out = flux.export(tmp_path / "out", merge=True, base=str(base))
    assert files_of(out) == files_of(flux.folder / "base") | {"README.base.md"}
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_shards_stay_shards(flux, tmp_path):
    base = tmp_path / "base"
    flux.pipeline().save_pretrained(base, max_shard_size="40KB")
    shards = sorted(path.name for path in (base / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    out = flux.export(tmp_path / "out", merge=True, base=str(base), dtype="bf16")
    index, before = (
        json.loads((one / "transformer" / merge.INDEX).read_text()) for one in (out, base)
    )
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"]["total_size"] * 2 == before["metadata"]["total_size"]
    one = flux.export(tmp_path / "one", merge=True, dtype="bf16")
    assert torch.equal(flux.images(flux.pipeline(out)), flux.images(flux.pipeline(one)))


def test_a_stopped_merge_leaves_nothing_that_looks_finished(flux, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(merge, "write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            flux.export(tmp_path / "out", merge=True)
    assert list(tmp_path.iterdir()) == []
    killed = tmp_path / ".out.merging"  # as SIGKILL leaves it
    (killed / "transformer").mkdir(parents=True)
    (killed / "model_index.json").write_text("{}")
    flux.export(tmp_path / "out", merge=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_merges_do_not_fill_one_folder(flux, tmp_path):
    with (
        storage.lock_file(tmp_path / ".out.lock", "busy"),
        pytest.raises(UserError, match=r"another merge is writing .*out: wait"),
    ):
        flux.export(tmp_path / "out", merge=True)
    flux.export(tmp_path / "out", merge=True)


# Refusals


def test_a_quantised_base_is_refused_with_the_reason(flux, tmp_path):
    base = tmp_path / "base"
    flux.pipeline().save_pretrained(base)
    config = base / "transformer/config.json"
    plain = config.read_text()
    said = json.loads(plain) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    config.write_text(json.dumps(said))
    with pytest.raises(UserError, match="quantised, and codes .* cannot be added to"):
        flux.export(tmp_path / "out", merge=True, base=str(base))
    config.write_text(plain)
    weights = base / "transformer" / merge.WEIGHTS
    state = safetensors.torch.load_file(weights)
    codes = {name: one.to(torch.float8_e4m3fn) for name, one in state.items()}
    safetensors.torch.save_file(codes, weights)
    with pytest.raises(UserError, match="is quantised"):
        flux.export(tmp_path / "out", merge=True, base=str(base))
    assert not (tmp_path / "out").exists()


def test_what_does_not_belong_together_is_refused(flux, tmp_path):
    name = next(iter(flux.state))
    strange = {n.replace("transformer_blocks.0", "transformer_blocks.9"): one
               for n, one in flux.state.items()}  # fmt: skip
    files.save(tmp_path / "strange.safetensors", strange)
    with pytest.raises(UserError, match="no module"):
        flux.export(tmp_path / "out", merge=True, run=tmp_path / "strange.safetensors")
    wide = {n: torch.ones(one.shape[0], 3) if "lora_A" in n else one
            for n, one in flux.state.items()}  # fmt: skip
    files.save(tmp_path / "wide.safetensors", wide)
    with pytest.raises(UserError, match="other sides in this base"):
        flux.export(tmp_path / "out", merge=True, run=tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match="other sides in .*wide"):
        flux.export(tmp_path / "out", also=(str(tmp_path / "wide.safetensors"),))
    broken = flux.state | {name: flux.state[name] * float("nan")}
    files.save(tmp_path / "nan.safetensors", broken)
    with pytest.raises(UserError, match="not finite"):
        flux.export(tmp_path / "out", merge=True, run=tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="name the --base"):
        flux.export(tmp_path / "out", merge=True, base=None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        flux.export(tmp_path / "full", merge=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["=1", "other=", "other=nan", "other=much"])
def test_words_that_are_no_weight(flux, tmp_path, word):
    with pytest.raises(UserError, match="PATH=WEIGHT"):
        flux.export(tmp_path / "out", also=(word,))


def test_what_it_was_trained_beside_belongs_into_the_weights(flux, tmp_path, monkeypatch):
    from dataclasses import replace

    from treat import combine

    def read(path, step="best"):
        found = combine_read(path, step)
        return replace(found, run={"beside": str(flux.other)}) if path == flux.lora else found

    combine_read = combine.read_adapter
    monkeypatch.setattr(combine, "read_adapter", read)
    with pytest.raises(UserError, match="trained beside .* add --also"):
        flux.export(tmp_path / "out", merge=True)
    flux.export(tmp_path / "out", merge=True, also=(f"{flux.other}=1",))


def test_what_a_stopped_merge_left_counts_as_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5))
    with pytest.raises(UserError, match="disk full"):
        merge.check_out(tmp_path / "out", 12)
    left = tmp_path / ".out.merging/unet"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"12345678")
    merge.check_out(tmp_path / "out", 12)
