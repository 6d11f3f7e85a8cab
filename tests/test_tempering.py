import math
from itertools import pairwise

import pytest
import torch

from pyrocg.tempering import (
    AdaptiveSchedule,
    FixedSchedule,
    GeometricSchedule,
    LinearSchedule,
    WeightedEnergies,
    conditional_ess,
    kl_from_weights,
    kl_increase,
    log_z_ratio,
)

# Samples x ~ N(0, 1/s) weighted for exp(-t x²/2): everything below is Gaussian, in closed form.
T, DELTA, N = 0.4, 0.3, 400_000


def gaussian(precision, n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dtype=torch.float64, generator=generator) / math.sqrt(precision)
    energy = 0.5 * x.square()
    return energy, -(T - precision) * energy


@pytest.mark.parametrize("precision", [0.4, 0.3])
def test_log_z_ratio_of_a_gaussian(precision):
    """Z_t = sqrt(2π/t)."""
    expected = 0.5 * math.log(T / (T + DELTA))
    assert log_z_ratio(*gaussian(precision), DELTA).item() == pytest.approx(expected, abs=4e-3)


@pytest.mark.parametrize("precision", [0.4, 0.3])
def test_kl_increase_of_a_gaussian(precision):
    """KL(N(0, 1/s) || N(0, 1/t)) = (t/s - 1 - log(t/s)) / 2."""

    def kl(t):
        return 0.5 * (t / precision - 1 - math.log(t / precision))

    expected = kl(T + DELTA) - kl(T)
    assert kl_increase(*gaussian(precision), DELTA).item() == pytest.approx(expected, abs=8e-3)


def test_conditional_ess_of_a_gaussian():
    """(E_t v)² / E_t v² with v = exp(-Δ x²/2): Z_{t+Δ}² / (Z_t Z_{t+2Δ})."""
    expected = math.sqrt(T * (T + 2 * DELTA)) / (T + DELTA)
    for precision in (0.4, 0.3):
        estimate = conditional_ess(*gaussian(precision), DELTA).item()
        assert estimate == pytest.approx(expected, abs=4e-3)


@pytest.mark.parametrize("precision", [0.4, 0.3, 0.6])
def test_kl_from_weights_of_a_gaussian(precision):
    """The same closed form, from log Z - ELBO, whatever the constant in the weights."""
    expected = 0.5 * (T / precision - 1 - math.log(T / precision))
    _, log_w = gaussian(precision)
    assert kl_from_weights(log_w).item() == pytest.approx(expected, abs=2e-3)
    assert kl_from_weights(log_w + 90.0).item() == pytest.approx(kl_from_weights(log_w).item())


def test_estimates_do_not_see_constants():
    energy, log_w = gaussian(0.3, n=1000)
    for function in (kl_increase, conditional_ess):
        expected = function(energy, log_w, DELTA)
        torch.testing.assert_close(function(energy + 50.0, log_w - 70.0, DELTA), expected)
    shifted = log_z_ratio(energy + 50.0, log_w, DELTA)
    torch.testing.assert_close(shifted, log_z_ratio(energy, log_w, DELTA) - 50.0 * DELTA)


def test_estimates_are_neutral_at_step_zero():
    energy, log_w = gaussian(0.3, n=1000)
    assert log_z_ratio(energy, log_w, 0.0).item() == pytest.approx(0.0, abs=1e-12)
    assert kl_increase(energy, log_w, 0.0).item() == pytest.approx(0.0, abs=1e-12)
    assert conditional_ess(energy, log_w, 0.0).item() == pytest.approx(1.0)


# Schedules.


def path(schedule, steps=200, samples=None):
    t, found = schedule.start, [schedule.start]
    for i in range(steps + 1):
        t = schedule.next(t, i / steps, samples)
        found.append(t)
    return found


RULES = {
    "linear": LinearSchedule(start=0.03, until=0.6),
    "geometric": GeometricSchedule(start=1e-10, until=1.0),
    "adaptive": AdaptiveSchedule(start=1e-3),
    "adaptive, never within its bounds": AdaptiveSchedule(start=1e-3, max_kl_increase=1e-9),
    "adaptive, the paper's": AdaptiveSchedule(1e-3, None, None, max_relative_increase=1.0),
}


@pytest.mark.parametrize("schedule", RULES.values(), ids=RULES)
def test_schedules_grow_and_end_at_one(schedule):
    energy, log_w = gaussian(0.3, n=500)
    found = path(schedule, samples=WeightedEnergies(energy, log_w))
    assert all(b >= a for a, b in pairwise(found))
    assert min(found) > 0
    assert max(found) == found[-1] == 1.0


@pytest.mark.parametrize("start", [1e-6, 0.05, 0.1, 1 / 3, 0.7, 0.95, 1.0])
def test_timed_schedules_never_exceed_one_by_rounding(start):
    for rule in (LinearSchedule(start, 0.37), GeometricSchedule(start, 0.37)):
        assert max(path(rule, 1000)) == 1.0


def test_timed_schedules_reach_one_at_until():
    assert LinearSchedule(0.2, until=0.5).next(0.2, 0.5) == 1.0
    assert LinearSchedule(0.2, until=0.5).next(0.2, 0.25) == pytest.approx(0.6)
    assert GeometricSchedule(1e-4, until=0.5).next(0.2, 0.5) == 1.0
    assert GeometricSchedule(1e-4, until=0.5).next(0.2, 0.25) == pytest.approx(1e-2)


def test_fixed_schedule_stays():
    assert set(path(FixedSchedule(0.3))) == {0.3}
    assert FixedSchedule().start == 1.0


