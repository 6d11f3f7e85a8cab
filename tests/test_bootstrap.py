import math

import numpy as np
import pytest
import torch

from pyrocg.bootstrap import (
    Bootstrap,
    bootstrap_factors,
    equal_tailed,
    heavy_tails,
    highest_density,
    merged_strata,
    weighted_quantiles,
)


def plain(weights, n_draws, seed):
    """One stratum and one group."""
    one = torch.zeros(len(weights), dtype=torch.long)
    return Bootstrap(weights, one, n_draws, seed)


def means(bootstrap, values):
    """Draws of weighted means and of mean weights."""
    columns = torch.cat([torch.ones(len(values), 1).double(), values.double()], 1)
    _, sums = bootstrap.sums(columns).pooled()
    return sums[:, 1:] / sums[:, :1], sums[:, 0] / len(values)


def weighted_sample(n, seed):
    """Draws of N(0, 1.5²) weighted for N(0, 1): E[x²] = 1, Z = 1."""
    generator = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(n, dtype=torch.float64, generator=generator)
    log_w = -0.5 * x.square() + 0.5 * (x / 1.5).square() + math.log(1.5)
    return x, log_w.exp()


@pytest.fixture(scope="module")
def intervals():
    """Intervals of the mean of x², of Z and of the median of x, over 300 seeds."""
    found = []
    for seed in range(300):
        x, w = weighted_sample(400, seed)
        bootstrap = plain(w, 300, seed)
        ratios, totals = means(bootstrap, x.square()[:, None])
        medians = bootstrap.quantiles(x, torch.tensor([0.5]))[1].draws[:, 0, 0]
        draws = torch.stack([ratios[:, 0], totals, medians], 1)
        found.append(torch.stack([equal_tailed(draws, 0.95), highest_density(draws, 0.95)]))
    return torch.stack(found)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("column", "truth"), [(0, 1.0), (1, 1.0), (2, 0.0)])
def test_95_percent_intervals_cover_the_truth(intervals, kind, column, truth):
    low, high = intervals[:, kind, 0, column], intervals[:, kind, 1, column]
    coverage = ((low <= truth) & (truth <= high)).double().mean().item()
    assert 0.9 <= coverage <= 0.98


# Groups of fixed size, which are strata

SHARES, CENTRES, WIDTHS = (0.6, 0.3, 0.1), (-3.0, 0.0, 4.0), (0.3, 1.0, 0.5)


def stratified_sample(n, seed):
    """Draws of a mixture with fixed counts; the mean of the mixture is -1.4."""
    generator = torch.Generator().manual_seed(seed)
    component = torch.repeat_interleave(torch.tensor([round(n * s) for s in SHARES]))
    noise = torch.randn(n, dtype=torch.float64, generator=generator)
    return component, torch.tensor(CENTRES)[component] + torch.tensor(WIDTHS)[component] * noise


def test_stratified_intervals_cover_and_are_narrower():
    covered, widths = [], []
    for seed in range(200):
        component, x = stratified_sample(600, seed)
        weights = torch.ones(600)
        columns = torch.stack([torch.ones(600).double(), x], 1)
        _, sums = Bootstrap(weights, component, 300, seed).sums(columns).pooled()
        draws = sums[:, 1:] / sums[:, :1]
        low, high = equal_tailed(draws[:, 0], 0.95).tolist()
        unaware = equal_tailed(means(plain(weights, 300, seed), x[:, None])[0][:, 0], 0.95)
        covered.append(low <= -1.4 <= high)
        widths.append([high - low, (unaware[1] - unaware[0]).item()])
    assert 0.91 <= np.mean(covered) <= 0.98
    own, unaware = np.mean(widths, axis=0)
    within = sum(s * w**2 for s, w in zip(SHARES, WIDTHS, strict=True))
    assert own == pytest.approx(2 * 1.96 * math.sqrt(within / 600), rel=0.05)
    assert unaware > 2.5 * own


def test_factors_keep_the_size_of_every_group():
    group = torch.tensor([0, 1, 1, 2, 2, 2])
    (factors,) = bootstrap_factors(group, 50, seed=0)
    assert factors.shape == (50, 6)
    for s, size in enumerate((1, 2, 3)):
        torch.testing.assert_close(factors[:, group == s].sum(1), torch.full((50,), size).double())
    assert (factors >= 0).all()


