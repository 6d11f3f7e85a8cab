"""Estimates, their intervals and the parts of their uncertainty, against closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyrocg.bootstrap import Bootstrap
from pyrocg.estimates import FreeEnergySurface, Histogram, equal_weight_fraction
from pyrocg.estimators import WeightedSample, bin_edges, bin_index
from pyrocg.observables import Observable

X = Observable("x", "nm", len)
ANGLE = Observable("angle", "rad", len, circular=True)


def sample(weights, group=None, shared_truth=True, n_draws=400, seed=0, level=0.95):
    """Weighted samples, in one group unless told otherwise."""
    group = torch.zeros(len(weights), dtype=torch.long) if group is None else group
    bootstrap = Bootstrap(weights, group, n_draws, seed)
    return WeightedSample(bootstrap, level, shared_truth)


def normal(n, seed=0):
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Parts of one group


def test_equal_weights_leave_monte_carlo_noise_alone():
    x = 2.0 + 3.0 * normal(4000)
    (found,) = sample(torch.ones(4000), n_draws=4000).means([X], [x])
    assert found.mean == pytest.approx(x.mean().item())
    assert found.monte_carlo == pytest.approx(x.std().item() / math.sqrt(4000), rel=0.05)
    assert (found.posterior, found.weights) == (0.0, 0.0)
    assert np.diff(found.interval)[0] == pytest.approx(2 * 1.96 * found.monte_carlo, rel=0.05)


def test_unequal_weights_add_what_they_cost():
    """Half of the samples weigh three times as much: the variance is 2 (1 + 9) / 16 = 1.25 fold."""
    weights = torch.tensor([1.0, 3.0]).repeat(3000)
    x = normal(6000)
    (found,) = sample(weights, n_draws=4000).means([X], [x])
    error = x.std().item() / math.sqrt(6000)
    assert found.monte_carlo == pytest.approx(error, rel=0.05)
    assert found.weights == pytest.approx(error * math.sqrt(0.25), rel=0.15)
    assert found.standard_deviation == pytest.approx(error * math.sqrt(1.25), rel=0.05)
    assert np.std(found.draws) == pytest.approx(found.standard_deviation, rel=1e-3)


def test_weights_that_know_the_observable_cost_more():
    """Of importance sampling by hand: variance of w (f - mu) over that of f, divided by n."""
    x = 0.9 * normal(20_000)
    w = (-0.5 * x.square() + 0.5 * (x / 0.9).square()).exp()
    f = x.square()
    mu = (w @ f / w.sum()).item()
    exact = w.square() @ (f - mu).square() / w.sum() ** 2
    ideal = w @ (f - mu).square() / w.sum() / len(w)
    one = torch.zeros(len(w), dtype=torch.long)
    fraction = equal_weight_fraction(w, (f - mu)[:, None], one)
    assert fraction.item() == pytest.approx((ideal / exact).item())
    (found,) = sample(w).means([X], [f])
    assert found.monte_carlo == pytest.approx(ideal.sqrt().item(), rel=0.1)
    assert found.standard_deviation == pytest.approx(exact.sqrt().item(), rel=0.1)


def test_parts_of_bins_are_those_of_their_indicators():
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(500, generator=generator).double()
    index = torch.randint(-1, 4, (500,), generator=generator)
    stratum = torch.randint(0, 3, (500,), generator=generator)
    made = sample(weights)
    made = replace(made, bootstrap=replace(made.bootstrap, stratum=stratum))
    p = torch.zeros(4).double().index_add_(0, index[index >= 0], weights[index >= 0])
    p = p / p.sum()
    influence = (index[:, None] == torch.arange(4)).double() - p
    influence[index < 0] = 0.0
    expected = equal_weight_fraction(weights, influence, stratum)
    torch.testing.assert_close(made._bin_fraction(index, p), expected)


def test_an_angle_across_the_cut():
    x = math.pi + 0.2 * normal(3000)
    wrapped = torch.remainder(x + math.pi, 2 * math.pi) - math.pi
    found, mirrored = sample(torch.ones(3000), n_draws=2000).means([ANGLE, ANGLE], [wrapped, x])
    assert math.cos(found.mean - x.mean().item()) == pytest.approx(1.0, abs=1e-4)
    assert found.monte_carlo == pytest.approx(x.std().item() / math.sqrt(3000), rel=0.06)
    assert found.draws == pytest.approx(mirrored.draws)
    assert found.interval[0] < found.mean < found.interval[1]


# The spread of groups


def grouped(d, m, spread, noise, seed):
    """d groups of m samples about their own centres; and the centre of another group."""
    centres = spread * normal(d + 1, seed)
    group = torch.arange(d).repeat_interleave(m)
    return group, centres[group] + noise * normal(d * m, seed + 10_000), centres[-1].item()


@pytest.mark.parametrize(("spread", "noise"), [(1.0, 0.1), (1.0, 2.0)])
def test_95_percent_intervals_hold_another_group(spread, noise):
    covered = []
    for seed in range(300):
        group, x, other = grouped(20, 15, spread, noise, seed)
        made = sample(torch.ones(300), group, shared_truth=False, n_draws=300, seed=seed)
        low, high = made.means([X], [x])[0].interval
        covered.append(low <= other <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_95_percent_intervals_hold_a_shared_truth():
    """Groups that disagree more than their noise, around one truth of 0."""
    covered = []
    for seed in range(300):
        group, x, _ = grouped(10, 30, 1.0, 1.0, seed)
        made = sample(torch.ones(300), group, shared_truth=True, n_draws=300, seed=seed)
        low, high = made.means([X], [x])[0].interval
        covered.append(low <= 0.0 <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_the_spread_is_free_of_monte_carlo_noise():
    """Averaged over seeds, S² - v is the spread's variance; S² alone is twice that."""
    found = []
    for seed in range(200):
        group, x, _ = grouped(20, 25, 0.4, 2.0, seed)
        means = x.reshape(20, 25).mean(1)
        made = sample(torch.ones(500), group, shared_truth=False, n_draws=100, seed=seed)
        found.append([made.means([X], [x])[0].posterior ** 2, means.var().item()])
    corrected, raw = np.mean(found, axis=0)
    assert raw == pytest.approx(0.16 + 4 / 25, rel=0.1)
    assert corrected == pytest.approx(0.16 * (1 + 1 / 20), rel=0.15)