def exact_samples(t, n=20_000):
    """Exact samples of the Gaussian at t, so all weights are equal."""
    energy, _ = gaussian(t, n)
    return WeightedEnergies(energy, torch.zeros_like(energy))


def test_adaptive_steps_respect_both_bounds_and_reach_one():
    rule = AdaptiveSchedule(start=0.01, max_kl_increase=0.02, min_ess=0.9, max_step=0.5)
    t, steps = rule.start, 0
    while t < 1:
        samples = exact_samples(t)
        new = rule.next(t, 0.0, samples)
        assert float(kl_increase(*samples, new - t)) <= 0.02 + 1e-9
        assert float(conditional_ess(*samples, new - t)) >= 0.9 - 1e-9
        assert new > t
        t, steps = new, steps + 1
    assert t == 1.0
    assert 5 < steps < 100


@pytest.mark.parametrize("shrink", [0.6, 0.5, 0.9])
def test_adaptive_step_is_the_largest_of_the_proposals(shrink):
    rule = AdaptiveSchedule(0.05, max_kl_increase=0.02, min_ess=0.1, max_step=0.4, shrink=shrink)
    samples = exact_samples(0.05)
    step = rule.next(0.05, 0.0, samples) - 0.05
    times = math.log(step / 0.4) / math.log(shrink)
    assert times == pytest.approx(round(times))
    assert float(kl_increase(*samples, step)) <= 0.02
    assert float(kl_increase(*samples, step / shrink)) > 0.02


def gaussian_kl(precision, t):
    return 0.5 * (t / precision - 1 - math.log(t / precision))


@pytest.mark.parametrize("ratio", [0.75, 1.0])
@pytest.mark.parametrize("precision", [0.2, 0.3])
def test_relative_bound_is_that_of_the_closed_form(precision, ratio):
    """The step of the exact rule, KL_{t+Δ} <= (1 + ratio) KL_t, from samples."""
    rule = AdaptiveSchedule(T, None, None, max_step=0.6, min_step=1e-3, max_relative_increase=ratio)
    exact = next(
        step
        for step in (0.6 * 0.6**i for i in range(20))
        if gaussian_kl(precision, T + step) <= (1 + ratio) * gaussian_kl(precision, T)
    )
    samples = WeightedEnergies(*gaussian(precision))
    assert rule.next(T, 0.0, samples) - T == pytest.approx(exact)
    assert exact < 0.6


def test_all_bounds_hold_together():
    samples = WeightedEnergies(*gaussian(0.2))
    alone = [
        AdaptiveSchedule(T, a, b, max_step=0.6, max_relative_increase=c).next(T, 0.0, samples)
        for a, b, c in [(0.05, None, None), (None, 0.97, None), (None, None, 0.3)]
    ]
    together = AdaptiveSchedule(T, 0.05, 0.97, max_step=0.6, max_relative_increase=0.3)
    assert together.next(T, 0.0, samples) == min(alone)
    assert len(set(alone)) > 1


def test_relative_bound_of_a_perfect_fit_leaves_the_smallest_step():
    rule = AdaptiveSchedule(0.1, None, None, min_step=1e-3, max_relative_increase=1.0)
    assert rule.next(0.1, 0.0, exact_samples(0.1)) == pytest.approx(0.101)


def test_adaptive_schedule_takes_its_smallest_step_when_it_knows_nothing():
    rule = AdaptiveSchedule(start=0.1, min_step=1e-3)
    nothing = WeightedEnergies(torch.full((5,), torch.inf), torch.full((5,), -torch.inf))
    assert 0.1 < rule.next(0.1, 0.0, nothing) <= 0.1 + 2e-3
    hopeless = WeightedEnergies(torch.linspace(0, 1e9, 50), torch.zeros(50))
    assert rule.next(0.1, 0.0, hopeless) == pytest.approx(0.101)


def test_adaptive_schedule_leaves_out_samples_without_energy():
    energy = torch.cat([torch.zeros(50), torch.tensor([torch.inf, torch.nan])])
    rule = AdaptiveSchedule(start=0.1, max_step=0.25)
    assert rule.next(0.1, 0.0, WeightedEnergies(energy, torch.zeros(52))) == pytest.approx(0.35)


def test_adaptive_schedule_ends_by_until_without_samples():
    assert AdaptiveSchedule(until=0.5).next(0.1, 0.5) == 1.0
    with pytest.raises(ValueError, match="expected reduced energies and log weights"):
        AdaptiveSchedule(until=0.5).next(0.1, 0.4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedSchedule(0.0), "expected a starting t"),
        (lambda: FixedSchedule(1.5), "expected a starting t"),
        (lambda: LinearSchedule(0.1, until=0.0), "expected until"),
        (lambda: GeometricSchedule(0.1, until=1.1), "expected until"),
        (lambda: AdaptiveSchedule(max_kl_increase=0.0), "expected max_kl_increase"),
        (lambda: AdaptiveSchedule(max_relative_increase=0.0), "expected max_relative_increase"),
        (lambda: AdaptiveSchedule(shrink=1.0), "expected shrink"),
        (lambda: AdaptiveSchedule(0.1, None, None), "expected at least one bound"),
        (lambda: AdaptiveSchedule(min_ess=1.0), "expected min_ess"),
        (lambda: AdaptiveSchedule(min_step=0.2, max_step=0.1), "expected 0 < min_step"),
        (lambda: AdaptiveSchedule(until=0.0), "expected until"),
    ],
)
def test_schedules_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()
