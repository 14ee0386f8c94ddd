"""What strangers send: names, paths, archives, forms; nothing of it leaves its place."""

import os
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import Field

import core.config
from core.errors import UserError
from launch.methods import METHODS
from launch.service.checker import Checker, Fault, free_settings
from launch.service.requests import HUB, Asked, placed, worded
from launch.service.shelf import beneath, ending, shown_name
from launch.service.states import Event
from launch.service.uploads import FIELD
from tests.launch.house import Answers, bearer, house

REFERENCES = {
    "/etc/passwd", "../../etc/passwd", "~/.ssh/id_rsa", "file:///etc/passwd", "thing/../../x",
    "file-", "file-../../../etc/passwd", "file-" + "0" * 24, "file-" + "0" * 24 + "/../x",
    "ftjob-" + "0" * 24, "ftjob-../x", "ft:x:ftjob-" + "0" * 24 + ":step-../..", "\0", "", " ",
    "thing\n", "Thing", "http://127.0.0.1/x", "someone/model", "s3://bucket/x", "C:\\x", "thing=1",
}  # fmt: skip
PIECES = ["..", ".", "/", "\\", "~", "file-", "ftjob-", "ft:", "thing", ":step-1", "%2e", "\0", "a"]


@pytest.fixture
def made(tmp_path):
    (tmp_path / "model").mkdir()
    with house(tmp_path / "root", models={"thing": tmp_path / "model"}) as found:
        yield found


@pytest.fixture(scope="module")
def checker():
    checker = Checker()
    yield checker
    checker.close()


def test_a_model_of_the_hub_may_name_its_revision():
    assert HUB.fullmatch("lab/model") and HUB.fullmatch("lab/model@v1.0")
    for name in ("lab/model@", "lab/model@../x", "lab/model@a/b", "lab/model@a b", "lab@v1/model"):
        assert not HUB.fullmatch(name)


# Settings


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_that_could_name_something_has_its_place(checker, name):
    """A new setting with a path or free text in it fails here until it is put into METHODS."""
    method = METHODS[name]
    free = set(checker.ask("free", config=method.config))
    listed = {*method.inputs, *method.words}
    assert listed <= free, "METHODS lists what is no such setting"
    refused = {"pixel_reward": {"annotator"}, "export": {"also", "evaluation", "push"},
               "data_round": {"annotator", "endpoint", "model"}}  # fmt: skip
    assert free - listed == {"out", *refused.get(name, ())}
    for one in (method.training_file, method.validation_file, method.model):
        assert one is None or one in listed
    shown = checker.ask("schema", config=method.config, allowed=[])["properties"]
    assert method.total is None or method.total in shown


def test_free_settings_are_seen_however_they_are_written():
    class Inner(core.config.Config):
        word: str = ""
        fixed: Literal["a", "b"] = "a"

    class Outer(core.config.Config):
        path: Path
        maybe: Path | None = None
        several: tuple[Annotated[str, Field(max_length=3)], ...] = ()
        named: dict[str, float] = {}
        words: dict[str, str] = {}
        number: int | float | bool = 0
        anything: Any = None
        inner: Inner = Inner()
        listed: list[Inner] = []

    free = {"path", "maybe", "several", "words", "anything", "inner.word", "listed.word"}
    assert free_settings(Outer) == free


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("pixel_reward", "annotator", ["sh", "-c", "id"]),
        ("export", "push", "someone/model"),
        ("export", "also", ["/etc=1"]),
        ("data_round", "annotator", ["id"]),
        ("data_round", "endpoint", "http://127.0.0.1:1"),
    ],
)
def test_commands_and_calls_outward_cannot_be_asked_for(checker, name, setting, value):
    method = METHODS[name]
    asked = {"config": method.config, "inputs": list(method.inputs), "words": list(method.words)}
    with pytest.raises(Fault, match="cannot be set over HTTP") as fault:
        checker.ask("check", settings={setting: value}, **asked)
    assert fault.value.param == setting


def test_settings_are_judged_by_their_own_class(checker):
    method = METHODS["artifact_detector"]
    asked = {"config": method.config, "inputs": list(method.inputs), "words": list(method.words)}
    found = checker.ask("check", settings={"data": "/x", "out": "/y"}, **asked)
    assert found["data"] == ["/x"] and found["steps"] == 2000
    with pytest.raises(Fault, match="did you mean 'steps'"):
        checker.ask("check", settings={"data": ["/x"], "out": "/y", "stepps": 1}, **asked)
    shown = checker.ask("schema", config=method.config, allowed=["data", "variant"])
    assert {"data", "steps", "variant"} <= set(shown["properties"])
    assert not {"out", "init", "device"} & set(shown["properties"])