def test_factors_are_uniform_on_the_simplex():
    """Of three samples each share has mean 1/3 and variance 1/18."""
    (factors,) = bootstrap_factors(torch.zeros(3, dtype=torch.long), 20_000, seed=0)
    shares = factors / 3
    torch.testing.assert_close(shares.mean(0), torch.full((3,), 1 / 3).double(), atol=6e-3, rtol=0)
    torch.testing.assert_close(shares.var(0), torch.full((3,), 1 / 18).double(), atol=2e-3, rtol=0)


# Strata within groups, tails and shares


def test_strata_are_groups_and_components():
    component = torch.tensor([0, 1]).repeat(60)
    group = torch.arange(2).repeat_interleave(60)
    found = merged_strata(group, component)
    assert torch.bincount(found).tolist() == [30] * 4
    assert torch.equal(found, 2 * group + component)


def test_small_strata_of_a_group_are_joined_until_they_are_large_enough():
    sizes = (100, 30, 10, 3)
    component = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    found = merged_strata(torch.zeros(143, dtype=torch.long), component)
    assert sorted(torch.bincount(found).tolist()) == [43, 100]
    assert len(merged_strata(torch.zeros(3, dtype=torch.long), torch.arange(3)).unique()) == 1
    all_small = torch.arange(4).repeat_interleave(torch.tensor([100, 20, 20, 10]))
    found = merged_strata(torch.zeros(150, dtype=torch.long), all_small)
    assert sorted(torch.bincount(found).tolist()) == [50, 100]
    twice = merged_strata(torch.arange(2).repeat_interleave(143), component.repeat(2))
    assert sorted(torch.bincount(twice).tolist()) == [43, 43, 100, 100]


def test_draws_are_within_strata():
    """Equal values within a stratum: the mean of all is known."""
    component, x = stratified_sample(300, 0)
    values = torch.tensor(CENTRES)[component][:, None]
    one = torch.zeros(300, dtype=torch.long)
    made = Bootstrap(torch.ones(300), one, 50, seed=0, stratum=component)
    assert means(made, values)[0].std() < 1e-12
    assert (
        means(made, x[:, None])[0].std()
        < 0.5 * means(plain(torch.ones(300), 50, 0), values)[0].std()
    )


def heavy(n, k, seed):
    """Weights of mean 1/(1 - k) with a Pareto tail."""
    u = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (1 - u) ** -k


def test_intervals_of_heavy_weights_cover():
    """Of 165 weights with k = 0.5; without tails every sixth misses."""
    covered = []
    one = torch.zeros(165, dtype=torch.long)
    for seed in range(200):
        w = heavy(165, 0.5, seed)
        found = []
        for tails in (heavy_tails(w, one, 300, seed), ()):
            made = Bootstrap(w, one, 300, seed, tails=tails)
            low, high = equal_tailed(made.sums(torch.ones(165, 1)).pooled()[1] / 165, 0.95)
            found.append(bool(low <= 2.0 <= high))
        covered.append(found)
    with_tails, without = np.mean(covered, axis=0)
    assert 0.92 <= with_tails <= 0.99
    assert without < 0.88


def test_intervals_of_many_tails_together_cover():
    """Fourteen components of 100 log-normal weights: their shifts do not add up."""
    component = torch.arange(14).repeat_interleave(100)
    covered = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(1400, dtype=torch.float64, generator=generator).mul(0.6).exp()
        tails = heavy_tails(w, component, 200, seed)
        made = Bootstrap(w, torch.zeros_like(component), 200, seed, component, tails)
        low, high = equal_tailed(made.sums(torch.ones(1400, 1)).pooled()[1] / 1400, 0.95)
        covered.append(bool(low <= math.exp(0.18) <= high))
    assert np.mean(covered) >= 0.9


def test_intervals_of_a_rare_component_cover_beside_others():
    """Of 165 weights with k = 0.75; most samples miss the largest weights, and lie below."""
    component = torch.arange(2).repeat_interleave(torch.tensor([165, 100]))
    one, held, half = torch.zeros_like(component), [], []
    rare = (component == 0).double()[:, None]
    for seed in range(150):
        w = torch.cat([heavy(165, 0.75, seed), heavy(100, 0.2, seed + 999)])
        tails = heavy_tails(w, component, 200, seed)
        draws = Bootstrap(w, one, 200, seed, component, tails).sums(rare).pooled()[1][:, 0] / 165
        for found, level in ((held, 0.95), (half, 0.5)):
            low, high = equal_tailed(draws, level).tolist()
            found.append(low <= 4.0 <= high)
    assert np.mean(held) >= 0.92
    assert 0.4 <= np.mean(half) <= 0.6


