import math

import numpy as np
import pytest
import torch

from pyrocg.bootstrap import (
    bootstrap_means,
    bootstrap_quantiles,
    bootstrap_sums,
    equal_tailed,
    weighted_quantiles,
)


def weighted_sample(n, seed):
    """Draws of N(0, 1.5²) weighted for N(0, 1): E[x²] = 1, Z = 1."""
    generator = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(n, dtype=torch.float64, generator=generator)
    log_w = -0.5 * x.square() + 0.5 * (x / 1.5).square() + math.log(1.5)
    return x, log_w.exp()


@pytest.fixture(scope="module")
def intervals():
    """Intervals of the mean of x², of Z and of the median of x, over 400 seeds."""
    found = []
    for seed in range(400):
        x, w = weighted_sample(400, seed)
        means, totals = bootstrap_means(w, x.square()[:, None], 300, seed)
        medians = bootstrap_quantiles(w, x, torch.tensor([0.5]), 300, seed)
        draws = torch.stack([means[:, 0], totals, medians[:, 0]], 1)
        found.append(equal_tailed(draws, 0.95))
    return torch.stack(found)


@pytest.mark.parametrize(("column", "truth"), [(0, 1.0), (1, 1.0), (2, 0.0)])
def test_95_percent_intervals_cover_the_truth(intervals, column, truth):
    low, high = intervals[:, 0, column], intervals[:, 1, column]
    coverage = ((low <= truth) & (truth <= high)).double().mean().item()
    assert 0.92 <= coverage <= 0.98


def test_means_are_centred_at_the_weighted_mean():
    x, w = weighted_sample(500, 0)
    means, totals = bootstrap_means(w, torch.stack([x, x.square()], 1), 4000, seed=1)
    expected = (w @ torch.stack([x, x.square()], 1)) / w.sum()
    torch.testing.assert_close(means.mean(0), expected, atol=5e-3, rtol=0)
    assert totals.mean().item() == pytest.approx(w.mean().item(), abs=2e-3)


def test_draws_do_not_depend_on_the_scale_of_the_weights_and_repeat():
    x, w = weighted_sample(50, 0)
    first = bootstrap_means(w, x[:, None], 20, seed=3)[0]
    torch.testing.assert_close(bootstrap_means(1e6 * w, x[:, None], 20, seed=3)[0], first)
    assert torch.equal(bootstrap_means(w, x[:, None], 20, seed=3)[0], first)
    assert not torch.equal(bootstrap_means(w, x[:, None], 20, seed=4)[0], first)


def test_draws_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    bootstrap_means(torch.ones(5), torch.ones(5, 1), 3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_many_samples_are_drawn_in_chunks(monkeypatch):
    x, w = weighted_sample(30, 0)
    whole = bootstrap_means(w, x[:, None], 25, seed=0)[0]
    monkeypatch.setattr("pyrocg.bootstrap._CHUNK", 90)
    torch.testing.assert_close(bootstrap_means(w, x[:, None], 25, seed=0)[0], whole)


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


def test_bootstrap_sums_are_the_weights_in_bins():
    index, w = torch.tensor([0, 2, 2, 0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    draws = bootstrap_sums(w, index, 4, 5000, seed=0)
    assert draws.shape == (5000, 4)
    expected = torch.tensor([5.0, 0.0, 5.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(draws.mean(0), expected, atol=0.2, rtol=0)


def test_equal_tailed_interval():
    draws = torch.arange(101.0)[:, None].expand(-1, 2)
    assert equal_tailed(draws, 0.9).flatten().tolist() == pytest.approx([5, 5, 95, 95])