@pytest.mark.parametrize("name", METHODS)
def test_no_setting_takes_a_path(made, name):
    service, _ = made
    method = METHODS[name]
    for setting in method.inputs:
        for value in REFERENCES - {""}:
            for given_value in (value, [value], ["thing", value]):
                with pytest.raises(Fault):
                    resolved(service, name, {setting: given_value})
        for strange in (3, {"a": 1}, [["thing"]], True):
            with pytest.raises(Fault):
                resolved(service, name, {setting: strange})


def resolved(service, name, told):
    method = METHODS[name]
    settings = {method.training_file: "thing", **told}
    found = service.requests.resolve(Asked(name, settings), "ada", service.root / "jobs/new")
    return found.settings


def test_a_named_reference_keeps_its_name_and_a_fixed_word_is_none(made, tmp_path):
    service, _ = made
    path = str(service.plan.models["thing"])
    told = {"base": "thing", "judges": ["second=thing", "my-own=thing"]}
    found = resolved(service, "correct", {**told, "detector": "score_dynamics"})
    assert found["judges"] == [f"second={path}", f"my-own={path}"]
    assert (found["detector"], found["base"]) == ("score_dynamics", path)
    for wrong in ("second=/etc", "second=thing/..", "=thing", "a/b=thing", "second=", "a=b=thing"):
        with pytest.raises(Fault, match="judges"):
            resolved(service, "correct", {**told, "judges": [wrong]})
    with pytest.raises(Fault, match="'base'"):  # a fixed word of one setting is none of another
        resolved(service, "correct", {"base": "score_dynamics"})


@pytest.mark.parametrize("number", [200, pytest.param(10_000, marks=pytest.mark.trial)])
def test_whatever_a_reference_says_it_stays_below_the_root(made, number):
    service, client = made
    drawn = int.from_bytes(os.urandom(4))
    print(f"seed {drawn}")
    mine = bearer(service)
    file_id = sent(client, mine).json()["id"]
    names = st.lists(st.sampled_from([*PIECES, file_id]), min_size=1, max_size=5).map("".join)
    allowed = (service.root.resolve(), service.plan.models["thing"].resolve())
    accepted = []

    @seed(drawn)
    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(names, st.text(string.printable, max_size=30), st.just(file_id)))
    def trial(value):
        try:
            path = Path(resolved(service, "pixel_reward", {"detector": value})["detector"])
        except Fault:
            return
        accepted.append(value)
        assert any(path.resolve().is_relative_to(one) for one in allowed), (value, path)

    trial()
    assert file_id in accepted and set(accepted) <= {file_id, "thing"}


def test_faults_name_inputs_as_the_caller_did(made):
    service, client = made
    path = str(service.plan.models["thing"])
    file_id = sent(client, bearer(service)).json()["id"]

    class Complains(Answers):
        def ask(self, what, settings, **values):
            if what == "estimate":
                raise Fault(f"{path}/weights or {settings['prompts'][0]} is none", "base")
            return settings

    service.requests.checker = Complains()
    mine = bearer(service)
    told = f'"base": "thing", "prompts": ["{file_id}"]'
    answer = created(client, mine, told, dry=True).json()["error"]
    assert answer["message"] == f"thing/weights or {file_id} is none"
    settings = {"judges": [f"a={path}", f"b={path}/b"]}
    said = {"judges": ["a=thing", "b=ftjob-1"]}
    text = f"{path}/b has no end, {path}/c has"
    assert worded(text, settings, said, METHODS["correct"]) == "ftjob-1 has no end, thing/c has"


def test_a_job_names_what_another_made(made):
    service, client = made
    mine = bearer(service)
    body = {"method": {"type": "export", "export": {}}, "training_file": "thing"}
    job = client.post("/v1/fine_tuning/jobs", json=body, headers=mine).json()
    with pytest.raises(Fault, match="wait for it"):
        resolved(service, "export", {"run": job["id"]})
    service.jobs.change(job["id"], Event.VALIDATED)
    service.jobs.begin(job["id"], 1, 1, "local")
    folder = service.supervisor.folder(job["id"])
    assert resolved(service, "export", {"run": job["id"]})["run"] == str(folder / "export")
    (folder / "checkpoints/step-00000012").mkdir(parents=True)
    named = f"ft:export:mine:{job['id']}:step-12"
    found = resolved(service, "export", {"run": named})
    assert found["run"] == str(folder / "checkpoints/step-00000012")
    with pytest.raises(Fault, match="no checkpoint"):
        resolved(service, "export", {"run": f"{job['id']}:step-13"})


