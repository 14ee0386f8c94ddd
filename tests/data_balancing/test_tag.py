"""Tags through a real HTTP server: retries, quarantine, cache, bound, two models, the key."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import miniature
from core.errors import UserError
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from data_balancing import preview, tag, write_prompts
from data_balancing.asking import KEY, Endpoint, Unanswered, check_address
from data_balancing.categories import read_tags
from data_balancing.tagging import agreement, kappa, picture_url
from data_balancing.taxonomy import load_taxonomy
from miniature.law import CATEGORIES
from tests.data_balancing.server import serving

GOOD = json.dumps({"categories": ["hand", "face"]})


def store(folder: Path, n: int = 4, equal: bool = False) -> Path:
    with ShardWriter(folder) as writer:
        for i in range(n):
            level = np.random.default_rng(0 if equal else i).integers(0, 256, (8, 12, 3))
            record = Record(key=f"s-{i}", source="pseudo")
            writer.write(Sample(record.key, level.astype(np.uint8), None, record))
    return folder


def config(folder: Path, url: str, **changes) -> tag.Config:
    settings = {
        "store": folder / "store",
        "out": folder / "tags.jsonl",
        "endpoint": url,
        "model": "seer",
        "concurrency": 2,
    }
    return tag.Config(**{**settings, **changes})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_image_gets_its_tags_and_a_rerun_asks_nothing(tmp_path: Path):
    store(tmp_path / "store")
    with serving(lambda body, _: GOOD) as server:
        assert tag.main(config(tmp_path, server.url)) is None
        first = (tmp_path / "tags.jsonl").read_bytes()
        assert len(server.requests) == 4
        assert tag.main(config(tmp_path, server.url)) is None
        assert len(server.requests) == 4 and (tmp_path / "tags.jsonl").read_bytes() == first
        tag.main(config(tmp_path, server.url, model="other"))  # the control: it is asked
        assert len(server.requests) == 8
    found = lines(tmp_path / "tags.jsonl")
    assert [line["key"] for line in found] == ["s-0", "s-1", "s-2", "s-3"]
    assert all(line["categories"] == ["hand", "face"] for line in found)
    assert lines(tmp_path / "tags.quarantine.jsonl") == []


def test_the_request_holds_the_picture_and_a_strict_schema(tmp_path: Path):
    store(tmp_path / "store", 1)
    with serving(lambda body, _: GOOD) as server:
        tag.main(config(tmp_path, server.url))
    (body,) = server.requests
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True and schema["schema"]["additionalProperties"] is False
    assert "hand" in schema["schema"]["properties"]["categories"]["items"]["enum"]
    image = body["messages"][1]["content"][0]["image_url"]["url"]
    assert image.startswith("data:image/jpeg;base64,")


def test_equal_pixels_are_one_question(tmp_path: Path):
    store(tmp_path / "store", 3, equal=True)
    with serving(lambda body, _: GOOD) as server:
        tag.main(config(tmp_path, server.url, concurrency=1))
    assert len(server.requests) == 1 and len(lines(tmp_path / "tags.jsonl")) == 3


@pytest.mark.parametrize("bad", ["no idea", '{"categories": ["dragon"]}', '{"categories": '])
def test_a_bad_answer_goes_back_with_its_fault(tmp_path: Path, bad: str):
    store(tmp_path / "store", 1)
    with serving(lambda body, number: bad if number == 0 else f"```json\n{GOOD}\n```") as server:
        assert tag.main(config(tmp_path, server.url)) is None
    assert len(server.requests) == 2
    *_, said, again = server.requests[1]["messages"]
    assert said["role"] == "assistant" and "not usable" in again["content"]


def test_always_bad_is_set_aside_with_its_reason(tmp_path: Path):
    store(tmp_path / "store", 2)
    with serving(lambda body, _: "no idea") as server:
        assert tag.main(config(tmp_path, server.url)) == 1
        assert len(server.requests) == 6
        tag.main(config(tmp_path, server.url))
        assert len(server.requests) == 12  # a failure is not remembered
    assert lines(tmp_path / "tags.jsonl") == []
    lost = lines(tmp_path / "tags.quarantine.jsonl")
    assert [line["key"] for line in lost] == ["s-0", "s-1"]
    assert "3 tries" in lost[0]["reason"] and lost[0]["model"] == "seer"


@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_server_is_asked_again(tmp_path: Path, status: int):
    store(tmp_path / "store", 1)
    with serving(lambda body, n: (status, "busy") if n < 2 else GOOD) as server:
        assert tag.main(config(tmp_path, server.url)) is None
    assert len(server.requests) == 3


def test_a_refused_image_is_set_aside_and_the_others_go_on(tmp_path: Path):
    store(tmp_path / "store", 3)
    with serving(lambda body, n: (400, "not that one") if n == 0 else GOOD) as server:
        assert tag.main(config(tmp_path, server.url, concurrency=1)) == 1
    assert len(lines(tmp_path / "tags.jsonl")) == 2
    (lost,) = lines(tmp_path / "tags.quarantine.jsonl")
    assert lost["key"] == "s-0" and "not that one" in lost["reason"]


def test_a_model_that_answers_nothing_stops_the_program(tmp_path: Path):
    store(tmp_path / "store", tag.HOPELESS + 5)
    with (
        serving(lambda body, _: (400, "no images here")) as server,
        pytest.raises(UserError, match="none of the first 20"),
    ):
        tag.main(config(tmp_path, server.url))


@pytest.mark.parametrize(
    "odd",
    [
        *({"choices": one} for one in (None, [], {}, [None], [{}], [{"message": None}])),
        *({"choices": [{"message": one}]} for one in ("hello", {"content": []})),
        *({"choices": [{"message": {"content": one}}]} for one in ([None], {"a": 1}, 3)),
        *([], [None], None, "hello"),
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("end", ["", "{"])
def test_an_odd_answer_is_none(odd, end):
    with serving(lambda *_: (json.dumps(odd) + end).encode()) as server, pytest.raises(Unanswered):
        Endpoint(server.url, "seer").say([{"role": "user", "content": "?"}], {})


def test_never_more_at_once_than_asked_for(tmp_path: Path):
    store(tmp_path / "store", 12)
    with serving(lambda body, _: GOOD, delay=0.1) as server:
        tag.main(config(tmp_path, server.url, concurrency=3))
    assert server.most == 3


SILENT = """
import os, signal, threading, time
from data_balancing.tag import bounded_map
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
try:
    list(bounded_map(lambda _: time.sleep(600), range(9), 2))
