"""Toy energies: values by hand, partition functions against scipy, samples against moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from pyrocg.energies.toy import DoubleWell, GaussianMixture, Harmonic, ManyWell, MuellerBrown

SAMPLES = 40_000


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_double_well_by_hand():
    well = DoubleWell(a=1.0, b=6.0, c=1.0, d=2.0)
    x = torch.tensor([[2.0, 3.0], [0.0, 0.0]])
    assert well(x).tolist() == [4.0 - 12.0 + 2.0 + 9.0, 0.0]


def test_double_well_matches_the_published_quadrature():
    well = DoubleWell()
    assert well.log_z() == pytest.approx(12.0649, abs=5e-5)
    assert float(well.mean()[0]) == pytest.approx(-2.441, abs=5e-4)
    assert float(well.std()[0]) == pytest.approx(0.522, abs=5e-4)
    assert well.probability_above(0.167) == pytest.approx(0.00835, abs=5e-6)


def test_equal_wells_are_equally_populated():
    assert DoubleWell(c=0.0).probability_above(0.0) == pytest.approx(0.5, abs=1e-12)
    assert DoubleWell().probability_above(-1e9) == pytest.approx(1.0, abs=1e-12)
    assert DoubleWell().probability_above(1e9) == 0.0


@pytest.mark.parametrize("temper", [1e-10, 1e-4, 0.1, 1.0, 10.0])
def test_double_well_log_z_against_scipy(temper):
    well = DoubleWell(d=3.0)
    bound = 10.0 / min(temper, 1.0) ** 0.25

    def density(x1: float) -> float:
        u = x1**4 / 4 - 3 * x1**2 + x1
        return math.exp(-temper * (u + 11.4))

    z1, _ = integrate.quad(density, -bound, bound, points=[-2.5, 2.4], epsabs=0, epsrel=1e-11)
    expected = math.log(z1) + 11.4 * temper + 0.5 * math.log(2 * math.pi / (3 * temper))
    assert well.log_z(temper=temper) == pytest.approx(expected, abs=1e-8)
    assert well.log_z(beta=temper) == well.log_z(temper=temper)


@pytest.mark.parametrize("temper", [1.0, 0.2])
def test_double_well_samples(temper):
    well = DoubleWell()
    x = well.sample(SAMPLES, temper=temper, generator=generator())
    error = 5 * well.std(temper=temper) / math.sqrt(SAMPLES)
    assert ((x.mean(0) - well.mean(temper=temper)).abs() < error).all()
    right = well.probability_above(0.167, temper=temper)
    share = float((x[:, 0] > 0.167).double().mean())
    assert abs(share - right) < 5 * math.sqrt(right / SAMPLES)


def test_harmonic_by_hand():
    energy = Harmonic(2, stiffness=[2.0, 4.0], mean=[1.0, 0.0])
    assert energy(torch.tensor([2.0, 3.0])).item() == 19.0
    assert energy.log_z() == pytest.approx(math.log(2 * math.pi) - 0.5 * math.log(8.0), abs=1e-14)
    tempered = math.log(2 * math.pi / 0.5) - 0.5 * math.log(8.0)
    assert energy.log_z(beta=2.0, temper=0.25) == pytest.approx(tempered, abs=1e-14)


def test_harmonic_samples_have_the_inverse_stiffness_as_covariance():
    stiffness = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    energy = Harmonic(2, stiffness, mean=[1.0, -1.0])
    x = energy.sample(SAMPLES, temper=0.5, generator=generator())
    torch.testing.assert_close(x.T.cov(), 2 * stiffness.inverse(), rtol=0.05, atol=0.05)
    torch.testing.assert_close(x.mean(0), energy.mean(), rtol=0.0, atol=0.05)


@pytest.mark.parametrize(
    "stiffness", [-1.0, [1.0, 0.0], [1.0, 2.0, 3.0], [[1.0, 2.0], [0.0, 1.0]], float("nan")]
)
def test_an_unbounded_harmonic_is_refused(stiffness):
    with pytest.raises(ValueError, match="expected"):
        Harmonic(2, stiffness)


def test_mixture_is_a_normalised_density():
    means = [[-2.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    covariances = torch.stack([torch.eye(3) * 0.5, torch.eye(3) + 0.3])
    mixture = GaussianMixture(means, covariances, [1.0, 3.0])
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator())
    normal = torch.distributions.MultivariateNormal
    parts = [
        normal(torch.tensor(m).double(), c.double()).log_prob(x)
        for m, c in zip(means, covariances, strict=True)
    ]
    expected = -torch.logaddexp(parts[0] + math.log(0.25), parts[1] + math.log(0.75))
    torch.testing.assert_close(mixture(x), expected)
    assert mixture.log_z() == 0.0
    samples = mixture.sample(SAMPLES, generator=generator())
    torch.testing.assert_close(samples.mean(0), mixture.mean(), rtol=0.0, atol=0.06)


@pytest.mark.parametrize("covariances", [0.25, [0.25, 0.25], [[0.25], [0.25]], [[[0.25]]] * 2])
@pytest.mark.parametrize("temper", [0.3, 2.0])
def test_tempered_mixture_log_z_against_scipy(covariances, temper):
    mixture = GaussianMixture([[-2.0], [1.0]], covariances)

    def density(x: float) -> float:
        wells = [math.exp(-2 * (x - m) ** 2) for m in (-2.0, 1.0)]
        return (0.5 * sum(wells) / math.sqrt(2 * math.pi * 0.25)) ** temper

    z, _ = integrate.quad(density, -15, 15, points=[-2, 1], epsabs=0, epsrel=1e-11, limit=200)
    assert mixture.log_z(temper=temper) == pytest.approx(math.log(z), abs=1e-8)


def test_tempered_mixture_in_two_dimensions_of_one_component():
    mixture = GaussianMixture([[1.0, -1.0]], [[[0.5, 0.2], [0.2, 0.3]]])
    half_log_det = 0.5 * math.log(0.5 * 0.3 - 0.04) + math.log(2 * math.pi)
    expected = (1 - 0.5) * half_log_det - math.log(0.5)
    assert mixture.log_z(temper=0.5) == pytest.approx(expected, abs=1e-8)


def test_tempered_mixture_in_many_dimensions_is_refused():
    with pytest.raises(ValueError, match="one or two dimensions"):
        GaussianMixture([[0.0, 0.0, 0.0]]).log_z(temper=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, 1.0],), "means"),
        (([[0.0], [1.0]], -1.0), "positive definite"),
        (([[0.0], [1.0]], [1.0, 1.0, 1.0]), "covariances of shape"),
        (([[0.0], [1.0]], 1.0, [1.0, 0.0]), "positive weights"),
        (([[0.0], [1.0]], 1.0, [1.0]), "positive weights"),
    ],
)
def test_a_wrong_mixture_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_many_well_is_a_sum_of_wells():
    x = torch.tensor([1.0, 2.0, -1.0, 0.0])
    assert ManyWell(4)(x).item() == (1 - 6 - 0.5 + 2.0) + (1 - 6 + 0.5)
    assert ManyWell(4).log_z() == pytest.approx(2 * ManyWell(2).log_z(), abs=1e-12)
    assert ManyWell(32).log_z() == pytest.approx(164.69568, abs=1e-5)  # as published with FAB


def test_many_well_samples():
    well = ManyWell(6)
    x = well.sample(SAMPLES, generator=generator())
    assert x.shape == (SAMPLES, 6)
    assert ((x.mean(0) - well.mean()).abs() < 0.05).all()
    with pytest.raises(ValueError, match="even"):
        ManyWell(3)


@pytest.mark.parametrize(
    ("minimum", "value"),
    [((-0.558224, 1.441726), -146.69952), ((0.623499, 0.028038), -108.16672)],
)
def test_mueller_brown_minima(minimum, value):
    x = torch.tensor(minimum, dtype=torch.float64, requires_grad=True)
    energy = MuellerBrown(scale=1.0)(x)
    (gradient,) = torch.autograd.grad(energy, x)
    assert energy.item() == pytest.approx(value, abs=1e-4)
    assert gradient.abs().max() < 0.01


@pytest.mark.parametrize("temper", [0.1, 1.0])
def test_mueller_brown_log_z_against_a_grid(temper):
    energy = MuellerBrown(scale=0.1)
    axis = torch.linspace(-6.0, 6.0, 1501, dtype=torch.float64)
    u = energy(torch.cartesian_prod(axis, axis))
    expected = torch.logsumexp(-temper * u, 0) + 2 * (axis[1] - axis[0]).log()
    assert energy.log_z(temper=temper) == pytest.approx(float(expected), abs=1e-8)


def test_log_z_is_convex_and_its_slope_is_the_mean_energy():
    well = DoubleWell()
    slope = (well.log_z(temper=1.001) - well.log_z(temper=0.999)) / 0.002
    x = well.sample(SAMPLES, generator=generator())
    energies = well(x)
    assert slope == pytest.approx(-float(energies.mean()), abs=5 * float(energies.std()) / 200)
    values = np.array([well.log_z(temper=t) for t in (0.2, 0.4, 0.6, 0.8, 1.0)])
    assert (np.diff(values, 2) > 0).all()


def test_wrong_parameters_are_refused():
    with pytest.raises(ValueError, match="a > 0"):
        DoubleWell(a=0.0)
    with pytest.raises(ValueError, match="scale > 0"):
        MuellerBrown(scale=0.0)
    with pytest.raises(ValueError, match="dim >= 1"):
        Harmonic(0)
