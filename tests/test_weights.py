import math

import pytest
import torch

from pyrocg.weights import (
    bound,
    component_shares,
    ess,
    log_mean_exp,
    log_mean_exp_error,
    stratified_summary,
    training_shares,
)


def lognormal(n, scale=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, dtype=torch.float64, generator=generator)


def test_log_mean_exp_is_stable_and_right():
    log_w = torch.tensor([1000.0, 1000.0 + math.log(3.0)], dtype=torch.float64)
    assert log_mean_exp(log_w).item() == pytest.approx(1000.0 + math.log(2.0))


def test_ess_is_kish():
    log_w = lognormal(1000)
    w = log_w.exp()
    assert ess(log_w).item() == pytest.approx((w.sum() ** 2 / (1000 * w.square().sum())).item())
    assert ess(torch.full((10,), -500.0, dtype=torch.float64)).item() == pytest.approx(1.0)
    torch.testing.assert_close(ess(log_w + 800.0), ess(log_w))


def test_ess_of_lognormal_weights():
    """(E w)² / E w² = exp(-s²)."""
    assert ess(lognormal(400_000)).item() == pytest.approx(math.exp(-0.49), abs=0.01)


def test_log_mean_exp_error_is_the_spread_over_repetitions():
    estimates = torch.stack([log_mean_exp(lognormal(500, seed=s)) for s in range(400)])
    errors = torch.stack([log_mean_exp_error(lognormal(500, seed=s)) for s in range(400)])
    assert errors.mean().item() == pytest.approx(estimates.std().item(), rel=0.1)


def test_component_shares_are_the_parts_of_z():
    """Weights of component k, drawn with p_k, are Z_k / p_k times noise of mean 1."""
    generator = torch.Generator().manual_seed(0)
    parts, drawn = torch.tensor([0.9, 0.09, 0.01]), torch.tensor([0.2, 0.3, 0.5])
    k = torch.multinomial(drawn, 200_000, replacement=True, generator=generator)
    log_w = (parts / drawn).log()[k] + lognormal(200_000, seed=1) - 0.5 * 0.49
    torch.testing.assert_close(component_shares(log_w, k, drawn), parts, rtol=0.03, atol=0)


def test_component_shares_ignore_weights_that_are_not_finite():
    log_w = torch.tensor([0.0, torch.nan, torch.inf, -torch.inf, 0.0])
    k = torch.tensor([0, 0, 1, 1, 1])
    torch.testing.assert_close(component_shares(log_w, k, torch.ones(2) / 2), torch.full((2,), 0.5))


def test_component_shares_keep_a_component_without_weight():
    shares = component_shares(torch.zeros(3), torch.tensor([0, 0, 2]), torch.ones(3) / 3)
    assert shares[1].item() == pytest.approx(1e-6, rel=1e-5)
    assert shares.sum().item() == pytest.approx(1.0)


def test_bound_is_the_mean_log_weight_or_that_of_the_finite_part():
    log_w = lognormal(100)
    assert bound(log_w).item() == pytest.approx(log_w.mean().item())
    half = torch.cat([torch.zeros(50), torch.full((50,), -torch.inf)])
    assert bound(half).item() == pytest.approx(math.log(0.5)) == log_mean_exp(half).item()
    assert bound(torch.tensor([torch.nan, -torch.inf])).item() == -math.inf


def strata(n=400_000):
    """Log-normal weights of three components, drawn with unequal shares; a fourth is not drawn."""
    log_z, scale = torch.tensor([0.0, -2.0, -4.0, 0.0]), torch.tensor([0.5, 1.0, 0.2, 1.0])
    drawn = torch.tensor([0.2, 0.3, 0.49, 0.01])
    generator = torch.Generator().manual_seed(0)
    k = torch.multinomial(drawn[:3], n, replacement=True, generator=generator)
    own = log_z[k] - scale[k] ** 2 / 2 + scale[k] * torch.randn(n, generator=generator)
    return log_z[:3].double(), scale[:3].double(), own - drawn.log()[k], k, drawn


def test_stratified_summary_in_closed_form():
    log_z, scale, log_w, k, drawn = strata()
    p = torch.softmax(log_z, 0)
    expected_elbo = (p * (log_z - scale**2 / 2 - p.log())).sum()
    expected_ess = 1 / (p * (scale**2).exp()).sum()
    elbo, total, fraction = stratified_summary(log_w, k, drawn)
    assert elbo == pytest.approx(expected_elbo.item(), abs=5e-3)
    assert total == pytest.approx(torch.logsumexp(log_z, 0).item(), abs=5e-3)
    assert fraction == pytest.approx(expected_ess.item(), rel=0.02)
    assert elbo < total


@pytest.mark.parametrize("bad", [-torch.inf, torch.inf, torch.nan])
def test_one_weight_that_is_not_finite_changes_next_to_nothing(bad):
    *_, log_w, k, drawn = strata(20_000)
    before = stratified_summary(log_w, k, drawn)
    log_w[0] = bad
    elbo, total, fraction = stratified_summary(log_w, k, drawn)
    assert (elbo, total, fraction) == pytest.approx(before, abs=2e-3)
    assert elbo < total


def test_stratified_summary_of_nothing():
    nothing = torch.full((3,), -torch.inf)
    shares = torch.ones(1)
    assert stratified_summary(nothing, torch.zeros(3, dtype=torch.long), shares) == (
        -math.inf,
        -math.inf,
        0.0,
    )


def test_shares_without_any_weight_stay():
    shares, component = torch.tensor([0.3, 0.7]), torch.tensor([0, 1])
    none = torch.full((2,), -torch.inf)
    assert component_shares(none, component, shares).tolist() == shares.tolist()


@pytest.mark.parametrize("n", [1, 2, 17])
def test_training_shares_leave_a_fifth_of_an_equal_share(n):
    weights = torch.full((n,), 1e-9)
    weights[0] = 1.0
    shares = training_shares(weights)
    assert shares.sum().item() == pytest.approx(1.0)
    assert shares.min().item() >= 0.2 / n


def test_a_component_without_weight_leaves_the_bound_finite():
    log_w, component = torch.tensor([0.0, -1000.0]), torch.tensor([0, 1])
    elbo, log_z, _ = stratified_summary(log_w, component, torch.tensor([0.5, 0.5]))
    assert elbo == pytest.approx(log_z) == pytest.approx(-math.log(2))
