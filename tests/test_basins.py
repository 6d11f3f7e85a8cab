import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyrocg.basin_search import _fill
from pyrocg.basins import Basins, find_basins
from pyrocg.coordinates import IdentityCoordinates, InternalCoordinates
from pyrocg.encoders import BasinPartition
from pyrocg.energies.abstract import CappedEnergy, Energy
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.toy import DoubleWell, Harmonic, MuellerBrown
from pyrocg.minima import descend, newton
from pyrocg.molecules import alanine_dipeptide
from pyrocg.target import BoltzmannTarget

ALA2_MINIMA = [(-146, 160), (-66, 146), (-62, -48), (-143, -69), (46, -109), (62, -66), (44, 57)]


def toy_basins(energy, **options):
    coordinates = IdentityCoordinates(*energy.event_shape)
    return find_basins(BoltzmannTarget(energy, beta=1.0), coordinates, **options)


def test_double_well_has_two_basins():
    """U' = x³ - 6x + 1 = 0 at -2.5289, 0.1675 (the barrier) and 2.3614; U'' = 3x² - 6."""
    basins = toy_basins(DoubleWell())
    assert basins.u[:, 0].tolist() == pytest.approx([-2.5289, 2.3614], abs=1e-4)
    assert basins.u[:, 1].tolist() == pytest.approx([0.0, 0.0], abs=1e-4)
    x = basins.u[:, 0]
    torch.testing.assert_close(basins.value, x**4 / 4 - 3 * x**2 + x, atol=1e-6, rtol=0)
    curvature = torch.stack([1 / (3 * x**2 - 6), torch.ones_like(x)], 1)
    torch.testing.assert_close(basins.covariance, torch.diag_embed(curvature), atol=1e-3, rtol=0)


def test_mueller_brown_minima():
    basins = toy_basins(MuellerBrown(), starts=64, spread=1.0)
    expected = torch.tensor([[-0.5582, 1.4417], [0.6235, 0.0280], [-0.0500, 0.4667]])
    torch.testing.assert_close(basins.u.float(), expected, atol=1e-3, rtol=0)


def test_laplace_is_exact_for_a_harmonic_well():
    energy = Harmonic(3, torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]]), 1.0)
    basins = toy_basins(energy, starts=8)
    assert len(basins) == 1
    assert basins.log_z.item() == pytest.approx(energy.log_z(), abs=1e-6)
    torch.testing.assert_close(basins.covariance[0], torch.linalg.inv(energy.stiffness))


def test_energy_calls_are_counted_and_the_global_generator_is_left_alone():
    energy, state = DoubleWell(), torch.get_rng_state()
    basins = toy_basins(energy, starts=16)
    assert basins.energy_calls == energy.calls > 16 * 200
    assert torch.equal(torch.get_rng_state(), state)


def test_basins_are_of_the_uncapped_energy():
    capped = toy_basins(CappedEnergy(DoubleWell(), cap=-11.0, softness=0.1))
    torch.testing.assert_close(capped.value, toy_basins(DoubleWell()).value)


def test_a_start_on_a_saddle_is_not_a_basin():
    """At (0, 0) of a double well without tilt the gradient vanishes."""
    with pytest.raises(ValueError, match="expected minima from 1 starts, got none"):
        toy_basins(DoubleWell(c=0.0), starts=torch.zeros(1, 2))


def test_high_and_surplus_basins_are_left_out():
    assert len(toy_basins(DoubleWell(), max_free_energy=1.0)) == 1
    assert len(toy_basins(DoubleWell(), separation=6.0)) == 1
    with pytest.warns(UserWarning, match=r"1 of 2 minima were left out.*max_basins is 1; raise it"):
        assert len(toy_basins(DoubleWell(), max_basins=1)) == 1


def test_the_weight_that_is_left_out_is_warned_of():
    """Of two equal wells one half is left out."""
    with pytest.warns(UserWarning, match="with 50 % of the weight by Laplace estimate"):
        toy_basins(DoubleWell(c=0.0), max_basins=1)


def test_a_point_that_newton_has_not_brought_down_is_not_a_basin():
    """From 100, twelve Newton steps of at most 0.5 do not reach the minimum at 0."""
    with pytest.raises(ValueError, match="expected minima from 1 starts, got none"):
        toy_basins(Harmonic(2), starts=torch.full((1, 2), 100.0), steps=1)
    near = toy_basins(Harmonic(2), starts=torch.full((1, 2), 4.0), steps=1)
    assert near.u.abs().max() < 1e-6


class FourWells(Energy):
    """Independent double wells in four dimensions: sixteen minima, of known relative depth."""

    def __init__(self):
        super().__init__((4,))

    def _energy(self, x):
        return (x**4 / 4 - 3 * x**2 + 0.2 * x).sum(-1)


