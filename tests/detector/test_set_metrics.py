"""FID, KID, precision and recall against closed forms and loops, and how they move."""

import pytest
import torch

from core.errors import UserError
from detector.set_metrics import Fid, covered, inside, interval, kid, resamples


def gaussian(n: int, seed: int, mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0)):
    """n points whose mean and covariance are exactly these."""
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).double()
    points = points - points.mean(dim=0)
    white = points @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(points.T))).T
    return white * torch.tensor(deviation).double() + torch.tensor(mean).double()


def test_fid_of_known_gaussians_is_the_closed_form():
    real = gaussian(500, 0, deviation=(1.0, 2.0, 0.5))
    other = gaussian(300, 1, mean=(3.0, 0.0, -1.0), deviation=(2.0, 2.0, 1.5))
    # Diagonal covariances commute: |mean|^2 + the squared differences of the deviations.
    wanted = (9 + 1) + (1 + 0 + 1)
    assert Fid(real)(other) == pytest.approx(wanted, rel=1e-6)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))
    turned = [points @ turn.double() for points in (real, other)]
    assert Fid(turned[0])(turned[1]) == pytest.approx(wanted, rel=1e-6)


def test_fid_of_a_set_with_itself_is_nothing_and_one_object_serves_many_sets():
    real, fid = gaussian(200, 0), Fid(gaussian(200, 0))
    far = fid(real + 2)
    assert far == pytest.approx(12, rel=1e-6)
    assert fid(real) == pytest.approx(0, abs=1e-6)
    assert fid(real + 2) == far


def direct_kid(x, y):
    """Binkowski et al.'s unbiased estimate, pair by pair."""

    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    own = [
        sum(kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j)
        / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    across = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    return own[0] + own[1] - 2 * across


def test_kid_is_the_unbiased_estimate():
    x, y = gaussian(20, 0), gaussian(20, 1, mean=(1.0, 0.0, 0.0))
    mean, deviation = kid(x, y, subsets=1, subset=20)
    assert mean == pytest.approx(direct_kid(x, y), rel=1e-6) and deviation == 0
    x, y = gaussian(2000, 0), gaussian(2000, 1)
    assert abs(kid(x, y)[0]) < 0.05 < 0.5 < kid(x, y + 1)[0]


def test_kid_draws_its_subsets_by_its_seed_and_leaves_the_global_one_alone():
    x, y = gaussian(60, 0), gaussian(80, 1)
    state = torch.get_rng_state()
    assert kid(x, y, seed=1) == kid(x, y, seed=1) != kid(x, y, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def brute_inside(points, manifold, k):
    """Kynkaanniemi et al.'s equation 1 with loops."""
    found = []
    for p in points:
        hit = False
        for i, r in enumerate(manifold):
            others = sorted(float((r - o).norm()) for j, o in enumerate(manifold) if j != i)
            hit |= float((p - r).norm()) <= others[k - 1]
        found.append(hit)
    return found


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_loops(k):
    real, drawn = gaussian(40, 0), gaussian(30, 1, mean=(1.0, 0.5, 0.0)) * 1.5
    for points, manifold in ((drawn, real), (real, drawn)):
        found = inside(points, manifold, k).tolist()
        assert found == brute_inside(points, manifold, k)
        assert 0 < sum(found) < len(found)


def test_blocks_do_not_change_what_is_inside(monkeypatch):
    real, drawn = gaussian(40, 0), gaussian(30, 1, mean=(1.0, 0.5, 0.0))
    whole = inside(drawn, real)
    monkeypatch.setattr("detector.set_metrics.BLOCK", 7)
    assert (inside(drawn, real) == whole).all()


def test_precision_falls_with_strays_and_recall_with_lost_modes():
    left, right = gaussian(200, 0), gaussian(200, 1, mean=(20.0, 0.0, 0.0))
    real = torch.cat([left, right])
    one_mode = gaussian(400, 2)
    assert inside(one_mode, real).mean() > 0.8 and inside(real, one_mode).mean() < 0.55
    strays = torch.cat([gaussian(200, 3), gaussian(200, 4, mean=(20.0, 0.0, 0.0))])
    strays[:100] += 50
    assert inside(strays, real).mean() < 0.75 < 0.6 + inside(real, strays).mean()


def test_coverage_is_that_of_loops():
    real, drawn = gaussian(40, 0), gaussian(12, 1, mean=(1.0, 0.5, 0.0)) * 1.5
    for k in (1, 5):
        loops = []
        for i, r in enumerate(real):
            others = sorted(float((r - o).norm()) for j, o in enumerate(real) if j != i)
            loops.append(any(float((r - d).norm()) <= others[k - 1] for d in drawn))
        assert covered(real, drawn, k).tolist() == loops and 0 < sum(loops) < len(loops)
    assert covered(real, real).all()


def test_strays_raise_recall_and_not_coverage():
    """Half of the modes lost, then four strays so far off that they reach nearly everything."""
    real = torch.cat([gaussian(200, 0), gaussian(200, 1, mean=(20.0, 0.0, 0.0))])
    sound = gaussian(200, 2)
    strayed = sound.clone()
    strayed[:4] = torch.tensor([[60.0, 0, 0], [-60.0, 0, 0], [0, 60.0, 0], [0, -60.0, 0]])
    lost, found = (inside(real, drawn).mean() for drawn in (sound, strayed))
    assert lost < 0.55 and found > 0.95
    for drawn in (sound, strayed):
        assert 0.4 < covered(real, drawn).mean() < 0.55
    assert covered(real, torch.cat([sound, gaussian(200, 3, mean=(20.0, 0.0, 0.0))])).mean() > 0.9


def test_blocks_do_not_change_what_is_covered(monkeypatch):
    real, drawn = gaussian(40, 0), gaussian(12, 1, mean=(1.0, 0.5, 0.0))
    whole = covered(real, drawn)
    monkeypatch.setattr("detector.set_metrics.BLOCK", 7)
    assert (covered(real, drawn) == whole).all() and 0 < whole.sum() < len(whole)


def test_resamples_are_a_function_of_the_seed_and_give_an_interval():
    first, again, other = (torch.stack(list(resamples(50, 4, seed))).tolist() for seed in (0, 0, 1))
    assert first == again != other and first[0] != first[1]
    real, drawn = gaussian(400, 0), gaussian(400, 1, mean=(1.0, 0.0, 0.0))
    fid = Fid(real)
    low, high = interval(fid(drawn), [fid(drawn[rows]) for rows in resamples(400, 100, 0)])
    # FID is about |mean|^2 here, whose deviation is 2 |mean| / sqrt(400).
    assert low < 1 < high and high - low == pytest.approx(4 * 1.96 / 20, rel=0.35)
    assert interval(1.0, []) is None


def test_sets_that_are_too_small_are_refused():
    for compare in (lambda: Fid(gaussian(20, 0))(torch.zeros(1, 3)), lambda: Fid(torch.zeros(1, 3)),
                    lambda: kid(torch.zeros(1, 3), gaussian(9, 0))):  # fmt: skip
        with pytest.raises(UserError, match="at least two"):
            compare()
    with pytest.raises(UserError, match="at least 4 in a set"):
        inside(gaussian(20, 0), gaussian(20, 1)[:3])
    with pytest.raises(UserError, match="at least 6 in a set"):
        covered(gaussian(5, 0), gaussian(20, 1))