def test_total_variance_is_the_sum_of_the_parts():
    group, x, _ = grouped(100, 30, 0.5, 2.0, seed=0)
    weights = torch.tensor([1.0, 3.0]).repeat(1500)
    (found,) = sample(weights, group, shared_truth=False, n_draws=5000).means([X], [x])
    parts = found.posterior**2 + found.monte_carlo**2 + found.weights**2
    assert found.draws.var() == pytest.approx(parts, rel=0.05)
    assert found.standard_deviation == pytest.approx(math.sqrt(parts))


def test_a_spread_of_angles_and_averages_within_their_range():
    group, x, _ = grouped(8, 50, 0.3, 0.1, seed=3)
    wrapped = torch.remainder(x, 2 * math.pi) - math.pi
    population = (x > 0.55).double()
    angle, share = sample(torch.ones(400), group, shared_truth=False).means(
        [ANGLE, X], [wrapped, population]
    )
    expected = x.reshape(8, 50).mean(1).std().item() * math.sqrt(1 + 1 / 8)
    assert angle.posterior == pytest.approx(expected, rel=0.1)
    assert 0 <= share.draws.min() <= share.draws.max() <= 1


def test_groups_without_weight_are_left_out():
    group, x, _ = grouped(3, 40, 1.0, 0.1, seed=0)
    weights = (group < 2).double()
    (whole,) = sample(weights, group, shared_truth=False).means([X], [x])
    (half,) = sample(weights[:80], group[:80], shared_truth=False).means([X], [x[:80]])
    assert whole.posterior == pytest.approx(half.posterior, rel=0.05)
    (median,) = sample(weights, group).quantiles(x, torch.tensor([0.5]).double(), "nm")
    assert math.isfinite(median.standard_deviation)


# Intervals


def test_credible_intervals_of_both_kinds_at_any_level():
    x = normal(1000).exp()
    (found,) = sample(torch.ones(1000), n_draws=4000).means([X], [x])
    assert found.credible_interval(0.95) == pytest.approx(found.interval)
    for level in (0.5, 0.89):
        both = [found.credible_interval(level, k) for k in ("equal_tailed", "highest_density")]
        for low, high in both:
            inside = np.mean((found.draws >= low) & (found.draws <= high))
            assert inside == pytest.approx(level, abs=0.01)
        assert both[1][1] - both[1][0] <= both[0][1] - both[0][0]


@pytest.mark.parametrize("arguments", [(0.0,), (1.0,), (0.9, "widest")])
def test_credible_intervals_refuse_other_words(arguments):
    (found,) = sample(torch.ones(10)).means([X], [normal(10)])
    with pytest.raises(ValueError, match="expected a level between 0 and 1 and one of equal_t"):
        found.credible_interval(*arguments)


# Quantiles, bins, free energies


def test_quantiles_have_parts():
    group, x, _ = grouped(40, 250, 0.5, 1.0, seed=0)
    median = sample(torch.ones(10_000), group, shared_truth=False).quantiles(
        x, torch.tensor([0.5]).double(), "nm"
    )[0]
    medians = x.reshape(40, 250).median(1).values
    noise = math.pi / 2 / 250
    expected = math.sqrt((medians.var().item() - noise) * (1 + 1 / 40))
    assert median.posterior == pytest.approx(expected, rel=0.05)
    assert median.monte_carlo == pytest.approx(math.sqrt(math.pi / 2 / 10_000 * 1.25), rel=0.2)