def test_the_mean_of_equal_weights_in_a_tail_is_known():
    """Weights at the threshold are no part of the tail, whatever its size."""
    w = torch.ones(200, dtype=torch.float64)
    w[:10] = torch.linspace(1.5, 2.5, 10)
    (tail,) = heavy_tails(w, torch.zeros(200, dtype=torch.long), 2000, seed=0)
    assert sorted(tail.index.tolist()) == list(range(10))
    light = tail.means.median().item()
    assert light == pytest.approx(2.0, abs=0.25)


def test_tails_together_are_moved_no_further_than_each_by_itself():
    component = torch.arange(14).repeat_interleave(100)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(1400, dtype=torch.float64, generator=generator).exp()

    def moved(chosen):
        tails = heavy_tails(w[chosen], component[chosen], 500, seed=0)
        own = w[chosen]
        return torch.stack([len(t.index) * t.means.mean() - own[t.index].sum() for t in tails])

    alone = torch.stack([moved(component == k)[0] for k in range(14)])
    assert (alone > 0).sum() >= 12  # a generalised Pareto tail is heavier than a log-normal one
    together = moved(torch.ones_like(component, dtype=torch.bool)).sum()
    assert together.item() == pytest.approx(alone.norm().item(), rel=0.25)
    assert together < 0.45 * alone.sum()


def test_tails_have_their_drawn_means_in_every_draw(monkeypatch):
    monkeypatch.setattr("pyrocg.bootstrap._CHUNK", 3000)
    w, one = heavy(400, 0.4, 0), torch.zeros(400, dtype=torch.long)
    (tail,) = heavy_tails(w, one, 20, seed=0)
    made = Bootstrap(w, one, 20, seed=0, tails=(tail,))
    inside = torch.zeros(400).index_fill_(0, tail.index, 1.0)
    draws = made.sums(inside[:, None]).pooled()[1][:, 0]
    mass = Bootstrap(torch.ones(400), one, 20, seed=0).sums(inside[:, None]).pooled()[1][:, 0]
    torch.testing.assert_close(draws, mass * tail.means)


def test_no_tails_of_few_or_equal_weights():
    component = torch.arange(2).repeat_interleave(torch.tensor([24, 100]))
    assert heavy_tails(torch.ones(124), component, 10, seed=0) == ()
    (tail,) = heavy_tails(heavy(124, 0.3, 0), component, 10, seed=0)
    assert int(tail.index.min()) >= 24


def test_shares_multiply_the_weights_of_their_components():
    component, _ = stratified_sample(300, 0)
    w, one = torch.rand(300, dtype=torch.float64), torch.zeros(300, dtype=torch.long)
    corrected = Bootstrap(w, one, 40, 0, component)
    shares = corrected.relative_totals(component)
    assert shares.shape == (40, 3)
    made = Bootstrap(torch.ones(300), one, 40, 0, component, component=component, shares=shares)
    indicators = torch.nn.functional.one_hot(component)
    expected = shares * torch.bincount(component)
    torch.testing.assert_close(made.sums(indicators).pooled()[1], expected)
    _, drawn = corrected.sums(indicators).pooled()
    torch.testing.assert_close(shares, drawn / drawn.mean(0))
    assert bool((Bootstrap(0 * w, one, 5, 0).relative_totals(component) == 1).all())


# Sums


def test_means_are_centred_at_the_weighted_mean():
    x, w = weighted_sample(500, 0)
    ratios, totals = means(plain(w, 4000, 1), torch.stack([x, x.square()], 1))
    expected = (w @ torch.stack([x, x.square()], 1)) / w.sum()
    torch.testing.assert_close(ratios.mean(0), expected, atol=5e-3, rtol=0)
    assert totals.mean().item() == pytest.approx(w.mean().item(), abs=2e-3)


def test_groups_are_those_of_their_samples_alone():
    x, w = weighted_sample(50, 0)
    group = (torch.arange(50) >= 20).long()
    found = Bootstrap(w, group, 30, seed=0).sums(x[:, None])
    assert found.draws.shape == (30, 2, 1)
    torch.testing.assert_close(
        found.observed[:, 0], torch.stack([w[:20] @ x[:20], w[20:] @ x[20:]])
    )
    total, draws = found.pooled()
    assert total.item() == pytest.approx((w @ x).item())
    torch.testing.assert_close(draws, found.draws[:, 0] + found.draws[:, 1])


def test_draws_do_not_depend_on_the_scale_of_the_weights_and_repeat():
    x, w = weighted_sample(50, 0)
    first = means(plain(w, 20, 3), x[:, None])[0]
    torch.testing.assert_close(means(plain(1e6 * w, 20, 3), x[:, None])[0], first)
    assert torch.equal(means(plain(w, 20, 3), x[:, None])[0], first)
    assert not torch.equal(means(plain(w, 20, 4), x[:, None])[0], first)


