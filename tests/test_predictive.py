"""Predictions of models: their intervals, their cost, and the trained weights beside draws."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from toy_models import gaussian_model, shifted_model, solved_model

import pyrocg
from pyrocg.agreement import of_weight_draws
from pyrocg.basins import find_basins
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.energies.toy import DoubleWell, GaussianMixture, Harmonic
from pyrocg.observables import coordinate, population_above
from pyrocg.posterior import EnsemblePosterior, LaplacePosterior
from pyrocg.prediction import Prediction
from pyrocg.predictive import PosteriorPrediction, predict
from pyrocg.target import BoltzmannTarget

QUIET = {"progress": False}
X = (coordinate(0), coordinate(1))
BIAS = "mean.layers.0.bias"


def inside(estimate, truth):
    return estimate.interval[0] <= truth <= estimate.interval[1]


def test_95_percent_intervals_cover_in_95_percent_of_200_seeds():
    cg, found = shifted_model(), []
    for seed in range(200):
        prediction = predict(cg, X[:1], 500, n_draws=200, seed=seed, batch=500, **QUIET)
        low, high = prediction.log_z_interval
        found.append([inside(prediction.estimate("x1"), 0.3), low < math.log(math.pi) < high])
    mean, log_z = np.mean(found, axis=0)
    assert 0.91 <= mean <= 0.985
    assert 0.91 <= log_z <= 0.985


def test_predict_is_reproducible_and_leaves_no_trace():
    cg = mixture_model(DoubleWell())
    cg.prior.set_shares(torch.tensor([0.99, 0.01]))
    cg.temper = 0.5
    before = {name: value.clone() for name, value in cg.state_dict().items()}
    state, calls = torch.get_rng_state(), cg.target.energy.calls
    first = predict(cg, X, 1001, batch=300, n_draws=50, seed=7, **QUIET)
    second = predict(cg, X, 1001, batch=300, n_draws=50, seed=7, **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in cg.state_dict().items())
    assert torch.equal(first.log_weights, second.log_weights)
    assert first.summary() == second.summary()
    assert first.positions.shape == (1001, 2)
    assert first.energy_calls == second.energy_calls == 1001
    assert cg.target.energy.calls == calls + 2002


def test_defensive_shares_change_precision_not_averages():
    """A component of 0.2 % gets at least 2.5 % of the samples; plain averages know."""
    energy = GaussianMixture([[-6.0, 0.0], [6.0, 0.0]], 1.0, [0.998, 0.002])
    cg = mixture_model(energy)
    cg.prior.set_shares(torch.tensor([0.998, 0.002]))
    right = population_above(0.0)
    prediction = predict(cg, (right,), 20_000, n_draws=200, **QUIET)
    assert prediction.values["population_right"].mean() == pytest.approx(0.95 * 0.002 + 0.025, 1e-2)
    for corrected in (True, False):
        estimate = prediction.estimate("population_right", corrected)
        assert estimate.mean == pytest.approx(0.002, rel=0.05)
    assert prediction.log_z == pytest.approx(0.0, abs=0.01)
    assert prediction.elbo <= prediction.log_z + 1e-3
    assert prediction.elbo == pytest.approx(0.0, abs=0.05)


def separated():
    """Two Gaussians far apart and what a trained model of them gives: shares 0.9 and 0.1."""
    cg = mixture_model(GaussianMixture([[-6.0, 0.0], [6.0, 0.0]], 1.0, [0.9, 0.1]))
    cg.prior.set_shares(torch.tensor([0.9, 0.1]))
    return cg


def test_intervals_are_within_components():
    """The numbers of samples of the components are fixed: only the weights within them are noise.

    Taking the component as random would make the population wide by 4 sqrt(0.09/1000).
    """
    cg, right, found = separated(), population_above(0.0), []
    for seed in range(25):
        prediction = predict(cg, (right, X[0]), 1000, n_draws=100, seed=seed, **QUIET)
        plain = prediction.estimate("population_right", corrected=False)
        both = (prediction.estimate("population_right"), prediction.estimate("x1"))
        low, high = prediction.log_z_interval
        held = [*(inside(e, t) for e, t in zip(both, (0.1, -4.8), strict=True)), low < 0 < high]
        found.append([*held, inside(plain, 0.1), np.diff(both[0].interval)[0]])
    population, mean, log_z, plain, width = np.mean(found, axis=0)
    assert min(population, mean, log_z) >= 0.88
    assert plain >= 0.88
    assert width < 0.5 * 4 * math.sqrt(0.09 / 1000)


def test_plain_shares_are_as_uncertain_as_the_weights_leave_them():
    prediction = predict(separated(), (population_above(0.0),), 4000, n_draws=300, **QUIET)
    (corrected, plain) = (
        prediction.estimate("population_right", which).standard_deviation for which in (True, False)
    )
    assert plain == pytest.approx(corrected, rel=0.1)


class Holed(Harmonic):
    """Infinite at x1 > 1.5, not a number at x1 < -2."""

    def _energy(self, x):
        energy = super()._energy(x)
        energy = torch.where(x[:, 0] > 1.5, torch.inf, energy)
        return torch.where(x[:, 0] < -2.0, torch.nan, energy)


def test_samples_without_energy_weigh_nothing():
    torch.manual_seed(0)
    cg = gaussian_model(energy=Holed(2))
    prediction = predict(cg, X, 2000, n_draws=50, **QUIET)
    x1 = prediction.values["x1"]
    lost = (x1 > 1.5) | (x1 < -2.0)
    assert prediction.nonfinite == lost.sum() > 0
    assert prediction.weights()[torch.from_numpy(lost)].max() == 0
    (said,) = [w.text for w in prediction.warnings if w.code == "nonfinite"]
    assert said.startswith(f"{lost.sum()} of 2000 samples (")
    assert prediction.elbo <= prediction.log_z
    assert prediction.log_z == pytest.approx(math.log(prediction.log_weights.exp().mean()))
    assert math.isfinite(prediction.estimate("x1").mean)


class Nowhere(Harmonic):
    def _energy(self, x):
        return super()._energy(x) / 0.0


def test_no_finite_energy_at_all_is_an_error():
    with pytest.raises(ValueError, match="expected samples with finite energies, got none of 50"):
        predict(gaussian_model(energy=Nowhere(2)), X, 50, **QUIET)


def test_encoder_draws_raise_the_ess_and_leave_the_elbo():
    """An encoder of twice the exact variance."""
    cg = solved_model()
    cg.encoder.log_variance.value.data.fill_(1.0)
    joint, averaged = (
        predict(cg, num_samples=4000, encoder_draws=draws, progress=False) for draws in (0, 30)
    )
    assert joint.ess < 0.9
    assert averaged.ess > 0.97
    assert averaged.elbo == pytest.approx(joint.elbo, abs=0.03)
    assert averaged.log_z == pytest.approx(cg.target.energy.log_z(), abs=0.01)
    with pytest.raises(ValueError, match="encoder_draws"):
        predict(cg, num_samples=10, encoder_draws=-1)


@pytest.mark.parametrize(
    "options",
    [{"num_samples": 0}, {"batch": 0}, {"n_draws": 1}, {"level": 0.0}, {"level": 1.0}],
)
def test_arguments_are_checked(options):
    with pytest.raises(ValueError, match="expected"):
        predict(solved_model(), **({"num_samples": 10} | options), **QUIET)


def test_observables_of_the_same_name_are_refused():
    twice = [coordinate(0), coordinate(1), coordinate(0)]
    with pytest.raises(ValueError, match=f"different names, got {twice[0].name} more than once"):
        predict(solved_model(), twice, 100, progress=False)


def mixture_model(energy):
    target, coordinates = BoltzmannTarget(energy, beta=1.0), IdentityCoordinates(2)
    basins = find_basins(target, coordinates, starts=16, steps=100)
    torch.manual_seed(0)
    return CoarseGrainedModel.from_basins(
        target, coordinates, basins, latent_dim=1, hidden=(8,), n_couplings=2
    )


def test_weights_correct_the_generator():
    prediction = predict(shifted_model(), X, 20_000, n_draws=200, **QUIET)
    assert inside(prediction.estimate("x1"), 0.3)
    assert inside(prediction.estimate("x1", corrected=False), 0.0)
    assert prediction.log_z == pytest.approx(math.log(math.pi), abs=0.02)
    assert prediction.log_z_interval[0] < math.log(math.pi) < prediction.log_z_interval[1]
    assert prediction.elbo < prediction.log_z
    assert prediction.weights().mean().item() == pytest.approx(1.0)
    assert 0.2 < prediction.ess < 0.9
    assert -1 < prediction.pareto_k < 0.7


# Draws of the decoder's weights, and the trained weights beside them


class Moved:
    """Draws whose mean is moved along the first coordinate."""

    def __init__(self, *distances, excess=None):
        self.distances = distances
        if excess is not None:
            self.excess = excess

    def draw(self, n, seed):
        assert n == len(self.distances)
        return [{BIAS: torch.tensor([d, 0.0], dtype=torch.float64)} for d in self.distances]


def with_draws(posterior, n=4000, n_weight_draws=4, **options):
    options = {"encoder_draws": 0, "n_draws": 200, "progress": False} | options
    cg = solved_model()
    return predict(cg, X, n, posterior=posterior, n_weight_draws=n_weight_draws, **options)


def codes(prediction):
    return [(c.code, c.observable) for c in prediction.warnings if "draws" in c.code]


def test_a_prediction_says_where_its_draws_disagree_with_the_trained_weights():
    agree = with_draws(Moved(-0.02, 0.02, 0.0, 0.01))
    assert isinstance(agree, PosteriorPrediction)
    assert codes(agree) == []
    shifted = with_draws(Moved(0.31, 0.30, 0.29, 0.3), n=16_000)
    assert codes(shifted) == [("weight_draws_shifted", "x1")]
    worse = with_draws(Moved(-1.5, 1.5, -1.5, 1.5))
    assert codes(worse) == [("weight_draws_worse", None)]
    said = {(w["code"], w["observable"]) for w in worse.summary()["warnings"]}
    assert ("weight_draws_worse", None) in said


def test_what_the_posterior_expects_is_taken_from_it():
    moved = (-0.4, 0.4, -0.4, 0.4)
    unknown = with_draws(Moved(*moved))
    assert math.isnan(unknown.expected_excess)
    assert codes(unknown) == []  # below 1 nat
    surprised = with_draws(Moved(*moved, excess=0.02))
    assert surprised.expected_excess == 0.02
    assert codes(surprised) == [("weight_draws_worse", None)]
    cautions = of_weight_draws(surprised, surprised.trained, 0.02)
    assert [str(c) for c in cautions] == [str(surprised.warnings[-1])]
    cg = solved_model()
    laplace = LaplacePosterior.fit(cg, gibbs_scale=1e4, num_draws=50)
    found = predict(cg, X, 400, posterior=laplace, n_weight_draws=2, n_draws=50, **QUIET)
    assert found.expected_excess == laplace.excess > 0


def test_the_trained_weights_cost_as_much_as_one_draw():
    cg, posterior = solved_model(), Moved(*4 * [0.1])
    before = cg.target.energy.calls
    options = {"posterior": posterior, "n_weight_draws": 4, "n_draws": 50, **QUIET}
    found = predict(cg, X, 1000, **options)
    assert found.energy_calls == cg.target.energy.calls - before == 1250
    assert (len(found.log_weights), len(found.trained.log_weights)) == (1000, 250)
    assert not found.trained.weight_draw.any()
    alone = predict(cg, X, 1000, trained_samples=0, **options)
    assert type(alone) is Prediction
    assert alone.energy_calls == 1000
    assert torch.equal(alone.log_weights, found.log_weights)
    more = predict(cg, X, 1000, trained_samples=600, **options)
    assert (more.energy_calls, len(more.trained.log_weights)) == (1600, 600)
    one = predict(cg, X, 1000, posterior=Moved(0.1), n_weight_draws=1, n_draws=50, **QUIET)
    assert (type(one), one.energy_calls) == (Prediction, 1000)


def test_the_trained_weights_have_random_numbers_of_their_own():
    """Shared ones would make the difference less noisy than the two errors say."""
    found = with_draws(Moved(0.0, 0.0, 0.0, 0.0), seed=5)
    first = found.values["x1"][:1000]
    assert abs(np.corrcoef(first, found.trained.values["x1"])[0, 1]) < 0.1
    again = with_draws(Moved(0.0, 0.0, 0.0, 0.0), seed=5)
    assert torch.equal(found.trained.log_weights, again.trained.log_weights)


def test_the_level_of_both_can_be_changed():
    found = dataclasses.replace(with_draws(Moved(-1.5, 1.5, -1.5, 1.5)), level=0.5)
    assert found.estimate("x1").level == 0.5
    assert codes(found) == [("weight_draws_worse", None)]


def test_members_of_an_ensemble_are_compared_only_where_asked_for():
    posterior = EnsemblePosterior.of([solved_model(), solved_model()])
    assert type(with_draws(posterior, n_weight_draws=2)) is Prediction
    asked = with_draws(posterior, n_weight_draws=2, trained_samples=500)
    assert len(asked.trained.log_weights) == 500
    assert codes(asked) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trained_samples": 1}, "expected trained_samples of 0 or at least 2, got 1"),
        ({"trained_samples": -5}, "expected trained_samples of 0 or at least 2, got -5"),
        ({"trained_samples": 9, "posterior": None}, "expected a posterior and two or more weight"),
        ({"trained_samples": 9, "n_weight_draws": 1}, "expected a posterior and two or more"),
    ],
)
def test_numbers_of_trained_samples_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        with_draws(**({"posterior": Moved(0.0, 0.0, 0.0, 0.0)} | options))


def test_the_names_are_public():
    assert (pyrocg.predict, pyrocg.PosteriorPrediction) == (predict, PosteriorPrediction)
