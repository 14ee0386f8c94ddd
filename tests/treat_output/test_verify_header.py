"""Headers that are torn, bombs or mutated: a finding each, no crash, little memory."""

import io
import json
import math
import random
from collections import Counter
from contextlib import suppress

import pytest
import safetensors
from rich.console import Console

from core.errors import UserError
from tests.treat_output import lora_files as files
from treat import convert, verify
from treat.lora_files.faults import HEADER
from treat.lora_files.file import DTYPES, MAX_HEADER, Damage, read_lora_file
from treat.lora_files.names import ENDINGS


def entry(shape=(2, 2), begin=0, end=16, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


A, B = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "transformer.x.lora_B.weight"
SIXTEEN = bytes(16)
HEADERS = {
    b"": "header-short",
    b"\x08\0\0": "header-short",
    (2**63).to_bytes(8, "little") + b"{}": "header-cut",
    files.raw({A: entry()}, SIXTEEN)[:60]: "header-cut",
    files.raw(b"{" + b" " * MAX_HEADER): "header-large",
    files.raw(b"[" * 100_000): "no-safetensors",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n": "is-pointer",
    b"<!DOCTYPE html><html></html>": "is-page",
    b"PK\x03\x04" + bytes(60): "is-pickle",
    b"\x80\x02}q\x00X\x05\x00\x00\x00state": "is-pickle",
    b"a LoRA of hands, by Anna\n": "is-text",
    files.raw(b'{"a":' * 50_000): "header-json",
    files.raw(b"{}"): "no-tensors",
    files.raw({"__metadata__": {"a": "b"}}): "no-tensors",
    files.raw({"__metadata__": {"a": 1}, A: entry()}, SIXTEEN): "header-json",
    files.raw({A: entry(), "__metadata__": "x"}, SIXTEEN): "header-json",
    files.raw({A: [1, 2]}, SIXTEEN): "header-json",
    files.raw({A: {"dtype": "F32", "shape": [2, 2]}}, SIXTEEN): "header-json",
    files.raw({A: entry() | {"more": "x"}}, SIXTEEN): "header-json",
    files.raw({A: entry(shape=(-2, -2))}, SIXTEEN): "header-json",
    files.raw({A: entry(shape=(2.0, 2))}, SIXTEEN): "header-json",
    files.raw(json.dumps({A: entry()}).encode() + b"{}", SIXTEEN): "header-json",
    files.raw(b'{"a' + b"\\" * 999, SIXTEEN): "header-json",
    files.raw(b'{"\xff":1}', SIXTEEN): "header-json",
    files.raw(b'{"\\ud800":{}}', SIXTEEN): "header-json",
    files.raw(b"{" + b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' * 2 + b"}"):
        "name-twice",
    files.raw({"__metadata__": {str(i): "" for i in range(10_001)}, A: entry()}, SIXTEEN):
        "too-many",
    files.raw({A: entry(dtype="F4")}, SIXTEEN): "dtype-unknown",
    files.raw({A: entry(begin=16, end=0)}, SIXTEEN): "offsets-reversed",
    files.raw({A: entry()}, SIXTEEN[:9]): "tensor-cut",
    files.raw({A: entry(shape=(2, 3))}, SIXTEEN): "size-wrong",
    files.raw({A: entry(shape=(2**40, 2**40))}, SIXTEEN): "size-wrong",
    files.raw({A: entry(), B: entry(begin=8, end=24)}, bytes(24)): "overlap",
    files.raw({A: entry(), B: entry(begin=20, end=36)}, bytes(36)): "hole",
    files.raw({A: entry(begin=4, end=20)}, bytes(20)): "hole",
    files.raw({A: entry()}, SIXTEEN + b"more"): "rest",
}  # fmt: skip


OURS = ("name-twice", "too-many", "no-tensors", "header-large")
"""What the package lets pass; a further field of a tensor as well."""


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_a_faulty_header_is_named_and_no_more_is_read(tmp_path, number):
    content, code = list(HEADERS.items())[number]
    path = tmp_path / "faulty.safetensors"
    path.write_bytes(content)
    report = verify.examine(path)
    assert [one.code for one in report.findings] == [code] and report.content is None
    assert code in HEADER and verify.code([report], verify.USUAL) == 2
    with pytest.raises(safetensors.SafetensorError):
        if code in OURS or b'"more"' in content:
            raise safetensors.SafetensorError
        safetensors.safe_open(path, framework="pt")


def mutated(content, draw):
    """A header with one to four faults of bytes, words or the length."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(min(len(content), 1500))
        match draw.randrange(6):
            case 0:
                content[place] = draw.randrange(256)
            case 1:
                del content[place : place + draw.randint(1, 9)]
            case 2:
                content[place:place] = bytes(
                    draw.choices(b'{}[],:"\\0123456789-. ', k=draw.randint(1, 5))
                )
            case 3:
                content[:8] = draw.choice(
                    [0, 1, 2**63, len(content), draw.randrange(4000)]
                ).to_bytes(8, "little")
            case 4:
                words = [
                    b"F32",
                    b"shape",
                    b"data_offsets",
                    b"lora_A",
                    b"alpha",
                    b"lora_up",
                    b"[",
                    b"4",
                ]
                new = [
                    b"I64",
                    b"BOOL",
                    b"",
                    b"lora_B",
                    b"null",
                    b"1e9",
                    b"18446744073709551615",
                    b"-1",
                    b"0",
                ]
                content = content.replace(draw.choice(words), draw.choice(new), draw.randint(1, 3))
            case 5:
                content = content[: draw.randrange(len(content))]
        content = content or bytearray(b"\0")
    return bytes(content)


def fuzz(tmp_path, count, seed):
    path, sources = tmp_path / "fuzzed.safetensors", []
    for naming in ("peft-transformer", "kohya-unet", "kohya-flux"):
        files.save(path, dict(list(files.sound(naming).items())[:4]))
        sources.append(path.read_bytes())
    draw, readable = random.Random(seed), 0
    for _ in range(count):
        path.write_bytes(mutated(draw.choice(sources), draw))
        report = verify.examine(path)
        verify.as_dict(report)
        if report.content is not None:  # then the package has to read it as well
            readable += 1
            with safetensors.safe_open(path, framework="pt") as file:
                assert set(file.keys()) == set(report.content.file.entries)
        else:
            assert report.findings
    return readable


def test_mutated_headers_never_crash(tmp_path):
    assert 0 < fuzz(tmp_path, 2500, seed=1) < 2500


@pytest.mark.slow
def test_a_hundred_thousand_mutated_headers_never_crash(tmp_path):
    assert 0 < fuzz(tmp_path, 100_000, seed=2) < 100_000


def anything(draw):
    """A file that is one for the package: names, shapes and dtypes of no mind."""
    starts = (
        "transformer.transformer_blocks.0.attn.to_q",
        "unet.mid_block.attn2.to_k",
        "[/bold]",
        "lora_unet_mid_block_attn2_to_k",
        "lora_unet_double_blocks_0_img_attn_qkv",
        "",
        "lora_te1_x",
        "text_encoder.x",
        "transformer_blocks.0",
        "double_blocks.0.processor.x",
        "lora_unet_output_blocks_9_1_x",
        "lora_transformer_x",
        "\x1b[31m",
        "é" * 300,
    )
    # fmt: skip
    shapes = (
        (),
        (0,),
        (1,),
        (4,),
        (4, 4),
        (4, 0),
        (2, 4),
        (4, 2),
        (2, 4, 3, 3),
        (1, 2, 3),
        (1,) * 6,
    )
    values = ("4", "[]", "{}", "null", '"x"', "1e999", "9" * 400, "-1", "NaN", '{"a": "b"}', "true")
    header, end = {}, 0
    for _ in range(draw.randrange(1, 9)):
        dtype, shape = draw.choice(list(DTYPES)), draw.choice(shapes)
        size = math.prod(shape) * DTYPES[dtype].itemsize
        name = draw.choice(starts) + draw.choice([*ENDINGS, "", ".weight"])
        if name not in header:
            header[name] = entry(shape, end, end + size, dtype)
            end += size
    fields = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "x")
    prefix = draw.choice(("transformer.", "unet.", ""))
    pairs = ", ".join(f'"{prefix}{name}": {draw.choice(values)}' for name in fields)
    said = {"lora_adapter_metadata": draw.choice((f"{{{pairs}}}", "[" * 9999, "")),
            "ss_network_alpha": draw.choice(values), "ss_network_dim": draw.choice(values),
            "sshs_legacy_hash": "x", "sshs_model_hash": draw.choice(("", "x"))}  # fmt: skip
    data = bytes(draw.randrange(256) for _ in range(end))
    return files.raw({"__metadata__": said} | header, data)


def test_files_of_no_mind_never_crash(tmp_path):
    path, draw = tmp_path / "any.safetensors", random.Random(4)
    console, counts = Console(file=io.StringIO(), force_terminal=True), Counter()
    for _ in range(350):
        path.write_bytes(anything(draw))
        with safetensors.safe_open(path, framework="pt"):
            report = verify.examine(path)
        json.dumps(verify.as_dict(report))
        verify.show(console, report)
        counts.update(one.code for one in report.findings)
        with suppress(UserError):
            convert.read(path)
    assert len(counts) > 20 and "\x1b[31m\x1b" not in console.file.getvalue()


def test_no_crash_where_the_package_reads_what_we_do_not(tmp_path):
    """The other way round: whatever the package opens is read here, but for the bounds."""
    path = files.save(tmp_path / "a.safetensors", files.sound("peft-transformer"))
    source, draw, opened = path.read_bytes(), random.Random(3), 0
    for _ in range(500):
        path.write_bytes(mutated(source, draw))
        try:
            with safetensors.safe_open(path, framework="pt"):
                opened += 1
        except safetensors.SafetensorError:
            continue
        try:
            read_lora_file(path)
        except Damage as damage:
            assert damage.code in ("name-twice", "too-many", "no-tensors", "header-json")
    assert opened


def test_every_fault_of_a_header_has_a_test():
    assert set(HEADERS.values()) == set(HEADER)
