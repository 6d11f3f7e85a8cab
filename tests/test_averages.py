import math

import numpy as np
import pytest
from scipy.stats import t as student

from pyrocg.averages import average, student_quantile


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 7, 10, 31, 200, 2047])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_student_quantile(level, dof):
    exact = student.ppf(0.5 + 0.5 * level, dof)
    assert student_quantile(level, dof) == pytest.approx(exact, rel=1e-9)


def autoregressive(rng, shape, memory=0.9):
    """Chains of variance 1, correlated over 1/(1 - memory) records."""
    values = rng.normal(size=shape)
    for i in range(1, shape[1]):
        kept = memory * values[:, i - 1]
        values[:, i] = kept + math.sqrt(1 - memory**2) * values[:, i]
    return values


def coverage(truth, make, repeats=120):
    hits = [low < truth < high for low, high in (make(k).interval for k in range(repeats))]
    return sum(hits) / repeats


def test_intervals_cover_the_mean_of_correlated_chains():
    def make(seed):
        chains = autoregressive(np.random.default_rng(seed), (8, 50))
        return average(chains, np.zeros(chains.shape), name="x", level=0.8)

    assert abs(coverage(0.0, make) - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 120)


def test_intervals_cover_the_mean_of_weighted_chains():
    # weights exp(s x) turn N(0, 1) into N(s, 1), whose mean is s
    def make(seed):
        chains = autoregressive(np.random.default_rng(seed), (32, 100))
        return average(chains, 0.4 * chains, name="x", level=0.8)

    assert abs(coverage(0.4, make) - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 120)


def test_intervals_cover_a_mean_direction_across_the_cut():
    def make(seed):
        chains = np.pi + 0.5 * autoregressive(np.random.default_rng(seed), (8, 50))
        wrapped = (chains + np.pi) % (2 * np.pi) - np.pi
        found = average(wrapped, np.zeros(chains.shape), name="x", circular=True, level=0.8)
        low, high = found.interval
        turn = 2 * np.pi if found.mean < 0 else 0.0
        return type(found)(**{**vars(found), "interval": (low + turn, high + turn)})

    assert abs(coverage(np.pi, make) - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 120)


def test_equal_weights_give_the_error_of_the_mean_of_means():
    values = np.random.default_rng(0).normal(size=(10, 30))
    found = average(values, np.full(values.shape, -7.0), name="x", unit="nm")
    means = values.mean(1)
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(10))
    assert found.per_chain == pytest.approx(means)
    assert found.warnings == ()
    assert found.transitions is None


def test_ess_of_correlated_chains():
    values = autoregressive(np.random.default_rng(0), (20, 2000), memory=0.8)
    exact = 40_000 * (1 - 0.8) / (1 + 0.8)
    assert average(values, np.zeros(values.shape), name="x").ess == pytest.approx(exact, rel=0.2)


def test_chains_that_disagree_are_reported():
    values = np.random.default_rng(0).normal(size=(8, 100)) + np.arange(8)[:, None]
    found = average(values, np.zeros(values.shape), name="height")
    assert found.r_hat > 1.5
    assert "R-hat of height is" in found.warnings[0]


def test_transitions_of_populations_are_counted():
    values = np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    found = average(values, np.zeros(values.shape), name="right")
    assert found.transitions == 3
    assert "only 3 transitions of right" in found.warnings[-1]


def test_a_constant_has_no_convergence_diagnostics():
    found = average(np.ones((4, 10)), np.zeros((4, 10)), name="x")
    assert (found.mean, found.standard_error) == (1.0, 0.0)
    assert math.isnan(found.r_hat)


def test_a_chain_without_weight():
    log_weights = np.zeros((3, 5))
    log_weights[1] = -math.inf
    found = average(np.arange(15.0).reshape(3, 5), log_weights, name="x")
    assert found.per_chain == pytest.approx(np.array([2.0, math.nan, 12.0]), nan_ok=True)
    assert found.mean == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("values", "log_weights", "level", "message"),
    [
        (np.ones((1, 5)), np.zeros((1, 5)), 0.9, "at least 2 chains"),
        (np.ones((2, 5)), np.zeros((2, 4)), 0.9, "got \\(2, 5\\) and \\(2, 4\\)"),
        (np.ones((2, 5)), np.zeros((2, 5)), 1.0, "level between 0 and 1"),
    ],
)
def test_refused(values, log_weights, level, message):
    with pytest.raises(ValueError, match=message):
        average(values, log_weights, name="x", level=level)


@pytest.mark.parametrize("standing", [[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
def test_chains_that_stand_still_apart_do_not_agree(standing):
    values = np.repeat(np.array(standing)[:, None], 50, axis=1)
    found = average(values, np.zeros(values.shape), name="x")
    assert found.r_hat > 1e6
    assert found.transitions == 0
    assert any("the chains do not agree" in warning for warning in found.warnings)
