import math

import pyro.distributions as dist
import pytest
import torch
from extended_models import density, poor_model, rotor_model, space_of
from pyro import poutine
from torch import nn
from toy_models import gaussian_model

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.energies.toy import DoubleWell
from pyrocg.frames import Scales
from pyrocg.target import BoltzmannTarget
from pyrocg.transitions import Particles, resample

ANGLE = 0.9


# Particles


def test_densities_are_those_of_the_samples():
    torch.manual_seed(0)
    space = space_of(gaussian_model())
    particles = space.draw(20)
    found = space.samples(particles, particles.log_weight)
    log_q = dist.Normal(0.0, 1.0).log_prob(particles.latents["z"]).sum(-1)
    log_q = log_q + space.model.decoder(particles.latents["z"]).log_prob(particles.u)
    log_r = space.model.encoder(particles.u).log_prob(particles.latents["z"])
    energy = DoubleWell()(particles.u)
    torch.testing.assert_close(particles.log_generator, log_q)
    torch.testing.assert_close(particles.log_encoder, log_r)
    torch.testing.assert_close(particles.log_boltzmann, -energy)
    torch.testing.assert_close(found.log_weights, (-energy + log_r - log_q).double())
    torch.testing.assert_close(found.reduced_energy, energy)
    torch.testing.assert_close(found.x, particles.u)
    log_prior = dist.Normal(0.0, 1.0).log_prob(particles.latents["z"]).sum(-1)
    torch.testing.assert_close(found.latent_log_ratio, log_r - log_prior)


def test_slopes_are_the_derivatives():
    space = space_of(poor_model())
    particles = space.draw(5)
    h = 1e-5
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = h
        up, down = (space._particles(particles.u + d, particles.latents) for d in (step, -step))
        for s in (0.0, 0.3, 1.0):
            expected = (up.log_density(s) - down.log_density(s)) / (2 * h)
            torch.testing.assert_close(particles.slope(s)[:, j], expected, rtol=1e-5, atol=1e-7)


def test_resampling_copies_by_weight_and_keeps_the_mean_weight():
    torch.manual_seed(0)
    space = space_of(gaussian_model())
    particles = space.draw(1000)
    log_w = torch.full((1000,), -torch.inf).double()
    log_w[:4] = torch.tensor([1.0, 2.0, 3.0, 2.0]).double().log()
    new, equal, index = resample(particles, log_w)
    assert torch.bincount(index).tolist() == [125, 250, 375, 250]
    torch.testing.assert_close(equal, torch.full((1000,), math.log(8 / 1000)).double())
    torch.testing.assert_close(new.u, particles.u[index])
    torch.testing.assert_close(new.slopes, particles.slopes[index])


# Frames


def test_frame_whitens_the_generator():
    space = space_of(poor_model())
    particles = space.draw(20_000)
    frame = space.scales.frame(particles.latents, 20_000)
    e = frame.inverse(particles.u)
    torch.testing.assert_close(frame(e), particles.u)
    torch.testing.assert_close(e.mean(0), torch.zeros(2).double(), atol=0.1, rtol=0)
    torch.testing.assert_close(e.T.cov(), torch.eye(2).double(), atol=0.13, rtol=0)
    joint = torch.cat([particles.latents["z"], e], 1).T.corrcoef()
    assert joint[0, 1:].abs().max() < 0.05


def test_frame_of_each_component_and_of_one_that_is_not_known():
    torch.manual_seed(0)
    target = BoltzmannTarget(DoubleWell(), beta=1.0)
    cg = CoarseGrainedModel.from_basins(
        target, IdentityCoordinates(2), latent_dim=1, hidden=(8,), n_couplings=2
    )
    scales = Scales.of_generator(cg)
    latents = {"component": torch.tensor([0, 1, 7]), "z": torch.zeros(3, 1)}
    centre = scales.frame(latents, 3).centre
    assert sorted(scales.keys[:, 1].tolist()) == [0, 1]
    assert centre[0, 0] * centre[1, 0] < 0  # one in each well
    assert centre[2, 0].abs() < centre[:2, 0].abs().min()  # between them
    assert cg.prior.shares.tolist() == [0.5, 0.5]


# Invariance