def test_histograms_have_parts_in_units_of_density():
    group, x, _ = grouped(20, 500, 0.3, 1.0, seed=0)
    edges = np.linspace(-1.0, 1.0, 5)
    index = torch.from_numpy(bin_index(x.numpy(), False, edges))
    made = sample(torch.ones(10_000), group, shared_truth=False)
    found = made.histogram((edges,), index)
    assert (found.density * 0.5).sum() == pytest.approx(1.0)
    share = torch.stack([index.reshape(20, 500) == b for b in range(4)], -1).double().sum(1)
    share = share / share.sum(1, keepdim=True)
    p = found.density * 0.5
    inside = (index >= 0).double().mean().item() * 500
    expected = (share.var(0) - torch.from_numpy(p * (1 - p)) / inside) * (1 + 1 / 20)
    np.testing.assert_allclose(0.5 * found.posterior, expected.clamp(min=0).sqrt(), rtol=0.15)
    np.testing.assert_allclose(
        0.5 * found.monte_carlo, np.sqrt(p * (1 - p) / (20 * inside)), rtol=0.2
    )
    assert np.all(found.lower >= 0)


def test_free_energy_difference_of_two_states():
    """p2/p1 = 3: -kT log 3, and to first order kT (1/p1 + 1/p2)^(1/2) / n^(1/2) as its error."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(8000, generator=generator)
    first, second = u < 0.2, u > 0.4
    found = sample(torch.ones(8000), n_draws=2000).free_energy_difference(first, second, kt=2.5)
    p, q = first.double().mean().item(), second.double().mean().item()
    assert found.mean == pytest.approx(-2.5 * math.log(q / p))
    assert found.monte_carlo == pytest.approx(2.5 * math.sqrt((1 / p + 1 / q) / 8000), rel=0.06)
    assert (found.unit, found.posterior) == ("kJ/mol", 0.0)


def test_free_energy_difference_of_equal_states_is_on_both_sides_of_zero():
    first = torch.arange(1000) % 2 == 0
    found = sample(torch.ones(1000), n_draws=500).free_energy_difference(first, ~first, kt=2.5)
    assert found.mean == 0.0
    assert found.interval[0] < -0.1
    assert found.interval[1] > 0.1


def test_free_energy_difference_over_groups():
    group, x, _ = grouped(20, 2000, 0.2, 1.0, seed=1)
    made = sample(torch.ones(40_000), group, shared_truth=False)
    found = made.free_energy_difference(x < -0.5, x > 0.5, kt=2.5)
    each = (x.reshape(20, 2000) < -0.5).sum(1) / (x.reshape(20, 2000) > 0.5).sum(1)
    expected = 2.5 * each.log().std().item() * math.sqrt(1 + 1 / 20)
    assert found.posterior == pytest.approx(expected, rel=0.1)
    nowhere = replace(made, bootstrap=replace(made.bootstrap, n_draws=20))
    rare = torch.zeros_like(x, dtype=torch.bool)
    rare[:50] = True  # in one group only
    assert math.isfinite(nowhere.free_energy_difference(rare, x > 0, 2.5).standard_deviation)


def test_free_energy_intervals_cover():
    covered = []
    for seed in range(300):
        u = torch.rand(400, generator=torch.Generator().manual_seed(seed))
        found = sample(torch.ones(400), n_draws=200, seed=seed).free_energy_difference(
            u < 0.1, u > 0.5, kt=1.0
        )
        covered.append(found.interval[0] <= -math.log(5.0) <= found.interval[1])
    assert 0.92 <= np.mean(covered) <= 0.98


def test_free_energy_surface_is_the_logarithm_of_the_density():
    p = np.array([[0.5, 0.25], [0.25, 0.0]])
    part = 0.1 * p
    histogram = Histogram((np.arange(3.0),) * 2, p, 0.5 * p, 2 * p, part, 2 * part, 3 * part)
    found = FreeEnergySurface.of(histogram, kt=2.0)
    ln2 = 2.0 * math.log(2.0)
    np.testing.assert_allclose(found.energy, [[0, ln2], [ln2, np.inf]])
    np.testing.assert_allclose(found.lower, [[-ln2, 0], [0, np.nan]])
    np.testing.assert_allclose(found.upper, [[ln2, 2 * ln2], [2 * ln2, np.nan]])
    for k, name in enumerate(("posterior", "monte_carlo", "weights"), start=1):
        value = 0.2 * k
        np.testing.assert_allclose(getattr(found, name), [[value, value], [value, np.nan]])


# Bins


def test_bins_hold_their_lower_edge_and_the_last_both():
    edges = bin_edges(np.array([0.0, 2.0]), False, 4, None)
    assert edges.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    values = np.array([-0.1, 0.0, 0.5, 1.99, 2.0, 2.1])
    assert bin_index(values, False, edges).tolist() == [-1, 0, 1, 3, 3, -1]
    turned = bin_edges(values, True, 2, None)
    assert bin_index(np.array([-3.0, 3.0, 3.5]), True, turned).tolist() == [0, 1, 0]
