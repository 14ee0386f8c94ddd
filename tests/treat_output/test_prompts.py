"""Prompt lists of every format; what is no prompt list says so in one sentence."""

import pytest

from core.errors import UserError
from core.prompts import read_prompts


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a hand, open\n\n  a sign  \n"),
        ("p.txt", "# hands\na hand, open\n  # signs\na sign"),
        ("p.jsonl", '{"prompt": "a hand, open", "seed": 1}\n\n{"prompt": "a sign"}\n'),
        ("p.csv", 'id,prompt\n1,"a hand, open"\n2,a sign\n'),
        ("p.txt", "\ufeffa hand, open\r\na sign"),
    ],
)
def test_reads(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name) == ["a hand, open", "a sign"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", b"\n  \n# a sign\n", "no prompt"),
        ("p.jsonl", b'{"text": "a"}\n', "column 'prompt'"),
        ("p.jsonl", b"[1]\n", "column 'prompt'"),
        ("p.jsonl", b"{\n", "does not parse"),
        ("p.csv", b"text\na\n", "column 'prompt'"),
        ("p.txt", b"\xff\xfe\xff", "does not parse"),
        ("p.csv", b"prompt\n" + b"a" * 140_000, "does not parse"),
        ("p.bin", b"a", "no prompt list"),
        ("p.txt", None, "cannot read"),
    ],
)
def test_refuses(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_prompts(tmp_path / name)