@pytest.mark.parametrize("s", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("leapfrog", [0, 1, 3])
def test_moves_leave_a_normal_density_as_it_is(s, leapfrog):
    """From exact samples: mean and covariance stay. With 0 steps only the latents are moved."""
    n = 20_000
    space = space_of(poor_model())
    mean, covariance = density(space, s)
    y = mean + torch.randn(n, 3, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    first = particles = space._particles(y[:, 1:], {"z": y[:, :1]})
    for _ in range(6):
        particles, of_latents = space.move_latents(particles, s)
        if leapfrog:
            particles, of_u = space.move_coordinates(particles, s, ANGLE, leapfrog)
            assert 0.6 < of_u.mean() <= 1.0
    assert of_latents.mean() == 1.0 if s == 1.0 else 0.6 < of_latents.mean() < 1.0
    assert (particles.latents["z"] != first.latents["z"]).double().mean() > 0.95
    assert (particles.u != first.u).double().mean() >= 0.95 * bool(leapfrog)
    y = torch.cat([particles.latents["z"], particles.u], 1)
    error = (covariance.diagonal() / n).sqrt()
    assert ((y.mean(0) - mean).abs() / error).max() < 4
    scale = covariance.diagonal().sqrt()
    assert ((y.T.cov() - covariance).abs() / scale / scale[:, None]).max() < 4 * (2 / n) ** 0.5


def test_moves_reach_the_target_from_anywhere():
    n = 4000
    space = space_of(poor_model())
    start = torch.full((n, 2), 3.0, dtype=torch.float64)
    particles = space._particles(start, {"z": torch.zeros(n, 1).double()})
    for _ in range(30):
        particles, _ = space.move_latents(particles, 1.0)
        particles, _ = space.move_coordinates(particles, 1.0, ANGLE, 1)
    mean, covariance = density(space, 1.0)
    y = torch.cat([particles.latents["z"], particles.u], 1)
    assert ((y.mean(0) - mean).abs() / (covariance.diagonal() / n).sqrt()).max() < 4
    torch.testing.assert_close(y.T.cov(), covariance, atol=0.1, rtol=0)


@pytest.mark.parametrize("k", [0.0, 1.5])
def test_circular_coordinates_go_round(k):
    """From one point to the von Mises density, whose moments are sums over a grid."""
    n = 10_000
    space = space_of(rotor_model(k))
    particles = space._particles(torch.full((n, 2), 0.3), {"z": torch.zeros(n, 1)})
    for _ in range(25):
        particles, _ = space.move_latents(particles, 1.0)
        particles, _ = space.move_coordinates(particles, 1.0, ANGLE, 1)
    angle, number = particles.u.double().unbind(1)
    assert angle.abs().max() <= math.pi
    grid = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)[:-1]
    weight = torch.softmax(k * grid.cos(), 0)
    error = n**-0.5
    for m in (1, 2, 3):
        expected = (weight * (m * grid).cos()).sum()
        assert (m * angle).cos().mean().item() == pytest.approx(expected.item(), abs=4 * error)
        assert (m * angle).sin().mean().item() == pytest.approx(0.0, abs=4 * error)
    rest = number - angle.sin()
    assert rest.mean().item() == pytest.approx(0.0, abs=4 * error)
    assert rest.std().item() == pytest.approx(1.0, abs=4 * error)


# What is not finite


def test_points_without_energy_are_never_entered():
    class Wall(DoubleWell):
        def _energy(self, x):
            return torch.where(x[:, 0] > 0, torch.inf, super()._energy(x))

    torch.manual_seed(0)
    space = space_of(gaussian_model(energy=Wall()))
    particles = space.draw(500)
    dead = particles.u[:, 0] > 0
    assert torch.equal(particles.log_weight == -torch.inf, dead)
    assert particles.slopes.isfinite().all()
    for _ in range(10):
        particles, _ = space.move_latents(particles, 0.5)
        particles, _ = space.move_coordinates(particles, 0.5, 1.4, 1)
    assert (particles.u[~dead, 0] <= 0).all()


def test_a_trajectory_that_leaves_the_numbers_is_refused():
    space = space_of(gaussian_model())
    particles = space.draw(10)
    steep = Particles(**{**vars(particles), "slopes": particles.slopes * 1e38})
    moved, accepted = space.move_coordinates(steep, 0.5, 1.0, 2)
    assert (accepted == 0).all()
    torch.testing.assert_close(moved.u, particles.u, rtol=0, atol=0)


def test_encoders_with_other_sites_are_refused():
    import pyro

    class Other(nn.Module):
        def forward(self, u):
            pyro.sample("z", dist.Normal(u[..., :1], 1.0).to_event(1))
            pyro.sample("other", dist.Normal(u[..., 0], 1.0))

    with pytest.raises(ValueError, match=r"the sites of the prior, \['z'\], got \['other', 'z'\]"):
        space_of(gaussian_model(encoder=Other())).draw(3)


def test_the_model_is_left_alone():
    cg = gaussian_model()
    before = {k: v.clone() for k, v in cg.state_dict().items()}
    space = space_of(cg)
    particles, _ = space.move_coordinates(space.draw(8), 0.5, ANGLE, 1)
    space.move_latents(particles, 0.5)
    assert all(torch.equal(before[k], v) for k, v in cg.state_dict().items())
    assert all(p.grad is None for p in cg.parameters())
    assert all(p.requires_grad for p in cg.parameters())
    assert not particles.u.requires_grad
    assert poutine.trace(cg.guide).get_trace(2).nodes["u"]["value"].requires_grad
