"""The page stands alone: no outside address, hostile prompts are text, every arm is in it."""

import re
from html.parser import HTMLParser

import pytest
import torch

from treat import report

HOSTILE = '</script><img src=x onerror="alert(1)">&amp;\u2028'


def page(prompt="a hand", curves=()):
    draw = torch.Generator().manual_seed(0)
    image, map_ = torch.rand(3, 8, 8, generator=draw), torch.rand(1, 8, 8, generator=draw)
    arms = {"base": image, "treated": image}
    pair = report.Pair(prompt, 5, arms, dict.fromkeys(arms, map_))
    figure = {"artifact_frequency": 0.5, "interval": {"artifact_frequency": [0.4, 0.6]}, "n": 9}
    figure["by_category"] = {
        "hand": {"artifact_frequency": 0.25, "artifact_area": 0.013, "n": 4},
        "<sign>": {"artifact_frequency": 1.0, "artifact_area": 0.5, "n": 5},
    }
    difference = {"difference": -0.2, "interval": [-0.3, -0.1]}
    summary = {
        "arms": {"base": figure, "treated": figure},
        "differences": {"treated - base": {"artifact_frequency": difference}},
        "method": "paired",
    }
    return report.render("Before & after", "a note", summary, [pair], curves)


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def elements(text):
    parser = Elements()
    parser.feed(text)
    return parser.found


def test_no_outside_address():
    text = page()
    words = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert len(words) < len(text) and not re.search(r"(https?:|)//", words)
    for tag, attributes in elements(text):
        assert tag not in ("link", "iframe", "img") and "src" not in attributes


def test_a_hostile_prompt_stays_text():
    tags = [tag for tag, _ in elements(page(HOSTILE))]
    assert tags == [tag for tag, _ in elements(page())]
    assert "onerror" not in page(HOSTILE).split("<script>")[0]


def test_a_row_for_every_group():
    text = page()
    assert "<h3>By category: images with artifacts, and area</h3>" in text
    assert "<th>hand <small>n = 4</small></th><td>25.0% <small>1.30%</small></td>" in text
    assert "&lt;sign&gt;" in text and "<sign>" not in text


def test_arms_without_prompts_have_groups_of_their_own():
    hand = {"artifact_frequency": 0.25, "artifact_area": 0.013, "n": 4}
    arms = {"base": {"by_category": {"hand": hand}},
            "asced": {"by_category": {"face": hand, "hand": hand | {"n": 3}}}}  # fmt: skip
    text = "".join(report.group_tables(arms))
    cells = [f"<td>25.0% <small>1.30%, n = {n}</small></td>" for n in (4, 3)]
    assert f"<tr><th>hand</th>{''.join(cells)}</tr>" in text
    assert f"<tr><th>face</th><td>none</td>{cells[0]}</tr>" in text


def test_figures_with_intervals_and_differences():
    text = page()
    assert "50 <small>[40, 60]</small>" in text
    assert '<td class="clear">-20 <small>[-30, -10]</small></td>' in text


@pytest.mark.parametrize("low, marked", [(-0.1, False), (0.05, True)])
def test_only_a_difference_clear_of_zero_is_marked(low, marked):
    pairs = {"d": {"sharpness": {"difference": 0.1, "interval": [low, 0.3]}}}
    text = "".join(report.differences({"differences": pairs}))
    assert ('class="clear"' in text) == marked and "+0.1" in text
    assert report.differences({"differences": {}}) == []


def test_what_a_detector_sees_is_named_after_it():
    arms = {"base": {"reward_area": 0.25, "interval": {"reward_area": [0.2, 0.3]}, "n": 2}}
    assert "reward: artifact area <small>%</small></th><td>25 " in report.table({"arms": arms})


def test_curves():
    curve = report.Curve("reward", [(0, 0.5), (10, 0.25), (20, 0.125)], kept=10)
    text = page(curves=[curve])
    assert "<polyline" in text and "kept" in text and "step 20" in text
    assert report.svg(report.Curve("one point", [(0, 1.0)])) == ""


def test_large_images_are_shrunk():
    small, large = (
        report.data_url(torch.zeros(3, 512, 512)),
        report.data_url(torch.zeros(3, 1024, 1024)),
    )
    assert small == large
