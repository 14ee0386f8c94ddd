"""The dashboard's routes: what its pages may do, whose figures and pictures they get."""

import json
import re
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.service import figures_routes, pages_routes
from launch.service.guard import PUBLIC, READ
from launch.service.noted import Note
from tests.launch.house import bearer, filled, house

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}'
JOB = {"method": {"type": "export", "export": {"run": "thing"}}, "training_file": "thing"}
JOBS = "/v1/fine_tuning/jobs"
HELD = {
    "threshold": 0.5,
    "groups": {"category": {HOSTILE: {"mse": 0.1, "pixel_ap": None}}},
    "reliability": [{"low": 0, "high": 0.1, "pixels": 9, "predicted": 0.04, "labelled": 0.02}],
    "worst": [
        {"key": "a", "prompt": HOSTILE, "category": "hand", "source": "human",
         "error": 0.2, "missed": 0.1, "false_alarm": 0},
    ],
}  # fmt: skip
SHELLS = ["/", "/new", "/jobs/x"]


def png(shade: int = 0) -> bytes:
    """One gray pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes([0, shade])))
    return figures_routes.PNG + head + body + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("made")
    with house(base / "root", models={"thing": base}) as found:
        yield found


@pytest.fixture(scope="module")
def job(made):
    """A job with pictures beside files that are nobody's to see, and its owner's headers."""
    service, client = made
    mine = bearer(service, "ada")
    body = {**JOB, "suffix": HOSTILE[:64], "metadata": {"who": HOSTILE}}
    job_id = client.post(JOBS, json=body, headers=mine).json()["id"]
    folder = service.supervisor.folder(job_id) / "export"
    for step in (0, 25):
        look = folder / f"watched/step-{step:08d}"
        look.mkdir(parents=True)
        (look / "maps").mkdir()
        for i in range(2):
            (look / f"{i:05d}.png").write_bytes(png(step + i))
            (look / f"maps/{i:05d}.png").write_bytes(png(100 + step + i))
    (folder / "pictures").mkdir()
    (folder / "pictures/step-00000025.png").write_bytes(png(99))
    (folder / "pictures/step-00000026.png").write_bytes(b"<svg onload=alert(1)>")
    (folder / "pictures/step-00000027.png").symlink_to(service.root / "root.id")
    (folder / "watched/step-00000030").symlink_to(folder / "watched/step-00000000")
    (folder / "pictures/secret.png").write_bytes(png())
    (folder / "watched/step-00000000/00000.txt").write_text("no")
    (folder / "held_out").mkdir()
    for shade, kind in enumerate(("image", "label", "map"), 200):
        (folder / f"held_out/00000-{kind}.png").write_bytes(png(shade))
    (folder / "held_out.json").write_text(json.dumps(HELD))
    lines = [json.dumps({"prompt": one}) for one in (HOSTILE, "a hand")]
    (folder / "watched/prompts.jsonl").write_text("\n".join(lines) + "\n")
    return job_id, mine


def test_every_page_is_public_and_all_data_is_not():
    for one in pages_routes.ROUTES:
        assert one.policy == PUBLIC and one.method == "GET"
    assert {one.policy for one in figures_routes.ROUTES} == {READ}


@pytest.mark.parametrize("path", SHELLS)
def test_a_page_runs_its_own_script_only_and_names_no_other_place(made, path):
    answer = made[1].get(path)
    rules = dict(one.split(" ", 1) for one in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'" and "unsafe" not in str(rules)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "://" not in answer.text and "style=" not in answer.text
    assert re.search(r"\son\w+=", answer.text) is None
    assert re.findall(r"<script[^>]*>(.*?)</script>", answer.text) == [""]


def test_what_a_page_needs_is_served_with_its_type(made):
    _, client = made
    wanted = {
        path for page in SHELLS for path in re.findall(r'"(/static/[^"]+)"', client.get(page).text)
    }
    assert {"/static/dashboard.css", "/static/icon.svg", "/static/job.js"} <= wanted
    for path in wanted:
        answer = client.get(path)
        kind = answer.headers["content-type"].partition(";")[0]
        assert (
            answer.status_code == 200 and kind == pages_routes.TYPES[f".{path.rpartition('.')[2]}"]
        )
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_no_script_makes_markup_of_text():
    found = 0
    for path in (pages_routes.HERE / "static").glob("*.js"):
        text = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                     "Function(", "srcdoc", "localStorage", "document.cookie"):  # fmt: skip
            assert word not in text, path
        addresses = set(re.findall(r"https?://[^\s\"')]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}  # a namespace
        found += 1
    assert found >= 5


def test_a_page_says_nothing_of_what_its_address_says(made):
    for name in (HOSTILE, "ftjob-0", "%3Cscript%3E", "a%2Fb"):
        answer = made[1].get(f"/jobs/{name}")
        assert answer.status_code in (200, 401)  # with a slash it is no page at all
        assert "alert(" not in answer.text and "ftjob" not in answer.text


def test_templates_escape(tmp_path, monkeypatch):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/x.html").write_text("<p>{{ version }}")
    monkeypatch.setattr(pages_routes, "HERE", tmp_path)
    monkeypatch.setattr(pages_routes, "installed_version", lambda: HOSTILE)
    pages_routes._drawn.cache_clear()
    try:
        assert "<script" not in pages_routes._drawn("x.html")
    finally:
        pages_routes._drawn.cache_clear()


def test_names_and_prompts_come_as_json_that_no_browser_takes_for_a_page(made, job):
    _, client = made
    job_id, mine = job
    for path in (f"{JOBS}/{job_id}", f"{JOBS}/{job_id}/pictures", JOBS):
        answer = client.get(path, headers=mine)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get(f"{JOBS}/{job_id}/pictures", headers=mine).json()["prompts"][0] == HOSTILE


def test_pictures_are_listed_and_served(made, job):
    _, client = made
    job_id, mine = job
    listed = client.get(f"{JOBS}/{job_id}/pictures", headers=mine).json()
    assert [one["step"] for one in listed["looks"]] == [0, 25]
    assert [one["step"] for one in listed["sheets"]] == [25, 26]
    names = [name for look in listed["looks"] for name in look["names"]]
    assert names[0] == "step-00000000-00000.png" and len(names) == 4
    for name, shade in zip([*names, "step-00000025.png"], (0, 1, 25, 26, 99), strict=True):
        answer = client.get(f"{JOBS}/{job_id}/pictures/{name}", headers=mine)
        assert answer.content == png(shade)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_maps_and_the_worst_cases_are_pictures_as_well(made, job):
    _, client = made
    job_id, mine = job
    looks = client.get(f"{JOBS}/{job_id}/pictures", headers=mine).json()["looks"]
    held = client.get(f"{JOBS}/{job_id}/held_out", headers=mine).json()
    assert held["groups"] == HELD["groups"] and held["reliability"] == HELD["reliability"]
    (case,) = held["worst"]
    assert HELD["worst"][0].items() <= case.items()
    names = [*looks[1]["maps"], case["image"], case["label"], case["map"]]
    assert looks[1]["maps"] == ["step-00000025-00000-map.png", "step-00000025-00001-map.png"]
    for name, shade in zip(names, (125, 126, 200, 201, 202), strict=True):
        answer = client.get(f"{JOBS}/{job_id}/pictures/{name}", headers=mine)
        assert answer.content == png(shade)


@pytest.mark.parametrize("content", ["", "[]", '{"worst": 3}', '{"groups": {"a": 1}}', "{" * 9999])
def test_figures_that_nobody_can_read_are_none(made, job, content):
    service, client = made
    mine = job[1]
    job_id = client.post(JOBS, json=JOB, headers=mine).json()["id"]
    path = service.supervisor.folder(job_id) / "export/held_out.json"
    assert client.get(f"{JOBS}/{job_id}/held_out", headers=mine).json()["worst"] == []
    path.parent.mkdir(parents=True)
    path.write_text(content)
    said = client.get(f"{JOBS}/{job_id}/held_out", headers=mine).json()
    assert (said["groups"], said["reliability"], said["worst"]) == ({}, [], [])


@pytest.mark.parametrize(
    "name",
    [
        "worst-00001-image.png",
        "worst-00000-mask.png",
        "worst-0000-image.png",
        "step-00000025-00000-maps.png",
        "step-00000026.png",  # of another kind
        "step-00000027.png",  # a link
        "step-00000030-00000.png",  # through a link
        "step-00000099.png",
        "secret.png",
        "step-00000000-00000.txt",
        "..%2F..%2Froot.id",
        "%2e%2e",
        "step-00000025.png%00",
        "step-00000025.png%0A",
        "step-٠٠٠٠٠٠٢٥.png",
    ],
)
def test_what_is_no_picture_of_the_list_is_not_there(made, job, name):
    _, client = made
    job_id, mine = job
    assert client.get(f"{JOBS}/{job_id}/pictures/{name}", headers=mine).status_code == 404


@given(st.text(max_size=60) | st.from_regex(r"[./step0-9\-png%]{1,40}", fullmatch=True))
@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
def test_no_name_is_a_path_outside(name):
    place = figures_routes.picture_place(name)
    if place is not None:
        known = r"pictures/step-\d+\.png|watched/step-\d+/(maps/)?\d+\.png|held_out/\d{5}-\w+\.png"
        assert re.fullmatch(known, place, re.ASCII)


def test_figures_and_pictures_are_their_owners(made, job):
    service, client = made
    job_id, mine = job
    other = bearer(service, "bob")
    for route in figures_routes.ROUTES:
        path = filled(route.path.replace("{job_id}", job_id), "step-00000025.png")
        assert client.get(path).status_code == 401
        assert client.get(path, headers=other).status_code == 404
        assert client.get(path, headers=mine).status_code == 200  # control


def test_figures_are_curves_and_say_where_the_stream_goes_on(made, job):
    service, client = made
    job_id, mine = job
    notes = [
        Note("", type="metrics", data={"step": n, "pixel": n / 2, "odd": None, "word": "x"})
        for n in range(1000)
    ]
    service.jobs.note(job_id, [*notes, Note("the end")])
    said = client.get(f"{JOBS}/{job_id}/figures", headers=mine).json()
    (line,) = said["curves"].values()
    assert len(line) == figures_routes.POINTS and line[0] == [0, 0.0] and line[-1] == [999, 499.5]
    newest = client.get(f"{JOBS}/{job_id}/events?limit=1", headers=mine).json()["data"][0]
    assert said["last"] == newest["id"]


def test_short_curves_stay_whole():
    data = [{"step": n, "a": 1, "b": float("nan")} for n in range(5)]
    assert figures_routes.curves(data) == {"a": [(n, 1.0) for n in range(5)]}
    many = [{"step": 1, **{f"n{i}": i for i in range(200)}}]
    assert len(figures_routes.curves(many)) == figures_routes.NAMES
