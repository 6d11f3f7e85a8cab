"""Bounds of log Z and effective sample sizes from weights whose moments are known."""

import math

import numpy as np
import pytest
import torch

from pyrocg.evidence import ReferenceEvidence, model_evidence, share_of

SPREAD = 0.8  # of log w, normal: KL is half its square from both sides
SHAPE = (20, 2000)


def reference_log_w(log_z, seed=0):
    """Log weights over the target, where those of the model are N(log Z - s²/2, s²)."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    return log_z + 0.5 * SPREAD**2 + SPREAD * noise


@pytest.mark.parametrize("log_z", [0.0, -3000.0, 3000.0])
def test_log_normal_weights_from_both_sides(log_z):
    """Far from zero, too, and with records that the model cannot have."""
    log_w = reference_log_w(log_z)
    log_w[:, ::4] = np.where(np.arange(20)[:, None] % 2, math.nan, math.inf)
    found = ReferenceEvidence.of(log_w, np.zeros(SHAPE), np.ones(SHAPE, dtype=bool))
    assert found.unsupported == pytest.approx(0.25)
    assert found.n_reference == 40_000
    gap = 0.5 * SPREAD**2
    assert found.eubo.mean == pytest.approx(log_z + gap, abs=4 * found.eubo.standard_error)
    error = found.inverse.standard_error / found.inverse.mean
    assert found.log_z == pytest.approx(log_z, abs=4 * error)
    assert found.forward_ess == pytest.approx(math.exp(-(SPREAD**2)), rel=0.1)
    assert 0 < error < 0.02
    torch.manual_seed(0)
    own = model_evidence(log_z - gap + SPREAD * torch.randn(40_000, dtype=torch.float64))
    assert own["elbo"] == pytest.approx(log_z - gap, abs=4 * own["elbo_error"])
    assert own["log_z"] == pytest.approx(log_z, abs=4 * own["log_z_error"])
    assert own["ess"] == pytest.approx(math.exp(-(SPREAD**2)), rel=0.1)
    assert own["elbo_error"] == pytest.approx(SPREAD / 200, rel=0.05)


def test_what_is_undersampled_is_a_ratio_of_densities():
    """A tenth of the records at more than 100 times the model's density."""
    log_w = np.zeros((4, 50))
    log_w[:, ::10] = math.log(101.0 / 0.9)
    kept = np.ones_like(log_w, dtype=bool)
    found = ReferenceEvidence.of(log_w, np.zeros_like(log_w), kept)
    assert found.log_z == pytest.approx(-math.log(0.9 + 0.1 * 0.9 / 101.0))
    assert found.undersampled == pytest.approx(0.1)
    log_w[:, ::10] = math.log(99.0 / 0.9)
    found = ReferenceEvidence.of(log_w, np.zeros_like(log_w), kept)
    assert found.undersampled == 0.0


def test_shares_are_weighted():
    log_weights = np.log([1.0, 2.0, 3.0, 4.0])
    part, whole = np.array([True, False, True, True]), np.array([1, 1, 1, 0])
    assert share_of(part, log_weights - 900.0, whole) == pytest.approx(4.0 / 6.0)


def test_bridged_populations_are_ratios_of_partition_functions():
    """w is Z times π/q within each half: q has 0.6 of the first, the target 0.2."""
    inside = np.tile([1.0, 0.0], (4, 30))
    log_w = np.where(inside > 0, math.log(0.2 / 0.6), math.log(0.8 / 0.4))
    log_w += 1e-4 * np.random.default_rng(0).normal(size=log_w.shape)
    kept = np.ones(inside.shape, dtype=bool)
    found = ReferenceEvidence.of(log_w, np.zeros(inside.shape), kept)
    value, error = found.bridged(inside, (0.6, 0.01))
    assert value == pytest.approx(0.2, rel=1e-4)
    # d log odds = d q / (q (1 - q)), and the weights have hardly any noise
    assert error == pytest.approx(0.2 * 0.8 * 0.01 / (0.6 * 0.4), rel=1e-3)
    assert found.bridged(inside * 0.5, (0.6, 0.01)) is None
    assert found.bridged(np.ones_like(inside), (0.6, 0.01)) is None
    assert found.bridged(inside, (1.0, 0.0)) is None
