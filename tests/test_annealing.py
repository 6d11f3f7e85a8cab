import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from extended_models import density, poor_model, rotor_model, space_of
from toy_models import gaussian_model

from pyrocg.annealing import anneal
from pyrocg.bridges import find_bridge
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.energies.toy import DoubleWell, GaussianMixture
from pyrocg.observables import double_well_observables
from pyrocg.target import BoltzmannTarget
from pyrocg.weights import component_shares, ess, log_mean_exp


def mixture_model(energy):
    """The recommended model before training, with the weights of its components."""
    torch.manual_seed(0)
    target = BoltzmannTarget(energy, beta=1.0)
    coordinates = IdentityCoordinates(target.event_shape[0])
    cg = CoarseGrainedModel.from_basins(
        target, coordinates, latent_dim=1, n_couplings=2, hidden=(8,), n_modes=2
    )
    drawn = cg.sample(4000)
    component = drawn.latents["component"]
    cg.prior.set_shares(component_shares(drawn.log_weights, component, cg.prior.shares))
    return cg


def agrees(found, error, expected):
    assert abs(found - expected) < 4 * error
    assert error < 0.1


# Exactness


@pytest.mark.parametrize("resample_below", [None, 0.7])
def test_double_well(resample_below):
    cg = mixture_model(DoubleWell())
    a = anneal(cg, 6000, resample_below=resample_below, batch=2500, progress=False)
    agrees(a.log_z, a.log_z_error, DoubleWell().log_z())
    x1 = a.samples.x[:, 0]
    agrees(*a.average(x1), DoubleWell().mean()[0].item())
    right, error = a.average((x1 > 0.167).double())
    agrees(right, error, 0.00835)
    assert error < 0.0005


def test_mixture_of_normal_densities():
    energy = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], 0.5, weights=[0.3, 0.7])
    a = anneal(mixture_model(energy), 5000, progress=False)
    agrees(a.log_z, a.log_z_error, 0.0)
    for j, mean in enumerate(energy.mean().tolist()):
        agrees(*a.average(a.samples.x[:, j]), mean)


def test_an_angle():
    a = anneal(rotor_model(1.5), 5000, progress=False)
    expected = math.log(2 * math.pi * torch.special.i0(torch.tensor(1.5)).item())
    agrees(a.log_z, a.log_z_error, expected + 0.5 * math.log(2 * math.pi))
    ratio = (torch.special.i1(torch.tensor(1.5)) / torch.special.i0(torch.tensor(1.5))).item()
    agrees(*a.average(a.samples.x[:, 0].cos()), ratio)
    agrees(*a.average(a.samples.x[:, 0].sin()), 0.0)


@pytest.mark.parametrize("resample_below", [None, 0.8])
def test_z_has_no_bias_and_its_intervals_hold(resample_below):
    """Runs of 100 samples, with the same bridge, against the closed form."""
    cg = poor_model()
    exact = cg.target.energy.log_z()
    bridge = find_bridge(cg, min_ess=0.9, pilot=200)
    runs = [
        anneal(cg, 100, bridge, resample_below=resample_below, seed=seed, progress=False)
        for seed in range(80)
    ]
    ratio = np.exp([a.log_z - exact for a in runs])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(runs))
    errors = np.array([a.log_z_error for a in runs])
    assert 0.75 < errors.mean() / ratio.std() < 1.35
    held = [low < exact < high for low, high in (a.log_z_interval(0.9) for a in runs)]
    assert 0.80 <= np.mean(held) <= 0.98
    means = np.array([a.average(a.samples.u[:, 0]) for a in runs])
    z = (means[:, 0] - density(space_of(cg), 1.0)[0][1].item()) / means[:, 1]
    assert 0.8 <= (abs(z) < 1.645).mean() <= 1.0


def test_resampled_samples_have_families():
    cg = poor_model()
    bridge = find_bridge(cg, min_ess=0.9, pilot=200)
    a = anneal(cg, 500, bridge, resample_below=0.99, batch=250, progress=False)
    families = len(a.family.unique())
    assert 100 < families < 500
    assert bool((a.family[:250] < 250).all())
    assert bool((a.family[250:] >= 250).all())
    assert a.ess < float(ess(a.log_weights))
    with pytest.raises(ValueError, match="expected independent samples, got some"):
        a.predict()


# What it is for


def test_annealing_raises_the_effective_sample_size():
    cg = poor_model()
    plain = float(ess(cg.sample(4000).joint_log_weights))
    found = []
    for least in (0.8, 0.95, 0.99):
        a = anneal(cg, 4000, find_bridge(cg, min_ess=least, pilot=300), progress=False)
        assert a.energy_calls == 4000 * a.bridge.calls_per_sample
        assert len(a.acceptance) == len(a.latent_acceptance) == len(a.bridge.angles)
        found.append(a.ess)
    assert plain < 0.5
    assert [plain, *found] == sorted([plain, *found])
    assert found[-1] > 0.8, found


