"""The meters: exact on what was painted, and they move when something collapses."""

import numpy as np
import pytest
import torch

from core.images import from_uint8
from core.seeds import generator
from miniature.law import CATEGORIES, draw, prompts
from miniature.meters import (
    Bench,
    coverage,
    drift,
    entropy,
    factor_table,
    marginals,
    sharpness,
    values_of,
)
from miniature.oracle import Diagnosis
from miniature.paint import render
from miniature.render import render_samples
from treat import figures


@pytest.fixture(scope="module")
def few():
    """Two valid images of each category with their prompts."""
    samples = render_samples(10, seed=1)
    images = from_uint8(np.stack([sample.image for sample in samples]))
    return images, [sample.record.prompt for sample in samples]


def table(n: int, collapse: bool = False) -> dict[str, np.ndarray]:
    """Factors of n scenes a category as the oracle would read them; or of one scene n times."""
    said, shown, pose = [], [], []
    for name, law in CATEGORIES.items():
        scenes = draw(name, n, generator(2))
        scenes = scenes[torch.zeros(n, dtype=torch.long)] if collapse else scenes
        said += prompts(scenes)
        shown += [{f: scenes.value(i, f) for f in law.factors} for i in range(n)]
        pose.append(scenes.pose)
    none = torch.zeros(len(said), 1, 1, 1)
    found = Diagnosis(
        map=none,
        posterior=none,
        flagged=torch.zeros(len(said), dtype=torch.bool),
        nearest=torch.zeros(len(said), 3, 1, 1),
        factors=shown,
        pose=torch.cat(pose),
    )
    return factor_table(said, found)


def test_bench_looks_once_a_batch(few):
    images, said = few
    looks = []

    def diagnose(*words):
        looks.append(len(words[0]))
        return Bench().diagnose(*words)

    bench = Bench(diagnose)
    map = bench.judge(images, said)
    assert map.shape == (10, 1, 64, 64) and not bench.flagged(images, said).any()
    meters = bench.meters(images, said)
    assert looks == [10]
    assert (meters["attribute_match"] == 1).all() and set(meters["category"]) == set(CATEGORIES)
    images = images.clone()
    bench.judge(images[:1], said[:1])
    images[0] = 0.5  # the same tensor with other contents is another batch
    assert bench.flagged(images[:1], said[:1]).all() and looks == [10, 1, 1]


def test_attribute_match_counts_what_is_not_shown(few):
    images, said = few
    scenery = [i for i, prompt in enumerate(said) if "scenery" in prompt]
    swap = {"round": "pine", "pine": "round"}
    wrong = [
        " ".join(swap.get(word, word) for word in said[i].split(" ")) for i in scenery
    ]  # one of three stated factors
    match = Bench().meters(images[scenery], wrong)["attribute_match"]
    assert match == pytest.approx(2 / 3)


def test_factor_columns_are_what_the_evaluation_reads():
    columns = table(40)
    assert set(figures.factors(columns)) == set(columns)
    assert "stated.sign.word" in columns and "free.sign.sky" in columns
    assert "free.hand.tilt" in columns and "free.face.tilt" not in columns
    here = columns["free.bicycle.dy"]
    assert (here >= 0).sum() == 40 and set(here[here >= 0]) <= {0, 1, 2}
    assert values_of("free.bicycle.dy") == ("-10", "-4", "2")
    assert values_of("stated.hand.side") == ("left", "right")


def test_marginals_are_shares():
    shares = marginals(table(60))
    assert all(s.sum() == pytest.approx(1) for s in shares.values())
    assert shares["free.hand.horizon"] == pytest.approx([0.5, 0.5], abs=0.2)
    assert marginals({"free.hand.horizon": np.array([-1, -1])}) == {}


def test_drift_is_what_leaves_base_and_law():
    """The law's horizons are high and low, equally frequent; what is stated is not the law's."""

    def shown(first: int, name: str = "free.hand.horizon") -> dict[str, np.ndarray]:
        return {name: np.array([0] * first + [1] * (100 - first) + [-1] * 50)}

    for first in (30, 41, 50):  # from the base's share to the law's
        assert drift(shown(first), shown(30)) == ("", "", 0)
    for first, gone in ((56, 0.06), (23, 0.07)):
        name, _, found = drift(shown(first), shown(30))
        assert name == "free.hand.horizon" and abs(found) == pytest.approx(gone)
    side = "stated.hand.side"
    assert abs(drift(shown(50, side), shown(71, side))[2]) == pytest.approx(0.21)
    assert drift(table(400, collapse=True), table(400))[2] > 0.4


def test_entropy_and_coverage_see_a_collapse():
    varied, same = table(200), table(200, collapse=True)
    assert entropy(varied) > 0.97 and coverage(varied) == pytest.approx(1, abs=0.1)
    assert entropy(same) == 0 and coverage(same) < 0.05
    half = {"free.hand.horizon": np.array([0, 0, 0, 1])}
    assert entropy(half) == pytest.approx(0.8113, abs=1e-4)  # bits of a quarter
    assert np.isnan(entropy({})) and np.isnan(coverage(table(0)))


def test_sharpness_falls_with_blur():
    images = render(draw("sign", 4, generator(3)))
    soft = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    assert (sharpness(soft) < 0.7 * sharpness(images)).all()
    assert sharpness(torch.full((1, 3, 8, 8), 0.3)) == pytest.approx(0, abs=1e-6)
    checker = torch.zeros(1, 3, 8, 8)
    checker[..., ::2, ::2] = checker[..., 1::2, 1::2] = 1
    assert sharpness(checker) == pytest.approx(4.0, abs=1e-5)
