import math

import numpy as np
import pytest
import torch
from toy_models import LOADINGS, NOISE, gaussian_model, solved_model

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.comparison import compare
from pyrocg.coordinates import IdentityCoordinates, InternalCoordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.abstract import CappedEnergy
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.toy import DoubleWell
from pyrocg.molecules import alanine_dipeptide
from pyrocg.observables import Observable, coordinate, population_above
from pyrocg.priors import StandardNormalPrior
from pyrocg.reference import Reference
from pyrocg.scoring import score
from pyrocg.target import BoltzmannTarget

QUIET = {"progress": False}


def reference_of(x, log_weights=None, beta=1.0):
    """A reference of independent records, shape (n_ladders, n_records, ...)."""
    x = np.asarray(x)
    zero = np.zeros(x.shape[:2])
    return Reference(
        positions=x,
        energies=zero,
        log_weights=zero if log_weights is None else log_weights,
        beta=beta,
        ladder=(1.0,),
        acceptance=np.zeros(0),
        round_trips=np.zeros(len(x), dtype=np.int64),
        energy_calls=0,
        seconds=0.0,
        settings={},
    )


def exact_reference(energy, n_ladders=20, n_records=500, seed=7):
    x = energy.sample(n_ladders * n_records, generator=torch.Generator().manual_seed(seed))
    return reference_of(x.numpy().reshape(n_ladders, n_records, -1))