def test_without_levels_it_is_importance_sampling():
    cg = poor_model()
    bridge = find_bridge(cg, min_ess=0.01, pilot=50)
    assert bridge.levels == (1.0,)
    a = anneal(cg, 300, bridge, progress=False)
    particles = space_of(cg)._particles(a.samples.u, a.samples.latents)
    torch.testing.assert_close(a.log_weights, particles.log_weight)
    assert a.log_z == pytest.approx(float(log_mean_exp(a.log_weights)))


# Contract


def test_the_same_seed_gives_the_same_numbers_and_leaves_everything_as_it_was():
    cg = poor_model()
    cg.temper = 0.5
    torch.manual_seed(3)
    first = anneal(cg, 60, seed=4, batch=25, progress=False)
    after = torch.rand(())
    torch.manual_seed(3)
    assert after == torch.rand(())
    again = anneal(cg, 60, seed=4, batch=25, progress=False)
    other = anneal(cg, 60, first.bridge, seed=5, batch=25, progress=False)
    assert torch.equal(first.log_weights, again.log_weights)
    assert torch.equal(first.samples.x, again.samples.x)
    assert not torch.equal(first.log_weights, other.log_weights)
    assert cg.temper == 0.5
    assert torch.equal(first.family, torch.arange(60))
    assert first.energy_calls == first.bridge.energy_calls + 60 * first.bridge.calls_per_sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype):
    torch.manual_seed(0)
    cg = gaussian_model().to(dtype)
    a = anneal(cg, 500, find_bridge(cg, min_ess=0.9, pilot=200), progress=False)
    assert a.samples.u.dtype == a.samples.x.dtype == dtype
    assert a.log_weights.dtype == torch.float64
    assert a.log_z < DoubleWell().log_z() + 4 * a.log_z_error
    assert a.average(a.samples.x[:, 1])[0] == pytest.approx(0.0, abs=0.5)


def test_configurations_without_energy_have_no_weight():
    """The half x1 > 0 of a normal density is forbidden: Z is halved."""

    class Half(DoubleWell):
        def _energy(self, x):
            return torch.where(x[:, 1] > 0, torch.inf, super()._energy(x))

    a = anneal(mixture_model(Half()), 3000, progress=False)
    agrees(a.log_z, a.log_z_error, DoubleWell().log_z() - math.log(2))
    weight = torch.softmax(a.log_weights, 0)
    assert weight[a.samples.x[:, 1] > 0].sum() == 0
    assert a.predict().nonfinite > 0


def test_predictions_from_annealed_samples():
    cg = mixture_model(DoubleWell())
    a = anneal(cg, 6000, progress=False)
    found = a.predict(double_well_observables(), level=0.99, n_draws=200)
    right = found.estimate("population_right")
    mean, error = a.average((a.samples.x[:, 0] > 0.167).double())
    assert right.mean == pytest.approx(mean, rel=0.05)  # of smoothed weights
    assert right.interval[0] < 0.00835 < right.interval[1]
    assert right.interval[1] - right.interval[0] == pytest.approx(2 * 2.576 * error, rel=0.6)
    assert found.log_z == a.log_z
    assert found.ess == a.ess
    assert found.energy_calls == a.energy_calls
    assert found.elbo < found.log_z
    expected = DoubleWell()(torch.as_tensor(found.positions)).double().numpy()
    np.testing.assert_allclose(found.energies, expected, atol=1e-4)


def test_priors_with_auxiliary_sites():
    def prior():
        width = pyro.sample("width", dist.Normal(torch.zeros(1), 0.3).to_event(1)).exp()
        return pyro.sample("z", dist.Normal(torch.zeros(1), width).to_event(1))

    torch.manual_seed(0)
    cg = gaussian_model(prior=prior)
    a = anneal(cg, 1000, find_bridge(cg, min_ess=0.5), progress=False)
    assert set(a.samples.latents) == {"width", "z"}
    assert a.log_z < DoubleWell().log_z() + 4 * a.log_z_error


def test_arguments_out_of_range_are_refused():
    cg = poor_model()
    for wrong in ({"num_samples": 0}, {"batch": 0}, {"resample_below": 1.0}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))}"):
            anneal(cg, **{"num_samples": 10, "progress": False} | wrong)
    a = anneal(cg, 10, find_bridge(cg, min_ess=0.01, pilot=10), progress=False)
    for use in (a.predict, a.log_z_interval):
        with pytest.raises(ValueError, match="expected level between 0 and 1, got 2"):
            use(level=2)