except KeyboardInterrupt:
    print("stopped")
"""


def test_a_silent_server_holds_nobody_back():
    words = [sys.executable, "-c", SILENT]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "stopped\n" and ended.returncode == 0


def test_two_models_are_compared(tmp_path: Path, capsys):
    store(tmp_path / "store", 4)
    own = tmp_path / "own.yaml"
    own.write_text(
        "version: 1\ncategories:\n- {name: hand, about: a hand}\n- {name: tree, about: a tree}\n"
    )

    def answer(body, number):
        even = number % 2 == 0
        return json.dumps({"categories": ["hand"] if body["model"] == "seer" or even else []})

    with serving(answer) as server:
        changes = {"second_model": "looker", "concurrency": 1, "taxonomy": own}
        tag.main(config(tmp_path, server.url, **changes))
    found = json.loads((tmp_path / "tags.agreement.json").read_text())
    assert found["models"] == ["seer", "looker"] and found["images"] == 4
    assert found["categories"]["hand"] == {"kappa": 0.0, "share": 0.5, "first": 4, "second": 2}
    assert found["categories"]["tree"]["kappa"] is None
    assert lines(tmp_path / "tags.jsonl")[1]["second"] == []
    assert "kappa" in capsys.readouterr().out


def test_kappa_by_hand():
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o 0.7, p_e 0.5."""
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(first, first) == 1 and kappa(first, [not x for x in first]) == -1
    assert kappa([True, True], [True, True]) is None and kappa([], []) is None
    assert agreement(["a"], [["a"], []], [["a"], ["a"]])["a"]["share"] == 0.5


