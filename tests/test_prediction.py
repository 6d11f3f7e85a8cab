import json
import math
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
import torch
from toy_models import gaussian_model, shifted_model, solved_model

from pyrocg.arviz_compat import _arviz
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import CartesianCoordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.toy import Harmonic
from pyrocg.molecules import alanine_dipeptide
from pyrocg.observables import Observable, coordinate
from pyrocg.prediction import Prediction
from pyrocg.predictive import predict
from pyrocg.priors import StandardNormalPrior
from pyrocg.target import BoltzmannTarget

QUIET = {"progress": False}
X = (coordinate(0), coordinate(1))


@pytest.fixture(scope="module")
def solved():
    """Exact samples of N(0, C) with C = [[0.75, -0.25], [-0.25, 0.75]]."""
    torch.manual_seed(0)
    return predict(solved_model(), X, 20_000, n_draws=200, **QUIET)


def inside(estimate, truth):
    return estimate.interval[0] <= truth <= estimate.interval[1]


# Closed form


def test_mean_and_log_z(solved):
    log_z = Harmonic(2, torch.linalg.inv(torch.tensor([[0.75, -0.25], [-0.25, 0.75]]))).log_z()
    assert solved.log_z == pytest.approx(log_z, abs=1e-5)
    assert solved.elbo == pytest.approx(log_z, abs=1e-5)
    assert solved.log_z_interval == pytest.approx((log_z, log_z), abs=1e-4)
    assert solved.ess == pytest.approx(1.0, abs=1e-6)
    assert (solved.nonfinite, solved.warnings) == (0, ())
    estimate = solved.estimate("x1")
    error = math.sqrt(0.75 / 20_000)
    assert estimate.mean == pytest.approx(0.0, abs=4 * error)
    assert np.diff(estimate.interval)[0] == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert (estimate.level, estimate.unit) == (0.95, "")


def test_quantiles_have_the_width_of_the_distribution(solved):
    probs = [0.025, 0.5, 0.9]
    for p, estimate in zip(probs, solved.quantiles("x2", probs), strict=True):
        exact = math.sqrt(0.75) * float(torch.special.ndtri(torch.tensor(p)))
        density = math.exp(-0.5 * exact**2 / 0.75) / math.sqrt(2 * math.pi * 0.75)
        error = math.sqrt(p * (1 - p) / 20_000) / density
        assert estimate.mean == pytest.approx(exact, abs=4 * error)
        assert np.diff(estimate.interval)[0] == pytest.approx(2 * 1.96 * error, rel=0.3)


def test_histogram_is_the_density_within_its_intervals(solved):
    histogram = solved.histogram("x1", bins=20, limits=(-2.0, 2.0))
    (edges,) = histogram.edges
    assert (histogram.density * np.diff(edges)).sum() == pytest.approx(1.0)
    cdf = 0.5 * (1 + torch.erf(torch.from_numpy(edges) / math.sqrt(1.5))).numpy()
    exact = np.diff(cdf) / np.diff(edges) / (cdf[-1] - cdf[0])
    covered = (histogram.lower <= exact) & (exact <= histogram.upper)
    assert covered.mean() >= 0.8
    assert np.all(histogram.lower <= histogram.density)
    assert np.all(histogram.density <= histogram.upper)


def test_two_dimensional_histogram(solved):
    histogram = solved.histogram("x1", "x2", bins=10)
    assert histogram.density.shape == (10, 10)
    area = np.prod([np.diff(edge)[0] for edge in histogram.edges])
    assert histogram.density.sum() * area == pytest.approx(1.0)
    rows, columns = (np.add.outer(edge[:-1], edge[1:]).diagonal() / 2 for edge in histogram.edges)
    covariance = (histogram.density * area * np.outer(rows, columns)).sum()
    assert covariance == pytest.approx(-0.25, abs=0.05)


# Weights


def test_warnings_tell_when_not_to_trust():
    torch.manual_seed(0)
    prediction = predict(gaussian_model(), X, 300, n_draws=20, **QUIET)
    assert prediction.pareto_k > 0.7
    assert [w.code for w in prediction.warnings[:2]] == ["pareto_k", "few_effective_samples"]
    assert "cannot be trusted" in str(prediction.warnings[0])


