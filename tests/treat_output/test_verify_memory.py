"""Bombs, torn files and large tensors take three times the file and 64 MB at most."""

import subprocess
import sys

import torch

from tests.treat_output import lora_files as files
from treat.lora_files.file import MAX_HEADER, MAX_TEXT

MEASURE = """
import os, resource, sys, torch
torch.set_num_threads(1)  # threads do not survive a fork
from pathlib import Path
from treat import convert, verify
verify.examine(Path(sys.argv[1]))  # what is imported lazily is imported
for path in sys.argv[2:]:
    if not os.fork():  # a fresh peak for each
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = [one.code for one in verify.examine(Path(path)).findings]
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(taken, *found, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
ALLOWED = 64 << 20
"""Bytes beside three times the file."""


def look(tmp_path, contents):
    """Look at files in a process of their own: the codes; the memory is checked."""
    paths = [files.save(tmp_path / "warm.safetensors", files.sound("peft-transformer"))]
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"{number}.safetensors")
        paths[-1].write_bytes(content)
    words = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    for (taken, *_), content in zip(lines, contents, strict=True):
        assert int(taken) < 3 * len(content) + ALLOWED, (taken, len(content))
    return [found for _, *found in lines]


def test_memory_of_bombs(tmp_path):
    many = b"".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' % i for i in range(120_000)
    )
    said = b"".join(b'"%d":"",' % i for i in range(500_000))
    one = '"%d":"' + "\U0001f600" + "a" * (MAX_TEXT - 99) + '\\n",'
    texts = "".join(one % i for i in range(2)).encode()
    bombs = {
        files.raw(b"[" * MAX_HEADER): "no-safetensors",
        files.raw(b'{"a":' + b"[" * (MAX_HEADER - 5)): "header-json",
        files.raw(b'{"a":' + b"[]," * (MAX_HEADER // 4)): "header-json",
        files.raw(b"{" + many + b"}"): "too-many",
        files.raw(b'{"__metadata__":{' + said): "too-many",
        files.raw(b'{"__metadata__":{' + texts + b'"a":""}}'): "no-tensors",
        files.raw(b'{"__metadata__":{"a":"' + b"a" * (MAX_TEXT + 1) + b'"}}'): "too-many",
        files.raw(b"{" + b" " * (32 << 20)): "header-large",
        (2**40).to_bytes(8, "little") + b"{" * (8 << 20): "header-cut",
    }
    assert look(tmp_path, list(bombs)) == [[code] for code in bombs.values()]


def test_memory_of_a_large_tensor_and_of_half_of_it(tmp_path):
    a, b = torch.zeros(16, 2**20).bfloat16(), torch.ones(2**20, 16).bfloat16()
    names = [
        f"transformer.single_transformer_blocks.0.attn.to_q.lora_{half}.weight" for half in "AB"
    ]
    path = files.save(tmp_path / "whole.safetensors", dict(zip(names, (a, b), strict=True)))
    content = path.read_bytes()
    found = look(tmp_path, [content, content[: len(content) // 2]])
    assert found == [["nothing"], ["tensor-cut"]]