def test_with_many_columns_minima_are_recombined_until_none_is_missed():
    """All starts are in two opposite corners; their columns make the other fourteen minima."""
    corners = torch.tensor([2.0, -2.0]).repeat(8)[:, None].expand(16, 4)
    basins = toy_basins(FourWells(), starts=corners)
    assert len(basins) == basins.n_minima == 16
    assert len({tuple(row) for row in basins.u.sign().tolist()}) == 16
    few = toy_basins(FourWells(), starts=corners, columns=torch.tensor([0, 1, 2]))
    assert len(few) == 2


def test_recombination_needs_no_second_minimum():
    assert len(toy_basins(Harmonic(4), starts=4)) == 1


class Valley(Energy):
    """Four angles with one minimum, at zero, and a flat valley along the first."""

    def __init__(self):
        super().__init__((4,))

    def _energy(self, x):
        return ((1.0 - x.cos()) * torch.tensor([2.0, 60.0, 60.0, 60.0])).sum(-1)


class Angles(IdentityCoordinates):
    """Four circular coordinates."""

    def __init__(self):
        super().__init__(4)
        self.circular = torch.ones(4, dtype=torch.bool)
        self.rotatable = torch.arange(4)


def test_with_many_columns_flanks_of_minima_are_centres_too():
    """Along the valley at most 4 nats are lost; 0.95 rad across it already cost 25."""
    target = BoltzmannTarget(Valley(), beta=1.0)
    basins = find_basins(target, Angles(), starts=32)
    assert basins.n_minima == 1
    flanks = basins.centres[1:]
    assert 3 <= len(flanks) <= 6
    assert flanks[:, 1:].abs().max() < 1e-6
    gaps = turned(torch.rad2deg(basins.centres[:, None, 0] - basins.centres[:, 0])).abs()
    assert gaps.fill_diagonal_(360).min() > math.degrees(0.9)
    heights = Valley()(flanks)
    assert bool((heights.diff() >= 0).all())
    assert float(basins.log_z.logsumexp(0)) == pytest.approx(valley_log_z(), abs=0.25)
    assert len(find_basins(target, Angles(), starts=32, cover=None)) == 1
    assert len(find_basins(target, Angles(), starts=32, max_basins=2)) == 2


def valley_log_z():
    """The integral over an angle of exp(k cos x - k) is 2 pi I0(k) exp(-k)."""
    stiffness = torch.tensor([2.0, 60.0, 60.0, 60.0], dtype=torch.float64)
    return float((2 * math.pi * torch.special.i0e(stiffness)).log().sum())