# Angles


def angles(values, circular=True):
    """A prediction of equally weighted values of one angle."""
    n, values = len(values), np.asarray(values, dtype=float)
    zeros = torch.zeros(n, dtype=torch.float64)
    observable = Observable("angle", "rad", lambda x: x[:, 0], circular=circular)
    return Prediction(
        positions=values[:, None],
        latents={"z": values[:, None]},
        log_weights=zeros,
        smoothed_log_weights=zeros,
        plain_log_weights=zeros,
        energies=np.zeros(n),
        weight_draw=np.zeros(n, dtype=int),
        values={"angle": values},
        observables=(observable,),
        beta=0.4,
        level=0.9,
        log_z=0.0,
        log_z_interval=(0.0, 0.0),
        elbo=0.0,
        ess=1.0,
        pareto_k=0.0,
        energy_calls=n,
        nonfinite=0,
        seed=0,
        n_draws=100,
    )


def test_mean_of_angles_is_circular():
    around = math.pi + 0.3 * np.random.default_rng(0).normal(size=4000)
    wrapped = (around + math.pi) % (2 * math.pi) - math.pi
    estimate = angles(wrapped).estimate("angle")
    assert math.cos(estimate.mean - around.mean()) == pytest.approx(1.0, abs=1e-4)
    assert estimate.interval[0] < estimate.mean < estimate.interval[1]
    assert np.diff(estimate.interval)[0] == pytest.approx(2 * 1.645 * 0.3 / math.sqrt(4000), 0.3)


@pytest.mark.parametrize("turns", [0, 1, -2])
def test_quantiles_of_angles_are_of_values_between_minus_pi_and_pi(turns):
    values = np.random.default_rng(0).uniform(-math.pi, math.pi, 5000) + 2 * math.pi * turns
    for p, found in zip((0.25, 0.75), angles(values).quantiles("angle", [0.25, 0.75]), strict=True):
        assert found.mean == pytest.approx(2 * math.pi * (p - 0.5), abs=0.1)


@pytest.mark.parametrize("turns", [0, 1, -2])
def test_histogram_of_angles_takes_any_turn(turns):
    values = np.random.default_rng(0).uniform(-math.pi, math.pi, 5000)
    expected = angles(values).histogram("angle", bins=8)
    found = angles(values + 2 * math.pi * turns).histogram("angle", bins=8)
    np.testing.assert_allclose(found.density, expected.density)
    np.testing.assert_allclose(expected.density, 1 / (2 * math.pi), rtol=0.15)
    assert expected.edges[0][[0, -1]].tolist() == pytest.approx([-math.pi, math.pi])


def test_histogram_of_one_value():
    histogram = angles(np.full(10, 0.25), circular=False).histogram("angle", bins=4)
    assert histogram.edges[0][[0, -1]].tolist() == [-0.25, 0.75]
    assert histogram.density.max() == pytest.approx(4.0)


# ArviZ


def test_to_arviz_resamples_by_the_weights():
    prediction = predict(shifted_model(), X, 20_000, n_draws=50, **QUIET)
    data = prediction.to_arviz()
    posterior, statistics = data["posterior"], data["sample_stats"]
    assert posterior["x1"].shape == (4, 1000)
    assert posterior["z"].dims == ("chain", "draw", "cv")
    index = statistics["index"].values
    np.testing.assert_array_equal(posterior["x1"].values, prediction.values["x1"][index])
    np.testing.assert_array_equal(statistics["energy"].values, prediction.energies[index])
    assert not set(index[0]) & set(index[1])
    assert posterior.attrs["log_z"] == prediction.log_z
    summary = _arviz().summary(data, var_names=["x1"], round_to=6)
    assert float(summary["mean"].iloc[0]) == pytest.approx(0.3, abs=0.06)
    assert float(summary["r_hat"].iloc[0]) < 1.02
    plain = prediction.to_arviz(corrected=False)["posterior"]["x1"].values.mean()
    assert plain == pytest.approx(0.0, abs=0.06)


