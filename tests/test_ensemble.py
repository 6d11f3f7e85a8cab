"""Samples of a model and of draws of its decoder, and what predictions make of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from toy_models import solved_model

from pyrocg.basins import find_basins
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.toy import GaussianMixture, Harmonic
from pyrocg.observables import coordinate, population_above
from pyrocg.predictive import predict
from pyrocg.priors import StandardNormalPrior
from pyrocg.target import BoltzmannTarget

X = (coordinate(0), coordinate(1))
QUIET = {"progress": False}
BIAS = "mean.layers.0.bias"


class Shifts:
    """Decoders that differ in their bias, normal with a standard deviation."""

    def __init__(self, spread):
        self.spread = spread

    def draw(self, n, seed):
        generator = torch.Generator().manual_seed(seed + 77)
        shifts = self.spread * torch.randn(n, 2, dtype=torch.float64, generator=generator)
        return [{BIAS: shift} for shift in shifts]


def wide_model():
    """A generator that covers N(0, C) of the solved model with some room."""
    cg = solved_model()
    with torch.no_grad():
        cg.decoder.log_variance.value.add_(0.3)
    return cg


@pytest.fixture(scope="module")
def posterior():
    return predict(wide_model(), X, 40_000, posterior=Shifts(0.3), n_draws=300, **QUIET)


def test_samples_are_shared_out_evenly_over_the_draws(posterior):
    sizes = np.bincount(posterior.weight_draw)
    assert sizes.tolist() == [2000] * 20
    assert np.all(np.diff(posterior.weight_draw) >= 0)
    shifts = torch.stack([s[BIAS] for s in Shifts(0.3).draw(20, 0)]).numpy()
    means = posterior.values["x1"].reshape(20, 2000).mean(1)
    np.testing.assert_allclose(means, shifts[:, 0], atol=4 * 0.95 / math.sqrt(2000))


def test_the_model_is_left_as_it_was():
    cg = wide_model()
    before = {name: value.clone() for name, value in cg.state_dict().items()}
    found = predict(cg, X, 103, posterior=Shifts(1.0), n_weight_draws=4, n_draws=5, **QUIET)
    assert np.bincount(found.weight_draw).tolist() == [26, 26, 26, 25]
    assert all(torch.equal(value, before[name]) for name, value in cg.state_dict().items())


def test_plain_averages_have_the_spread_of_the_decoders(posterior):
    shifts = torch.stack([s[BIAS] for s in Shifts(0.3).draw(20, 0)]).numpy()
    for k, name in enumerate(("x1", "x2")):
        found = posterior.estimate(name, corrected=False)
        assert found.posterior == pytest.approx(shifts[:, k].std(ddof=1) * math.sqrt(1.05), rel=0.1)
        deviation = posterior.values[name].reshape(20, 2000).std(1).mean()
        assert found.monte_carlo == pytest.approx(deviation / math.sqrt(40_000), rel=0.15)
        assert found.weights == 0.0
        assert found.mean == pytest.approx(shifts[:, k].mean(), abs=0.02)


def test_corrected_averages_pool_the_draws(posterior):
    """The truth is 0 with variance 0.75, whatever the decoder."""
    assert posterior.log_z == pytest.approx(
        Harmonic(2, torch.linalg.inv(torch.tensor([[0.75, -0.25], [-0.25, 0.75]]))).log_z(),
        abs=0.02,
    )
    for name in ("x1", "x2"):
        found = posterior.estimate(name)
        low, high = found.credible_interval(0.999)
        assert low < 0.0 < high
        assert found.posterior < 0.01
        assert found.monte_carlo == pytest.approx(math.sqrt(0.75 / 40_000), rel=0.1)
        assert 0 < found.weights < 0.02
    assert posterior.elbo < posterior.log_z
    codes = {w.code for w in posterior.warnings}
    assert not codes & {"pareto_k", "few_effective_samples", "model_bias"}


def test_every_result_has_the_spread(posterior):
    plain = posterior.histogram("x1", bins=10, limits=(-2, 2), corrected=False)
    assert (plain.posterior > 2 * plain.monte_carlo).sum() >= 5
    corrected = posterior.histogram("x1", bins=10, limits=(-2, 2))
    assert corrected.posterior.sum() < 0.3 * plain.posterior.sum()
    assert posterior.quantiles("x1", [0.5], corrected=False)[0].posterior > 0.2
    chains = posterior.to_arviz()["posterior"]["x1"]
    assert chains.sizes["chain"] == 20
    assert posterior.summary()["weight_draws"] == 20


def test_corrected_intervals_cover_with_a_posterior():
    cg, covered = wide_model(), []
    for seed in range(100):
        found = predict(
            cg,
            X[:1],
            600,
            posterior=Shifts(0.2),
            n_weight_draws=10,
            n_draws=150,
            seed=seed,
            **QUIET,
        ).estimate("x1")
        covered.append(found.interval[0] <= 0.0 <= found.interval[1])
    assert 0.9 <= np.mean(covered) <= 1.0


def mixture_model():
    energy = GaussianMixture([[-6.0, 0.0], [6.0, 0.0]], 1.0, [0.8, 0.2])
    target, coordinates = BoltzmannTarget(energy, beta=1.0), IdentityCoordinates(2)
    basins = find_basins(target, coordinates, starts=16, steps=100)
    torch.manual_seed(0)
    cg = CoarseGrainedModel.from_basins(
        target, coordinates, basins, latent_dim=1, hidden=(8,), n_couplings=2
    )
    cg.prior.set_shares(torch.tensor([0.8, 0.2]))
    return cg


def test_populations_of_components_are_known_at_least_as_well_as_their_intervals_say():
    cg, right, found = mixture_model(), population_above(0.0), []
    for seed in range(40):
        prediction = predict(cg, (right, coordinate(0)), 400, n_draws=150, seed=seed, **QUIET)
        share, x1 = (prediction.estimate(name) for name in ("population_right", "x1"))
        covered = [
            share.interval[0] <= 0.2 <= share.interval[1],
            x1.interval[0] <= -3.6 <= x1.interval[1],
        ]
        found.append([*covered, share.mean - 0.2, share.standard_deviation])
    share, x1, _, said = np.mean(found, axis=0)
    assert min(share, x1) >= 0.95
    assert np.std(np.array(found)[:, 2]) < said


@pytest.mark.parametrize("n_weight_draws", [0, 11])
def test_there_are_as_many_samples_as_draws(n_weight_draws):
    with pytest.raises(ValueError, match="expected from 1 to 10 weight draws"):
        predict(
            solved_model(), X, 10, posterior=Shifts(1.0), n_weight_draws=n_weight_draws, **QUIET
        )


def test_a_posterior_of_another_decoder_is_refused():
    coordinates = IdentityCoordinates(2)
    other = CoarseGrainedModel(
        BoltzmannTarget(Harmonic(2), beta=1.0),
        coordinates,
        StandardNormalPrior(1),
        GaussianDecoder(coordinates.circular, 1, (4, 4), [nn.Tanh] * 2),
        GaussianEncoder(coordinates.circular, 1, (4,), [nn.Tanh]),
    )
    with pytest.raises(ValueError, match="draw from a posterior of this module"):
        predict(other, X, 40, posterior=Shifts(1.0), **QUIET)