def test_progress_is_shown_only_when_asked_for(capsys):
    toy_basins(DoubleWell(), starts=8, steps=5)
    assert capsys.readouterr().err == ""
    toy_basins(DoubleWell(), starts=8, steps=100, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    for stage in ("relaxing", "minima", "components"):
        assert f"basins, {stage}" in captured.err


@pytest.fixture(scope="module")
def ala2():
    molecule = alanine_dipeptide()
    target = BoltzmannTarget(CompiledEnergy(molecule, compile=False), temperature=330.0)
    coordinates = InternalCoordinates(molecule).double()
    return target, coordinates, find_basins(target, coordinates, starts=64, steps=200)


def angles(basins, coordinates):
    """phi and psi of the centres, in degrees."""
    assert basins.columns.tolist() == [coordinates.index("phi"), coordinates.index("psi")]
    return torch.rad2deg(basins.centres)


def turned(angle):
    return (angle + 180).remainder(360) - 180


def test_alanine_dipeptide_has_seven_minima(ala2):
    _, coordinates, basins = ala2
    minima = angles(basins, coordinates)[: basins.n_minima]
    for expected in ALA2_MINIMA:
        assert turned(minima - torch.tensor(expected)).abs().amax(1).min() < 3, expected
    assert len(minima) == 7
    assert int(((minima[:, 0] > 0) & (minima[:, 0] < 120)).sum()) == 3


def test_further_centres_fill_the_gaps(ala2):
    _, coordinates, basins = ala2
    centres = angles(basins, coordinates)
    gaps = turned(centres[:, None] - centres).norm(dim=-1).fill_diagonal_(360)
    assert len(centres) > basins.n_minima
    assert gaps[basins.n_minima :].min() > math.degrees(0.9)


def test_gaps_left_by_max_basins_are_warned_of():
    points, candidates = torch.zeros(1, 1), torch.tensor([[0.5], [2.0], [-2.0]])
    filled = _fill(points, candidates, torch.tensor([0]), 0.9, 3)
    assert filled.flatten().tolist() == [0.0, 2.0, -2.0]
    with pytest.warns(UserWarning, match=r"1 of 3 populated points.*up to 2\.00 rad.*raise it"):
        assert len(_fill(points, candidates, torch.tensor([0]), 0.9, 2)) == 2


def test_components_are_at_the_minima_of_their_own_potentials(ala2):
    target, coordinates, basins = ala2
    u = basins.u.clone().requires_grad_()
    partition = BasinPartition(
        basins.centres, basins.columns, coordinates.circular, basins.concentration
    )
    x, log_abs_det = coordinates(u)
    value = -target.log_prob(x) - log_abs_det - partition(u).probs.diagonal().log()
    torch.testing.assert_close(value, basins.value)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    assert gradient[: basins.n_minima].abs().max() < 0.05
    assert bool((torch.linalg.eigvalsh(basins.covariance) > 0).all())


# The split into what z explains and the rest


def basins_of(covariance, columns):
    n = covariance.shape[-1]
    u, ones = torch.zeros(len(covariance), n), torch.ones(len(columns))
    return Basins(u, u[:, 0], covariance, columns, u[:, columns], ones, len(u), 0)


def covariances(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(3, n, n, dtype=torch.float64, generator=generator)
    return root @ root.mT + 0.1 * torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_linear_gaussian_adds_up_to_the_covariance(latent_dim):
    covariance, real = covariances(), torch.zeros(5, dtype=torch.bool)
    basins = basins_of(covariance, torch.tensor([0, 2]))
    loadings, residual = basins.linear_gaussian(latent_dim, real, share=0.3)
    assert loadings.shape == (3, latent_dim, 5)
    torch.testing.assert_close(loadings.mT @ loadings + residual, covariance)
    assert bool((torch.linalg.eigvalsh(residual) > 0).all())


def test_z_explains_the_share_of_the_leading_axes():
    covariance, real = covariances(), torch.zeros(5, dtype=torch.bool)
    columns = torch.tensor([1, 3, 4])
    loadings, _ = basins_of(covariance, columns).linear_gaussian(1, real, share=0.3)
    block = covariance[:, columns][:, :, columns]
    values, vectors = torch.linalg.eigh(block)
    part = loadings[:, :, columns]
    torch.testing.assert_close(part.square().sum((1, 2)), 0.3 * values[:, -1])
    cosine = (part[:, 0] * vectors[:, :, -1]).sum(-1).abs() / part.norm(dim=(1, 2))
    torch.testing.assert_close(cosine, torch.ones(3, dtype=torch.float64))


def test_angles_are_bounded_to_proper_widths():
    circular = torch.tensor([True, False, False, False, False])
    covariance = covariances()
    covariance[:, 0] *= 10
    covariance[:, :, 0] *= 10
    basins = basins_of(covariance, torch.tensor([0]))
    loadings, residual = basins.linear_gaussian(1, circular, share=0.3)
    total = loadings.mT @ loadings + residual
    assert total[:, 0, 0].sqrt().tolist() == pytest.approx([2.2] * 3)
    torch.testing.assert_close(total[:, 1:, 1:], covariance[:, 1:, 1:])
    MultivariateNormal(torch.zeros(5, dtype=torch.float64), residual)


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan])
def test_share_is_checked(share):
    with pytest.raises(ValueError, match="expected a share in"):
        basins_of(covariances(), torch.tensor([0])).linear_gaussian(
            1, torch.zeros(5, dtype=torch.bool), share
        )


def test_a_descent_gives_the_lowest_point_it_came_by():
    """Adam's first step, 0.1 whatever the force, leaves this well for the slope beside it."""

    def potential(u):
        return -5.0 * torch.exp(-((u[:, 0] / 0.01) ** 2)) - 0.1 * u[:, 0]

    starts = torch.tensor([[0.0], [1.0]]).double()
    found = descend(potential, starts, 100)
    assert abs(found[0, 0]) < 0.01
    assert found[1, 0] > 2.0
    one_step = descend(lambda u: u.square().sum(-1), torch.tensor([[1.0]]).double(), 1)
    assert one_step.item() == pytest.approx(0.9)


def test_a_newton_step_that_leads_uphill_is_halved():
    """The steps of this potential, nearly |u|, are as long as they may be wherever they start."""

    def potential(u):
        return (1e-4 + u.square().sum(-1)).sqrt()

    u, hessian = newton(potential, torch.tensor([0.2]).double(), max_steps=30)
    assert abs(u) < 1e-3
    assert hessian.item() == pytest.approx(100.0, rel=0.01)


def test_newton_stays_where_no_step_leads_downhill():
    def potential(u):
        near = (u.sum(-1) - 1.0).abs() < 1e-3
        return torch.where(near, 2.0 * u.sum(-1).square(), torch.nan)

    u, hessian = newton(potential, torch.tensor([1.0]).double())
    assert u.item() == 1.0
    assert hessian.item() == pytest.approx(4.0)
