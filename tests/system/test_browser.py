"""A person's whole way through the dashboard in a real browser, narrow and wide, light and dark."""

import json
import re
from urllib.parse import urlsplit

import pytest

from launch.service.database import Database
from launch.service.service import default_db
from launch.service.tokens import Tokens
from tests.launch.served import Served
from tests.system.foreign import call

pytestmark = pytest.mark.system
WAYS = [("light", 390), ("dark", 390), ("light", 1280), ("dark", 1280)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("dashboard"), "--slots", "2")
    yield served
    served.stop()


@pytest.fixture(scope="module")
def address(served):
    return f"http://127.0.0.1:{served.port}"


@pytest.fixture(scope="module")
def met(address):
    return call("browser", {"url": f"{address}/"})


@pytest.fixture(scope="module")
def walks(met):
    return {(one["scheme"], one["width"]): one for one in met["walks"]}


@pytest.mark.parametrize("way", WAYS)
def test_from_upload_to_download(walks, way):
    walk = walks[way]
    assert walk["deleted"] == "" and re.fullmatch("file-[0-9a-f]{24}", walk["training_file"])
    plan = walk["plan"]
    assert (plan["steps"], plan["seconds"], plan["pictures"]) == (30, 0.2, True)
    assert walk["file"][0] == "thing.txt" and json.loads(walk["file"][1]) == {"steps": 30}
    assert walk["steps"] == "30 of 30" and walk["curves"] >= 1
    assert (walk["picture"], walk["cells"]) == (48, 4)
    assert "drew step 30" in walk["log"] and "30" in walk["summary"]


@pytest.mark.parametrize("way", WAYS)
def test_a_threshold_moves_what_is_laid_over(walks, way):
    walk = walks[way]
    assert walk["unasked"] == 0 and walk["heat"] == [0.5, 0.5, 0]  # 0.6 on the left half
    assert walk["cell_heat"] == walk["cases"] == [0.5, 0] and walk["no_layer"] == [0]


@pytest.mark.parametrize("way", WAYS)
def test_a_detectors_page(walks, way):
    walk = walks[way]
    text = " ".join(walk["categories"].split())
    assert "<hand> 3 0.750" in text and "all 4 0.700" in text
    assert walk["reliability"] == 2


@pytest.mark.parametrize("way", WAYS)
def test_names_and_prompts_are_text(walks, way):
    assert walks[way]["title"] == "<b>first</b>" and walks[way]["prompt"] == "left <hand>"
    assert walks[way]["markup"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_it_fits_and_follows_the_colours_asked_for(walks, way):
    walk = walks[way]
    assert walk["wider"] == {"new": 0, "job": 0, "list": 0}
    light = sum(int(one) for one in re.findall(r"\d+", walk["back"])[:3]) > 3 * 128
    assert light == (way[0] == "light")


def test_no_fault_is_said_and_nobody_else_is_called(met, address):
    for one in (*met["walks"], met["cancelled"]):
        assert one["said"] == []
        hosts = {urlsplit(url).netloc for url in one["called"] if not url.startswith("blob:")}
        assert hosts == {urlsplit(address).netloc}
        assert len(one["called"]) > 20  # control: calls are seen


def test_paused_reloaded_and_gone_on(walks):
    walk = walks["light", 390]
    assert walk["at_pause"] == walk["after_reload"]
    assert 1 <= int(walk["at_pause"].partition(" ")[0]) < 30


def test_a_cancelled_job_offers_nothing_more(met):
    assert met["cancelled"]["asks"] == 0


def test_figures_of_any_name_and_number_are_drawn(met):
    figures = met["cancelled"]["figures"]
    assert figures["said"] == [["__proto__", 5000, 2], ["constructor", 5000, 3],
                               ["loss", 5000, -5000]]  # fmt: skip
    assert 400 < figures["longest"] <= 800 and figures["drawn"] == 3


def test_with_tokens_the_page_asks_for_one(met, served, address):  # of the jobs made by then
    database = Database.open(default_db(served.root))
    _, token = Tokens(database).create("local", ("read", "write"), None)
    database.close()
    asked = call("browser", {"url": f"{address}/", "token": token})
    assert asked["before"] == asked["others"] == 0
    assert json.loads(asked["file"]) == {"steps": 30}
    assert [one for one in asked["said"] if "401" not in one] == []
    assert all(token not in url for url in asked["called"])