def test_what_is_said_twice_must_agree():
    method = METHODS["pixel_reward"]
    asked = Asked("pixel_reward", {"base": "a", "prompts": "p"}, model="a", seed=0)
    assert placed(asked, method) == {"base": "a", "prompts": "p", "seed": 0}
    with pytest.raises(Fault, match="different things"):
        placed(Asked("pixel_reward", {"base": "a", "prompts": "p"}, model="b"), method)
    with pytest.raises(Fault, match="training_file is missing"):
        placed(Asked("pixel_reward", {}, model="b"), method)
    with pytest.raises(Fault, match="takes no validation_file"):
        placed(Asked("export", {"run": "x"}, validation_file="b"), METHODS["export"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "method"),
        ({"method": {}}, "method.type"),
        ({"method": {"type": "nonsense"}}, "method.type"),
        ({"method": {"type": ["export"]}}, "method.type"),
        ({"method": {"type": "export", "export": [], "x": 1}}, "method"),
        ({"method": {"type": "export"}, "hyperparameters": {"n_epochs": 1}}, "hyperparameters"),
        ({"method": {"type": "export"}, "modle": "x"}, "modle"),
        ({"method": {"type": "export"}, "metadata": {"a": "x" * 600}}, "metadata.a"),
        ({"method": {"type": "export"}, "seed": -1}, "seed"),
        ([], None),
    ],
)
def test_bodies_that_are_no_job(made, body, param):
    service, client = made
    answer = client.post("/v1/fine_tuning/jobs", json=body, headers=bearer(service))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert service.jobs.jobs("ada", None, 10).rows == []


NUMBERS = [
    ('"seed": 18446744073709551616', "seed"),
    ('"steps": 1' + 23 * "0", "steps"),
    ('"steps": 1e30', "steps"),
    ('"learning_rate": 1e400', "learning_rate"),
    ('"learning_rate": NaN', "learning_rate"),
    ('"offline_weight": Infinity', "offline_weight"),
    ('"refresh_augmentation": {"brightness": 1e400}', "refresh_augmentation.brightness"),
]


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(("told", "param"), NUMBERS)
def test_numbers_that_nothing_holds_are_refused(made, told, param, dry):
    service, client = made
    service.requests.checker = Answers()
    answer = created(client, bearer(service), f'"base": "thing", "prompts": "thing", {told}', dry)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert service.jobs.jobs("ada", None, 10).rows == []


def created(client, headers, told, dry=False):
    """`told`: settings as JSON, which may say what Python's own writer would not."""
    kind = '"type": "pixel_reward", "pixel_reward"'
    body = f'{{"method": {{{kind}: {{{told}}}}}, "dry_run": {str(dry).lower()}}}'
    headers = {**headers, "content-type": "application/json"}
    return client.post("/v1/fine_tuning/jobs", content=body.encode(), headers=headers)


@pytest.mark.parametrize(
    ("depth", "said"),
    [(30, "'detector' is the id"), (31, "32 levels"), (900, "32 levels"), (100_000, "parsing")],
)
def test_what_is_deeper_than_settings_are_is_refused(made, depth, said):
    service, client = made
    nested = '{"a": ' * depth + "1" + "}" * depth
    told = f'"base": "thing", "prompts": "thing", "detector": {nested}'
    answer = created(client, bearer(service), told)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "place"),
    [("{", 1), ("{'a': 1}", 1), ('{"a": 1,}', "[78]"), ("nonsense", 0), ("[1", 2)],  # 3.13: comma
)
def test_a_body_that_is_no_json_is_told_where(made, body, place):
    service, client = made
    headers = {**bearer(service), "content-type": "application/json"}
    answer = client.post("/v1/fine_tuning/jobs", content=body, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] is None
    assert re.fullmatch(rf"the body is no JSON \(.*at character {place}\).*", error["message"])


