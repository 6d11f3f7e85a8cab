"""Comparisons of histograms against closed forms."""

import numpy as np
import pytest
from scipy.stats import entropy

from pyrocg.analysis import free_energy, kl_divergence, total_variation

RNG = np.random.default_rng(0)
P, Q = RNG.random((5, 4)), RNG.random((5, 4))


def test_total_variation_is_the_largest_difference_of_probabilities():
    p, q = P / P.sum(), Q / Q.sum()
    best_event = p > q
    assert total_variation(P, Q) == pytest.approx((p - q)[best_event].sum())
    assert total_variation(P, Q) == total_variation(Q, P)
    assert total_variation(P, 7 * P) == pytest.approx(0.0, abs=1e-15)
    assert total_variation([1, 0], [0, 1]) == 1.0


def test_kl_divergence_agrees_with_scipy():
    assert kl_divergence(P, Q) == pytest.approx(entropy(P.ravel(), Q.ravel()))
    assert kl_divergence([0, 1], [1, 1]) == pytest.approx(np.log(2))
    assert kl_divergence([1, 1], [0, 1]) == np.inf


def test_free_energy_inverts_the_boltzmann_factor():
    energy = np.array([0.0, 1.0, 4.0])
    assert free_energy(np.exp(-energy / 2.5), 2.5) == pytest.approx(energy)
    assert free_energy([1, 0], 1.0)[1] == np.inf


@pytest.mark.parametrize("bad", [[], [0, 0], [-1, 2], [np.nan, 1]])
def test_bad_histograms_are_refused(bad):
    with pytest.raises(ValueError, match="expected a histogram"):
        total_variation(bad, bad)


def test_different_bins_are_refused():
    with pytest.raises(ValueError, match="same bins"):
        kl_divergence([1, 2], [1, 2, 3])