def test_the_key_is_sent_and_never_written(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    store(tmp_path / "store", 2)
    answers = [(400, "bad key sk-very-secret?"), GOOD]
    with serving(lambda body, n: answers[n]) as server:
        tag.main(config(tmp_path, server.url, concurrency=1))
    assert set(server.keys) == {"Bearer sk-very-secret"}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5 and not any(b"very-secret" in path.read_bytes() for path in written)
    with (
        serving(lambda body, _: (401, "wrong key sk-very-secret")) as server,
        pytest.raises(UserError, match="401") as caught,
    ):
        tag.main(config(tmp_path, server.url, model="third"))
    assert "very-secret" not in str(caught.value)


def test_nobody_listens(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("data_balancing.asking.RESENDS", 0)
    store(tmp_path / "store", 1)
    with serving(lambda body, _: GOOD) as server:
        pass
    with pytest.raises(UserError, match="nobody listens at"):
        tag.main(config(tmp_path, server.url))
    monkeypatch.setattr("data_balancing.asking.check_listening", lambda url: None)  # gone since
    with pytest.raises(UserError, match="does not answer"):
        tag.main(config(tmp_path, server.url))


def test_an_interrupted_run_goes_on(tmp_path: Path):
    """The server breaks after two answers; then only the rest is asked."""
    store(tmp_path / "store", 5)
    with (
        serving(lambda body, n: GOOD if n < 2 else (403, "stop")) as server,
        pytest.raises(UserError, match="403"),
    ):
        tag.main(config(tmp_path, server.url, concurrency=1))
    assert not (tmp_path / "tags.jsonl").exists()
    with serving(lambda body, _: GOOD) as server:
        tag.main(config(tmp_path, server.url, concurrency=1))
    assert len(server.requests) == 3 and len(lines(tmp_path / "tags.jsonl")) == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "go together"),
        ({"local": Path("x")}, "either --endpoint"),
        ({"second_model": "seer"}, "another model"),
        ({"out": Path("tags.csv")}, "jsonl"),
        ({"tagged": Path("store"), "store": Path("store")}, "the store itself"),
        (
            {"tagged": Path("new"), "endpoint": None, "model": None, "from_records": True},
            "leave it",
        ),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, changes: dict, said: str):
    with pytest.raises(ValueError, match=said):
        config(tmp_path, "http://localhost:1/v1", **changes)


@pytest.mark.parametrize("program", [tag, preview, write_prompts])
def test_a_folder_is_no_file_to_write(tmp_path: Path, program):
    given: dict = {
        tag: {"store": tmp_path / "none", "from_records": True},
        preview: {"data": (tmp_path / "none",)},
        write_prompts: {"balance": tmp_path / "none", "templates": True},
    }
    out = tmp_path / ("a.png" if program is preview else "a.jsonl")
    out.mkdir()
    with pytest.raises(UserError, match="is a folder: name a file"):
        program.main(program.Config(out=out, **given[program]))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:1", "no address"),
        ("http://localhost:99999/v1", "no address"),
        ("http://localhost:port/v1", "no address"),
        ("http://localhost:0/v1", "no address"),
        ("http://a:b@localhost/v1", "password"),
    ],
)
def test_strange_addresses(tmp_path: Path, url: str, said: str):
    store(tmp_path / "store", 1)
    with pytest.raises(UserError, match=said):
        tag.main(config(tmp_path, url))


def test_a_key_goes_to_no_other_machine_in_the_clear(monkeypatch):
    far = "http://models.example:8000/v1", "http://10.0.0.1/v1", "http://localhost.example/v1"
    near = "http://localhost:1/v1", "http://127.0.0.2/v1", "http://[::1]:8000/v1"
    for url in (*far, *near, "https://models.example/v1"):
        check_address(url)
    monkeypatch.setenv(KEY, "secret")
    for url in (*near, "https://models.example/v1"):
        check_address(url)
    for url in far:
        with pytest.raises(UserError, match="https://, or unset OPENAI_API_KEY"):
            Endpoint(url, "model")


