import dataclasses
import math

import pytest
import torch
from toy_models import gaussian_model, solved_model

import pyrocg
from pyrocg.agreement import of_weight_draws
from pyrocg.observables import coordinate
from pyrocg.posterior import EnsemblePosterior

OBSERVABLES = (coordinate(0), coordinate(1))


def shifted(cg, by):
    """Decoders whose mean is moved along the first coordinate."""
    states = []
    for distance in by:
        state = {name: value.clone() for name, value in cg.decoder.state_dict().items()}
        state["mean.layers.0.bias"][0] += distance
        states.append(state)
    return EnsemblePosterior(states)


def predictions(cg, by, n=2000, draws=10, seed=0):
    options = {"seed": seed, "progress": False, "encoder_draws": 0}
    posterior = shifted(cg, by)
    drawn = pyrocg.predict(
        cg, OBSERVABLES, n * draws, posterior=posterior, n_weight_draws=draws, **options
    )
    return drawn, pyrocg.predict(cg, OBSERVABLES, n, **options)


def codes(*predictions, **options):
    return [(c.code, c.observable) for c in of_weight_draws(*predictions, **options)]


def excess(cg, distance):
    """Nats that the shift costs, with the encoder standing still; see toy_models."""
    with torch.no_grad():
        precision = cg.target.energy.stiffness
        gain = cg.encoder.mean.layers[0].weight[0]
        residual = gain[0] * distance
        return float(0.5 * (precision[0, 0] * distance**2 + residual**2 / 0.5))


def test_bounds_of_draws_are_those_of_their_decoders():
    cg = solved_model()
    drawn, trained = predictions(cg, [0.0, 0.3, 0.6], n=4000, draws=3)
    log_z = float(trained.bounds()[0])
    assert log_z == pytest.approx(trained.log_z, abs=1e-9)  # the fit is exact
    found = sorted(log_z - drawn.bounds())
    expected = [excess(cg, d) for d in (0.0, 0.3, 0.6)]
    assert [float(f) for f in found] == pytest.approx(expected, abs=0.06)


def test_bounds_of_the_trained_weights_are_the_elbo():
    cg = pyrocg.CoarseGrainedModel.from_basins(
        pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0),
        pyrocg.IdentityCoordinates(2),
        latent_dim=1,
        hidden=(8,),
    )
    prediction = pyrocg.predict(cg, num_samples=1000, encoder_draws=0, progress=False)
    assert prediction.bounds().tolist() == pytest.approx([prediction.elbo])


def test_no_finite_energy_is_a_bound_of_minus_infinity():
    drawn, _ = predictions(solved_model(), [0.0, 0.1], n=50, draws=2)
    nothing = torch.full_like(drawn.log_weights, -math.inf)
    assert dataclasses.replace(drawn, log_weights=nothing).bounds().tolist() == [-math.inf] * 2


def test_draws_that_agree_get_no_caution_over_seeds():
    cg, fired = solved_model(), 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        by = (0.05 * torch.randn(10, generator=generator)).tolist()
        pair = predictions(cg, by, n=300, seed=seed)
        fired += len(codes(*pair, expected_excess=excess(cg, 0.05)))
    assert fired == 0


def test_draws_that_are_worse_than_expected():
    cg = solved_model()
    pair = predictions(cg, [-0.4, 0.4])
    half = excess(cg, 0.4) / 3  # what they should have had, and less than half of what they have
    assert 0.05 < half < 0.5
    (caution,) = of_weight_draws(*pair, expected_excess=half)
    assert caution.code == "weight_draws_worse"
    assert "farther from the Boltzmann density than the trained weights" in caution.text
    assert f"where their posterior expects {half:.2g}" in caution.text
    assert codes(*pair, expected_excess=excess(cg, 0.4)) == []
    assert codes(*pair) == []  # below 1 nat, and nothing was expected


def test_draws_that_are_worse_by_more_than_a_nat():
    cg = solved_model()
    pair = predictions(cg, [-1.5, 1.5])
    assert excess(cg, 1.5) > 2
    for expected in (None, math.nan, excess(cg, 1.5)):
        assert codes(*pair, expected_excess=expected) == [("weight_draws_worse", None)]


def test_a_negligible_excess_is_none():
    pair = predictions(solved_model(), [-0.1, 0.1])
    assert codes(*pair, expected_excess=1e-6) == []


def test_draws_beside_the_trained_weights():
    """A shift that is small in nats, and large beside the spread of the draws."""
    pair = predictions(solved_model(), [0.31, 0.30, 0.29], n=4000, draws=9)
    assert codes(*pair) == [("weight_draws_shifted", "x1")]
    (caution,) = of_weight_draws(*pair)
    assert "x1: the average over draws of the decoder's weights differs" in str(caution)


def test_angles_are_compared_on_the_circle():
    angle = pyrocg.Observable("angle", "rad", lambda x: _wrapped(x[:, 0] + math.pi), circular=True)
    cg = solved_model()
    options = {"progress": False, "encoder_draws": 0}
    posterior = shifted(cg, [0.02, -0.02])
    drawn = pyrocg.predict(
        cg, [angle], 8000, posterior=posterior, n_weight_draws=2, seed=1, **options
    )
    trained = pyrocg.predict(cg, [angle], 4000, seed=2, **options)
    assert codes(drawn, trained) == []


def _wrapped(x):
    return (x + math.pi) % (2 * math.pi) - math.pi


def test_the_predictions_must_be_with_and_without_a_posterior():
    drawn, trained = predictions(gaussian_model(), [0.0, 0.0], n=50, draws=2)
    with pytest.raises(ValueError, match="got 1 and 1 draws"):
        list(of_weight_draws(trained, trained))
    with pytest.raises(ValueError, match="got 2 and 2 draws"):
        list(of_weight_draws(drawn, drawn))
