import math

import pytest
import torch

from pyrocg.tails import tail_mean_draws, tail_size, widened


def generalised_pareto(m, k, scale, seed):
    u = torch.rand(m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return scale * -torch.log1p(-u) if k == 0 else scale * torch.expm1(-k * torch.log1p(-u)) / k


def posterior_quantiles(x, probs):
    """Of the mean, by quadrature on a wide and fine grid; prior of k worth ten samples at 1/2."""
    shapes = (torch.arange(190, dtype=torch.float64) + 0.5) / 190 * 1.89 - 0.99
    log_scale = torch.linspace(-6, 6, 600, dtype=torch.float64) + x.median().log()
    rows = []
    for k in shapes:
        inside = 1 + k / log_scale.exp()[:, None] * x
        log_p = -len(x) * log_scale - (1 + 1 / k) * inside.clamp(min=0).log().sum(1)
        log_p = log_p - 0.5 * (k - 0.5) ** 2 / (1.5**2 / 10)
        rows.append(torch.where((inside > 0).all(1), log_p, -torch.inf))
    p = torch.softmax(torch.stack(rows).flatten(), 0)
    means, order = (log_scale.exp() / (1 - shapes[:, None])).flatten().sort()
    reached = p[order].cumsum(0)
    return means[torch.searchsorted(reached, probs)]


# the second has one sample far above all others: its posterior starts far from its mean
@pytest.mark.parametrize(
    ("m", "k", "seed"), [(33, 0.5, 0), (33, 0.85, 1), (5, 0.5, 0), (33, -0.5, 2), (300, 0.7, 0)]
)
def test_the_posterior_is_that_of_quadrature(m, k, seed):
    x = generalised_pareto(m, k, 3.0, seed)
    probs = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    draws = tail_mean_draws(x, 20_000, torch.Generator().manual_seed(0))
    expected = posterior_quantiles(x, probs)
    torch.testing.assert_close(torch.quantile(draws, probs), expected, rtol=0.06, atol=0)


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.2, 0.5])
def test_the_mean_of_a_long_tail_is_found(k):
    """Of 4000 samples the prior is of no weight: the mean is that of the distribution."""
    x = generalised_pareto(4000, k, 2.0, seed=1)
    draws = tail_mean_draws(x, 400, torch.Generator().manual_seed(0))
    assert draws.mean().item() == pytest.approx(2.0 / (1 - k), rel=0.08)
    if k < 0.5:
        error = 2.0 / ((1 - k) * math.sqrt((1 - 2 * k) * 4000))
        assert draws.std().item() == pytest.approx(error, rel=0.15)


@pytest.mark.parametrize("k", [0.1, 0.5])
def test_intervals_of_a_tail_mean_cover(k):
    """Of 40 samples; the interval of their own mean is too low in one case of five for k = 0.5."""
    covered, reached, own = [], [], []
    for seed in range(200):
        x = generalised_pareto(40, k, 1.0, seed)
        draws = tail_mean_draws(x, 300, torch.Generator().manual_seed(seed))
        low, high = torch.quantile(draws, torch.tensor([0.025, 0.975]).double()).tolist()
        covered.append(low <= 1 / (1 - k) <= high)
        reached.append(1 / (1 - k) <= high)
        own.append(x.mean() + 1.96 * x.std() / math.sqrt(40) >= 1 / (1 - k))
    assert 0.9 <= sum(covered) / 200 <= 0.99
    assert sum(own) < sum(reached)


def test_a_tail_of_two_groups_keeps_its_mean():
    """Most excesses next to 0 and a few far off: no generalised Pareto distribution."""
    generator = torch.Generator().manual_seed(0)
    x = 1e-9 * torch.rand(200, dtype=torch.float64, generator=generator)
    x[:20] = 4.0
    draws = widened(tail_mean_draws(x, 1000, generator), x)
    assert draws.mean().item() == pytest.approx(x.mean().item(), rel=0.01)
    assert draws.std().item() == pytest.approx(x.std().item() / math.sqrt(200), rel=0.05)


def test_draws_that_are_wide_and_high_enough_stay():
    draws = torch.linspace(1.0, 3.0, 50, dtype=torch.float64)
    torch.testing.assert_close(widened(draws, torch.linspace(0.9, 1.1, 40).double()), draws)


def test_the_mean_of_a_tail_scales_with_it_and_repeats():
    x = generalised_pareto(100, 0.3, 1.0, seed=0)
    first, second = (
        tail_mean_draws(c * x, 50, torch.Generator().manual_seed(3)) for c in (1.0, 1e-6)
    )
    torch.testing.assert_close(1e6 * second, first)


def test_the_tail_is_a_fifth_of_few_and_a_root_of_many():
    assert [tail_size(n) for n in (25, 225, 10_000)] == [5, 45, 300]