@pytest.fixture(scope="module")
def laplace_model():
    """The double well's Laplace approximation in each basin, untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = BoltzmannTarget(DoubleWell(), beta=1.0)
        return CoarseGrainedModel.from_basins(target, IdentityCoordinates(2), latent_dim=1)


# Densities of given configurations


def test_the_solved_model_has_log_z_everywhere():
    model = solved_model()
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_z = model.target.energy.log_z()
    assert score(model, x) == pytest.approx(torch.full((50,), log_z).double(), abs=1e-6)


def test_score_is_the_density_that_samples_are_weighted_with():
    """A decoder that ignores z and an encoder that ignores u: w has a closed form."""
    model = gaussian_model().double()
    with torch.no_grad():
        for module in (model.decoder, model.encoder):
            for parameter in module.parameters():
                parameter.zero_()
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    log_w = score(model, x)
    width = math.exp(0.5 * model.encoder.initial_log_variance)
    decoded = math.exp(0.5 * model.decoder.initial_log_variance)
    for seed in range(3):
        torch.manual_seed(seed)
        z = width * torch.randn(2, dtype=torch.float64)
        torch.manual_seed(seed)
        log_w = score(model, x)
        gauss = [
            torch.distributions.Normal(0.0, scale).log_prob(value).double()
            for scale, value in ((width, z), (1.0, z), (decoded, x))
        ]
        exact = -model.target.energy(x) + gauss[0] - gauss[1] - gauss[2].sum(-1)
        assert log_w == pytest.approx(exact, abs=1e-6)


def test_score_leaves_the_model_as_it_was():
    model = solved_model()
    capped = BoltzmannTarget(CappedEnergy(model.target.energy, cap=0.1), beta=1.0)
    model.model.target = capped
    x = torch.tensor([[3.0, 3.0]], dtype=torch.float64)
    exact = solved_model().target.energy.log_z()
    assert float(score(model, x)) == pytest.approx(exact, abs=1e-6)
    assert model.target is capped


# Bounds


def shifted_model(shift):
    """The solved model with its decoder off by ``shift``."""
    model = solved_model()
    with torch.no_grad():
        model.decoder.mean.layers[0].bias.copy_(shift)
    return model


def test_bounds_and_forward_ess_in_closed_form():
    # equal covariances: both KL divergences are d N^-1 d / 2, and E_pi[w] E_pi[1/w] = exp(d N^-1 d)
    shift = 0.6 * NOISE.sqrt().double()
    model, distance = shifted_model(shift), float((shift**2 / NOISE).sum())
    energy = solved_model().target.energy
    found = compare(model, exact_reference(energy), num_samples=20_000, **QUIET)
    log_z = energy.log_z()
    assert found.eubo == pytest.approx(log_z + distance / 2, abs=4 * found.eubo_error)
    assert found.elbo == pytest.approx(log_z - distance / 2, abs=4 * found.elbo_error)
    assert found.log_z == pytest.approx(log_z, abs=4 * found.log_z_error)
    assert found.reference_log_z == pytest.approx(log_z, abs=4 * found.reference_log_z_error)
    assert max(found.eubo_error, found.elbo_error, found.log_z_error) < 0.02
    assert found.ess == pytest.approx(math.exp(-distance), abs=0.05)
    assert found.forward_ess == pytest.approx(math.exp(-distance), abs=0.05)
    assert (found.left_out, found.unsupported) == (0.0, 0.0)


def test_the_double_well_is_bracketed(laplace_model):
    well = DoubleWell()
    found = compare(laplace_model, exact_reference(well), num_samples=20_000, **QUIET)
    log_z = well.log_z()
    assert log_z == pytest.approx(12.0649, abs=1e-4)
    assert found.eubo > log_z + 3 * found.eubo_error
    assert found.elbo < log_z - 3 * found.elbo_error
    assert found.log_z == pytest.approx(log_z, abs=4 * found.log_z_error)
    assert found.reference_log_z == pytest.approx(log_z, abs=4 * found.reference_log_z_error)


def test_weights_of_a_biased_reference_count(laplace_model):
    """Samples of a tilted double well, weighed back, give the same bounds."""
    tilted = exact_reference(DoubleWell(c=0.0), n_records=1000, seed=1)
    # c x1 is missing in their energy
    weighed = reference_of(tilted.positions, log_weights=-tilted.positions[..., 0])
    plain = compare(laplace_model, exact_reference(DoubleWell()), num_samples=1000, **QUIET)
    found = compare(laplace_model, weighed, num_samples=1000, **QUIET)
    error = math.hypot(plain.eubo_error, found.eubo_error)
    assert found.eubo == pytest.approx(plain.eubo, abs=4 * error)
    error = math.hypot(plain.reference_log_z_error, found.reference_log_z_error)
    assert found.reference_log_z == pytest.approx(plain.reference_log_z, abs=4 * error)


def test_a_lost_mode_shows_in_the_forward_measures_alone():
    torch.manual_seed(0)
    model = gaussian_model(hidden=()).double()
    with torch.no_grad():  # the left well alone
        for module in (model.decoder, model.encoder):
            for parameter in module.parameters():
                parameter.zero_()
        model.decoder.mean.layers[-1].bias.copy_(torch.tensor([-2.53, 0.0]))
    well = DoubleWell(c=0.0)
    model.model.target = BoltzmannTarget(well, beta=1.0)
    found = compare(model, exact_reference(well), [population_above(0.167)], **QUIET)
    assert found.undersampled > 0.4
    assert found.eubo - found.log_z > 5.0
    assert found.forward_ess < 1e-3 < found.ess
    assert "a lost mode" in found.warnings[0]
    assert "population_right differs from the reference" in found.warnings[1]
    assert found.averages[0].reference.mean == pytest.approx(0.5, abs=0.02)
    assert found.averages[0].plain[0] < 0.1
    inside = compare(model, exact_reference(well), inside=lambda x: x[:, 0] < 0, **QUIET)
    assert inside.left_out == pytest.approx(0.5, abs=0.02)
    assert inside.undersampled < 1e-3
    assert inside.eubo < found.eubo - 5.0
    assert "of the model's samples are not inside" in inside.warnings[1]  # in the tail
    whole = compare(model, exact_reference(well), inside=lambda x: x[:, 0] < 50, **QUIET)
    assert whole.warnings == found.warnings[:1]


# Averages and surfaces


def test_averages_agree_where_the_model_is_exact():
    model = solved_model()
    reference = exact_reference(model.target.energy)
    angle = Observable("angle", "rad", lambda x: np.arctan2(x[:, 1], x[:, 0] + 5.0), circular=True)
    found = compare(model, reference, [coordinate(0), angle], num_samples=20_000, **QUIET)
    for row in found.averages:
        assert abs(row.z_score) < 4
        assert row.corrected == pytest.approx(row.plain, abs=1e-6)
    first = found.averages[0]
    deviation = float((LOADINGS[0] ** 2 + NOISE[0]).sqrt())
    assert first.plain[1] == pytest.approx(deviation / math.sqrt(20_000), rel=0.05)
    assert found.warnings == ()


def test_bridged_populations_do_not_trust_the_reference_between_basins(laplace_model):
    """A reference with too many samples of the rare well, but right ones."""
    well = DoubleWell()
    x = exact_reference(DoubleWell(c=0.0), n_records=1000).positions
    right = x[..., 0] > 0.167
    biased = reference_of(x, log_weights=np.where(right, 1.0, 0.0) - x[..., 0])
    population = population_above(0.167)
    found = compare(laplace_model, biased, [population, coordinate(1)], num_samples=50_000, **QUIET)
    row, exact = found.averages[0], well.probability_above()
    assert row.reference.mean > 2 * exact
    assert row.bridged[0] == pytest.approx(exact, abs=4 * row.bridged[1])
    assert row.bridged[1] < 0.06 * exact
    assert found.averages[1].bridged is None
    both = compare(laplace_model, biased, [population_above(99.0)], num_samples=100, **QUIET)
    assert both.averages[0].bridged is None


def test_an_exact_model_is_as_far_as_the_noise():
    model = solved_model()
    reference = exact_reference(model.target.energy, n_records=1000)
    pair = (coordinate(0), coordinate(1))
    found = compare(model, reference, surface=pair, num_samples=30_000, bins=30, **QUIET)
    for surface in (found.surface, found.plain_surface):
        expected = pytest.approx(surface.noise_total_variation, rel=0.15)
        assert surface.total_variation == expected
        assert surface.kl == pytest.approx(surface.noise_kl, rel=0.5)
    model = shifted_model(0.5 * NOISE.sqrt().double())
    wrong = compare(model, reference, surface=pair, num_samples=30_000, bins=30, **QUIET)
    assert wrong.plain_surface.total_variation > 2 * wrong.plain_surface.noise_total_variation
    assert wrong.plain_surface.kl > 2 * wrong.plain_surface.noise_kl
    assert wrong.surface.total_variation < wrong.plain_surface.total_variation


# Molecules


@pytest.fixture(scope="module")
def peptide():
    molecule = alanine_dipeptide()
    coordinates = InternalCoordinates(molecule)
    target = BoltzmannTarget(CompiledEnergy(molecule, compile=False), 330.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CoarseGrainedModel(
            target,
            coordinates,
            StandardNormalPrior(2),
            GaussianDecoder(coordinates.circular, 2, (8,)),
            GaussianEncoder(coordinates.circular, 2, (8,), (torch.nn.Tanh,)),
        ).double()
    x = torch.tensor(molecule.positions) + 0.003 * torch.randn(
        6, 22, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    return molecule, model, x


def scored(model, x):
    torch.manual_seed(0)
    return score(model, x)


def test_labels_of_methyl_hydrogens_and_placement_do_not_matter(peptide):
    _, model, x = peptide
    expected = scored(model, x)
    relabelled = x.clone()
    relabelled[:, [0, 2, 3]] = x[:, [2, 3, 0]]  # of the first methyl, in a circle
    turned, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    moved = x @ (turned * torch.linalg.det(turned)) + 1.5
    assert scored(model, relabelled) == pytest.approx(expected, abs=1e-6)
    assert scored(model, moved) == pytest.approx(expected, abs=1e-6)


def test_mirror_images_are_counted_and_left_out(peptide):
    _, model, x = peptide
    mixed = x.clone()
    mixed[[1, 4]] *= torch.tensor([1.0, 1.0, -1.0])
    assert scored(model, mixed).isnan().tolist() == [False, True, False, False, True, False]
    beta = model.target.beta
    reference = reference_of(mixed.reshape(2, 3, 22, 3).numpy(), beta=beta)
    found = compare(model, reference, num_samples=10, **QUIET)
    assert found.unsupported == pytest.approx(1 / 3)
    assert "the model cannot have 33.3 % of the reference" in found.warnings[0]
    mirrored = reference_of(mixed[[1, 4]].reshape(2, 1, 22, 3).numpy(), beta=beta)
    with pytest.raises(ValueError, match="got none of 2"):
        compare(model, mirrored, num_samples=10, **QUIET)


# How it is called


def test_same_seed_same_numbers_and_nothing_global_changes(laplace_model):
    reference = exact_reference(DoubleWell(), n_records=50)
    state = torch.get_rng_state()
    laplace_model.temper = 0.5
    first = compare(laplace_model, reference, num_samples=500, **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert laplace_model.temper == 0.5
    torch.rand(3)
    laplace_model.temper = 1.0
    assert compare(laplace_model, reference, num_samples=500, **QUIET) == first


def test_num_reference_bounds_what_is_scored(laplace_model):
    reference = exact_reference(DoubleWell(), n_records=500)
    found = compare(laplace_model, reference, num_samples=100, num_reference=1500, **QUIET)
    assert found.n_reference == 20 * 72  # every seventh record


def test_another_temperature_is_refused(laplace_model):
    reference = reference_of(np.zeros((2, 3, 2)), beta=2.0)
    with pytest.raises(ValueError, match="reference at the model's beta of 1 mol/kJ, got 2"):
        compare(laplace_model, reference, **QUIET)