def test_to_arviz_draws_no_more_than_the_samples_know():
    prediction = predict(shifted_model(), X, 1000, n_draws=50, **QUIET)
    draws = prediction.to_arviz()["posterior"]["x1"].size
    assert 0.9 < draws / (1000 * prediction.ess) <= 1.1  # of smoothed weights
    observed = {"x1": np.zeros(7)}
    data = prediction.to_arviz(num_draws=80, observed=observed)
    assert data["posterior_predictive"]["x1"].shape == (1, 4, 20)
    with pytest.raises(KeyError, match="expected one of the predicted observables"):
        prediction.to_arviz(observed={"x9": np.zeros(7)})
    with pytest.raises(ValueError, match="num_draws of at least 4"):
        prediction.to_arviz(num_draws=3)


def test_observables_with_the_names_of_latents_are_refused():
    latent = Observable("z", "", lambda x: x[:, 0])
    with pytest.raises(ValueError, match="named otherwise than latents, got 'z'"):
        predict(solved_model(), [latent], 40, **QUIET).to_arviz()


# Molecules: trajectories


@pytest.fixture(scope="module")
def molecular():
    molecule = alanine_dipeptide()
    coordinates = CartesianCoordinates(molecule)
    torch.manual_seed(0)
    cg = CoarseGrainedModel(
        BoltzmannTarget(CompiledEnergy(molecule, compile=False), temperature=330.0),
        coordinates,
        StandardNormalPrior(2),
        GaussianDecoder(coordinates.circular, 2, initial_log_variance=-4.0),
        GaussianEncoder(coordinates.circular, 2),
    )
    return molecule, predict(cg, (), 30, n_draws=20, **QUIET)


@pytest.mark.parametrize("suffix", ["dcd", "xtc", "pdb"])
def test_trajectories_and_weights_are_written(molecular, suffix, tmp_path):
    molecule, prediction = molecular
    path = tmp_path / f"samples.{suffix}"
    weights = prediction.save_trajectory(path, molecule)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "samples.weights.txt"}
    topology = molecule.mdtraj_topology
    options = {} if suffix == "pdb" else {"top": topology}
    back = mdtraj.load(str(path), **options)
    np.testing.assert_allclose(back.xyz, prediction.positions, atol=1.1e-3)
    assert [a.name for a in back.topology.atoms] == [a.name for a in topology.atoms]
    assert np.loadtxt(weights).mean() == pytest.approx(1.0)


def test_a_trajectory_that_cannot_be_written_leaves_nothing(molecular, tmp_path):
    molecule, prediction = molecular
    old = tmp_path / "samples.dcd"
    old.write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "savetxt", full_disk)
        with pytest.raises(OSError, match="No space left"):
            prediction.save_trajectory(old, molecule)
    assert [p.name for p in tmp_path.iterdir()] == ["samples.dcd"]
    assert old.read_text() == "old"


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


# Arguments


def test_a_trajectory_without_positions_is_refused(tmp_path):
    prediction = predict(gaussian_model(), X, 50, n_draws=10, **QUIET)
    without = replace(prediction, positions=np.empty((0, 2)))
    with pytest.raises(ValueError, match="expected the positions of the samples"):
        without.save_trajectory(tmp_path / "x.dcd", molecule=None)
    assert not list(tmp_path.iterdir())


def test_names_and_ranges_are_checked(solved):
    with pytest.raises(KeyError, match=r"expected one of the predicted observables \(x1, x2\)"):
        solved.estimate("x3")
    with pytest.raises(ValueError, match="expected probabilities between 0 and 1"):
        solved.quantiles("x1", [0.5, 1.0])
    with pytest.raises(ValueError, match="expected one or two observables, got 0"):
        solved.histogram()
    with pytest.raises(ValueError, match="expected samples between"):
        solved.histogram("x1", limits=(50.0, 60.0))


def test_summary_is_plain(solved):
    summary = solved.summary()
    keys = "log_z log_z_interval elbo ess pareto_k num_samples energy_calls nonfinite corrected"
    assert set(summary) == {*keys.split(), "weight_draws", "warnings", "observables"}
    keys = "mean interval level unit posterior monte_carlo weights"
    assert set(summary["observables"]["x1"]) == set(keys.split())
    assert json.loads(json.dumps(summary)) == summary