def test_a_store_that_is_none(tmp_path: Path):
    (tmp_path / "store").mkdir()
    with pytest.raises(UserError, match="is no store"):
        tag.main(config(tmp_path, "http://localhost:1/v1"))


def test_a_large_picture_is_sent_smaller():
    import base64
    import io

    from PIL import Image

    url = picture_url(np.zeros((200, 2000, 3), np.uint8))
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size == (768, 77)


SMALL = Path(miniature.__file__).with_name("taxonomy.yaml")


def recorded(folder: Path, categories: list[str]) -> Path:
    with ShardWriter(folder) as writer:
        for i, category in enumerate(categories):
            image = np.full((8, 12, 3), i, np.uint8)
            record = Record(key=f"s-{i}", source="pseudo", category=category)
            writer.write(Sample(record.key, image, None, record))
    return folder


def test_known_categories_are_tags_without_a_model(tmp_path: Path):
    recorded(tmp_path / "store", ["sign", "hand", ""])
    given = {"store": tmp_path / "store", "out": tmp_path / "tags.jsonl", "taxonomy": SMALL}
    assert tag.main(tag.Config(**given, from_records=True)) == 1
    tags = read_tags(tmp_path / "tags.jsonl", load_taxonomy(SMALL))
    assert {key: names for key, (_, names) in tags.items()} == {"s-0": ["sign"], "s-1": ["hand"]}
    (lost,) = lines(tmp_path / "tags.quarantine.jsonl")
    assert lost["key"] == "s-2" and lost["reason"] == "no category"
    with pytest.raises(UserError, match="another taxonomy"):
        read_tags(tmp_path / "tags.jsonl", load_taxonomy())


def test_a_category_that_the_taxonomy_does_not_know_is_refused(tmp_path: Path):
    recorded(tmp_path / "store", ["sign", "hands"])
    given = {"store": tmp_path / "store", "out": tmp_path / "tags.jsonl", "taxonomy": SMALL}
    with pytest.raises(UserError, match=r"'hands' in the record of s-1.*did you mean 'hand'"):
        tag.main(tag.Config(**given, from_records=True))
    assert not (tmp_path / "tags.jsonl").exists()
    with pytest.raises(ValueError, match="--from-records"):
        tag.Config(**given, from_records=True, local=tmp_path)


def test_the_small_world_has_its_own_taxonomy():
    assert load_taxonomy(SMALL).leaves == tuple(CATEGORIES)


def test_a_copy_of_the_store_names_the_categories(tmp_path: Path):
    with ShardWriter(tmp_path / "store") as writer:
        for i, own in enumerate(["", "face", ""]):
            image = np.full((8, 12, 3), i, np.uint8)
            record = Record(key=f"s-{i}", source="human", category=own, prompt=f"no. {i}")
            writer.write(Sample(record.key, image, np.full((8, 12), 40 * i, np.uint8), record))
    given = {"tagged": tmp_path / "tagged", "concurrency": 1}
    with serving(lambda body, n: (400, "not that one") if n == 2 else GOOD) as server:
        assert tag.main(config(tmp_path, server.url, **given)) == 1
        assert {s.key: s.record.category for s in ShardStore(tmp_path / "tagged")} == {
            "s-0": "hand",  # the first of the tags
            "s-1": "face",  # its own
        }
        assert tag.main(config(tmp_path, server.url, **given)) is None  # this time it answers
    before, after = ShardStore(tmp_path / "store"), ShardStore(tmp_path / "tagged")
    assert [after.record(i).category for i in range(3)] == ["hand", "face", "hand"]
    for one, other in zip(before, after, strict=True):
        assert one.record.model_copy(update={"category": other.record.category}) == other.record
        assert (one.image == other.image).all() and (one.mask == other.mask).all()