def test_the_detector_that_a_data_round_keeps_can_be_named(tmp_path):
    with house(tmp_path / "root", models={"thing": tmp_path}) as (service, client):
        mine = bearer(service)
        told = {"detector": "thing", "labelled": "thing", "held_out": "thing", "base": "thing"}
        body = {"method": {"type": "data_round", "data_round": told}}
        rounds = client.post("/v1/fine_tuning/jobs", json=body, headers=mine).json()["id"]
        told = {"base": "thing", "prompts": "thing", "detector": rounds}
        body = {"method": {"type": "pixel_reward", "pixel_reward": told}}
        early = client.post("/v1/fine_tuning/jobs", json=body, headers=mine)
        assert "wait for it" in early.json()["error"]["message"]
        service.jobs.change(rounds, Event.VALIDATED)
        service.jobs.begin(rounds, 1, 1, "local")
        treats = client.post("/v1/fine_tuning/jobs", json=body, headers=mine).json()["id"]
        kept = service.supervisor.folder(rounds) / "rounds/best"
        assert service.jobs.job(treats)["settings"]["detector"] == str(kept)


# Uploads


def sent(client, headers, name="p.txt", content=b"a hand\n", purpose="fine-tune"):
    form = {"file": (name, content)}
    return client.post("/v1/files", files=form, data={"purpose": purpose}, headers=headers)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("p.txt", "p.txt"),
        ("../../etc/passwd.txt", "passwd.txt"),
        ("/abs/olute.txt", "olute.txt"),
        ("..\\..\\windows.txt", "windows.txt"),
        ("a\u202etxt.txt", "atxt.txt"),
        (".hidden.txt", "hidden.txt"),
        ("x" * 500 + ".txt", "x" * 196 + ".txt"),
        ("<b>.TXT", "<b>.TXT"),
    ],
)
def test_names_of_files_are_only_shown(made, name, shown):
    service, client = made
    answer = sent(client, bearer(service), name).json()
    assert answer["filename"] == shown
    place = service.files.path(service.files.get(answer["id"], "ada"))
    assert place == service.root / "files" / answer["id"] / "content.txt"
    assert place.read_bytes() == b"a hand\n"


@given(st.text(max_size=40))
def test_a_shown_name_is_one_plain_line(name):
    shown = shown_name(name)
    assert 0 < len(shown) <= 200 and shown.isprintable() and not set(shown) & {"/", "\\"}


@pytest.mark.parametrize(
    "name", ["x", "x.py", "x.sh", "x.pkl", "x.bin", "x.html", "x.svg", "x.txt."]
)
def test_files_that_nothing_reads_are_not_taken(made, name):
    service, client = made
    answer = sent(client, bearer(service), name)
    taken = answer.status_code == 200
    assert taken == (name == "x.txt.")  # the dot is no part of a name
    assert list((service.root / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("application/json", b"{}", "multipart/form-data"),
        ("multipart/form-data", b"", "multipart/form-data"),
        ("multipart/form-data; boundary=x", b"", "ended early"),
        ("multipart/form-data; boundary=x", b"nonsense", "no sound form"),
        ("multipart/form-data; boundary=x", b"--x--\r\n", "ended early"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhalf',
            "ended early",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="more"\r\n\r\n1\r\n--x--\r\n',
            "not 'more'",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n'
            + b"y" * (FIELD + 1)
            + b"\r\n--x--\r\n",
            "too long",
        ),
    ],
)
def test_forms_that_are_none_leave_nothing(made, kind, body, said):
    service, client = made
    headers = {**bearer(service), "content-type": kind}
    answer = client.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]
    assert list((service.root / "incoming").iterdir()) == []
    assert list((service.root / "files").iterdir()) == []


def test_uploads_have_limits(made):
    service, client = made
    mine = bearer(service)
    assert sent(client, mine, content=b"x" * (2 << 20)).status_code == 413  # of one file
    big = b"x" * (1000 << 10)
    answers = [sent(client, mine, content=big).status_code for _ in range(5)]
    assert answers == [200] * 4 + [400]  # of one owner
    assert sent(client, bearer(service, "bob"), content=big).status_code == 200
    assert list((service.root / "incoming").iterdir()) == []
    assert sent(client, mine, purpose="evil").status_code == 400


def test_a_place_outside_the_root_is_no_file(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to("/etc")
    for place in ("../x", "/etc/passwd", "link/passwd", "a/../../x", "", "."):
        with pytest.raises(UserError):
            beneath(tmp_path / "root", place)
    assert beneath(tmp_path / "root", "files/x") == tmp_path / "root/files/x"


def test_known_endings():
    assert ending("Prompts.JSONL") == ".jsonl"
    with pytest.raises(UserError, match="of no use here"):
        ending("a.tar.gz")