def test_draws_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    plain(torch.ones(5), 3, 0).sums(torch.ones(5, 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_factors_know_nothing_of_samples_with_the_same_seed():
    """Numbers of one stream would give single draws that are many standard errors away."""
    x = torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratios = means(plain(torch.ones(20_000), 200, 0), x[:, None])[0][:, 0]
    assert ((ratios - x.mean()).abs().max() * math.sqrt(20_000) < 4.5).item()


def test_many_samples_are_drawn_in_chunks(monkeypatch):
    x, w = weighted_sample(30, 0)
    whole = plain(w, 25, 0).sums(x[:, None])
    monkeypatch.setattr("pyrocg.bootstrap._CHUNK", 90)
    torch.testing.assert_close(plain(w, 25, 0).sums(x[:, None]).draws, whole.draws)


def test_counts_are_the_weights_in_bins():
    index, w = torch.tensor([0, 2, 2, 0, -1]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    found = plain(w, 5000, 0).counts(index, 4)
    assert found.observed.tolist() == [[5.0, 0.0, 5.0, 0.0]]
    assert found.draws.shape == (5000, 1, 4)
    expected = torch.tensor([5.0, 0.0, 5.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found.draws.mean((0, 1)), expected, atol=0.2, rtol=0)


def test_counts_are_sums_of_indicators_in_every_group():
    _, w = weighted_sample(40, 0)
    group, index = torch.arange(2).repeat_interleave(20), torch.arange(40) % 3
    bootstrap = Bootstrap(w, group, 10, seed=0)
    counts = bootstrap.counts(index, 3)
    sums = bootstrap.sums(torch.nn.functional.one_hot(index, 3))
    torch.testing.assert_close(counts.observed, sums.observed)
    torch.testing.assert_close(counts.draws, sums.draws)


# Quantiles


def test_quantiles_of_groups_and_of_all():
    x, w = weighted_sample(60, 0)
    group = torch.arange(2).repeat_interleave(30)
    groups, pooled = Bootstrap(w, group, 10, seed=0).quantiles(x, torch.tensor([0.3, 0.5]))
    assert groups.draws.shape == (10, 2, 2)
    assert pooled.draws.shape == (10, 1, 2)
    probs = torch.tensor([0.3, 0.5])
    torch.testing.assert_close(groups.observed[1], weighted_quantiles(w[30:], x[30:], probs))
    torch.testing.assert_close(pooled.observed[0], weighted_quantiles(w, x, probs))


def test_weighted_quantiles_are_those_of_repeated_values():
    values, counts = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 5.0, 3.0])
    repeated = np.repeat(values.numpy(), counts.int().numpy())
    for p in (0.1, 0.45, 0.55, 0.75, 0.95):
        expected = np.quantile(repeated, p, method="inverted_cdf")
        assert weighted_quantiles(counts, values, torch.tensor([p])).item() == expected


def test_weighted_quantiles_skip_values_without_weight_and_batch():
    weights = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    found = weighted_quantiles(weights, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.01, 0.99]))
    assert found.tolist() == [[2.0, 3.0], [1.0, 3.0]]
    assert weighted_quantiles(torch.zeros(2), torch.ones(2), torch.tensor([0.5])).isnan().all()


# Intervals


def test_equal_tailed_interval():
    draws = torch.arange(101.0)[:, None].expand(-1, 2)
    assert equal_tailed(draws, 0.9).flatten().tolist() == pytest.approx([5, 5, 95, 95])


def test_highest_density_interval_of_a_skewed_density():
    """Of an exponential density it starts at 0 and ends where the probability is reached."""
    draws = torch.distributions.Exponential(1.0).icdf((torch.arange(20_000) + 0.5) / 20_000)
    low, high = highest_density(draws, 0.9).tolist()
    assert low == pytest.approx(0.0, abs=1e-3)
    assert high == pytest.approx(-math.log(0.1), abs=1e-2)
    assert highest_density(torch.stack([draws, -draws], 1), 0.5).shape == (2, 2)


def test_samples_without_weight_are_in_no_tail():
    w = torch.zeros(10_000)
    w[:60] = torch.linspace(0.5, 1.5, 60)
    (tail,) = heavy_tails(w, torch.zeros(10_000, dtype=torch.long), 500, seed=0)
    assert bool((w[tail.index] > 0).all())
    assert tail.means.mean().item() == pytest.approx(w[tail.index].mean().item(), rel=0.1)
