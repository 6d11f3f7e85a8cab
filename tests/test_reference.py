import math

import numpy as np
import pytest
import torch

from pyrocg.energies.abstract import Energy
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.toy import DoubleWell, GaussianMixture, Harmonic, MuellerBrown
from pyrocg.geometry import phi
from pyrocg.langevin import TorsionBias, repartitioned_masses, temperature_ladder
from pyrocg.molecules import alanine_dipeptide
from pyrocg.observables import coordinate, population_above
from pyrocg.reference import Reference, replica_exchange
from pyrocg.target import BoltzmannTarget

WELL = DoubleWell()
QUICK = {"time_step": 0.1, "friction": 1.0, "exchange_every": 5, "record_every": 10}
QUIET = {"progress": False}


def double_well(n_steps, energy=WELL, **options):
    start = torch.tensor([[-2.5, 0.0], [2.3, 0.0]], dtype=torch.float64)
    settings = {**QUICK, **QUIET, "ladder": temperature_ladder(4, 10.0), "n_ladders": 8, **options}
    return replica_exchange(BoltzmannTarget(energy, beta=1.0), start, n_steps, **settings)


def groups(reference, size):
    """Independent references of a few ladders each, out of one of many."""
    arrays = {k: v for k, v in vars(reference).items() if isinstance(v, np.ndarray)}
    rest = {k: v for k, v in vars(reference).items() if k not in arrays}
    shared = {"acceptance": arrays.pop("acceptance")}
    for first in range(0, len(reference.energies), size):
        part = {k: v[first : first + size] for k, v in arrays.items()}
        yield Reference(**rest, **shared, **part)


def covered(reference, observable, exact, size, level=0.8):
    """Share of the groups whose interval holds the exact value, and how many groups there are."""
    found = [g.estimate(observable, level).interval for g in groups(reference, size)]
    return sum(low < exact < high for low, high in found) / len(found), len(found)


# Against exact values


def test_double_well_with_coverage_of_the_error_bars():
    reference = double_well(1500, n_ladders=1000, equilibration=500)
    exact = WELL.probability_above()
    right = reference.estimate(population_above(0.167))
    assert right.mean == pytest.approx(exact, abs=4 * right.standard_error)
    assert right.standard_error < 0.06 * exact
    assert right.r_hat < 1.05
    left = reference.estimate(coordinate(0))
    assert left.mean == pytest.approx(float(WELL.mean()[0]), abs=4 * left.standard_error)
    for observable, truth in ((population_above(0.167), exact), (coordinate(0), left.mean)):
        share, n = covered(reference, observable, truth, size=20)
        # a small population has a skewed distribution, so its intervals miss a little more often
        assert abs(share - 0.8) < 4 * math.sqrt(0.8 * 0.2 / n)


def test_a_bias_is_taken_out_again_and_makes_the_rare_well_precise():
    def untilted(x):  # 1 in front of x1 of the double well, so the wells become nearly equal
        return -x[:, 0]

    reference = double_well(1500, n_ladders=1000, equilibration=500, bias=untilted)
    plainly = reference.evaluate(population_above(0.167)).mean()
    assert plainly == pytest.approx(0.5, abs=0.03)
    right = reference.estimate(population_above(0.167))
    exact = WELL.probability_above()
    assert right.mean == pytest.approx(exact, abs=4 * right.standard_error)
    assert right.standard_error < 0.05 * exact
    share, n = covered(reference, population_above(0.167), exact, size=20)
    assert abs(share - 0.8) < 4 * math.sqrt(0.8 * 0.2 / n)
    drawn = reference.draw(50_000)
    assert (drawn[:, 0] > 0.167).mean() == pytest.approx(right.mean, abs=8e-4)


MIXTURE = GaussianMixture([[-3.0, 0.0], [3.0, 1.0]], covariances=[0.5, 1.0], weights=[0.3, 0.7])
BROWN = MuellerBrown(scale=0.05)


def brown_mean():
    """Of the first variable, by quadrature on a grid."""
    x, y = torch.meshgrid(
        torch.linspace(-3, 2, 1000).double(), torch.linspace(-1.5, 3, 1000).double(), indexing="ij"
    )
    weight = torch.exp(-BROWN(torch.stack((x, y), -1)))
    return float((weight * x).sum() / weight.sum())


@pytest.mark.parametrize(
    ("energy", "time_step", "exact"),
    [
        (MIXTURE, 0.3, float(MIXTURE.mean()[0])),
        (BROWN, 0.03, brown_mean()),
        (Harmonic(2, [1.0, 9.0], [0.5, 0.0]), 0.4, 0.5),
    ],
)
def test_other_toy_energies(energy, time_step, exact):
    reference = replica_exchange(
        BoltzmannTarget(energy, beta=1.0),
        torch.zeros(1, 2),
        1500,
        time_step=time_step,
        friction=1.0,
        ladder=temperature_ladder(3, 6.0),
        n_ladders=300,
        exchange_every=5,
        record_every=15,
        **QUIET,
    )
    found = reference.estimate(coordinate(0))
    assert found.mean == pytest.approx(exact, abs=4 * found.standard_error)
    assert found.standard_error < 0.05
    assert reference.acceptance.shape == (2,)
    assert reference.round_trips.shape == (300,)
    assert not any("exchanges" in text or "trips" in text for text in reference.warnings)


def test_one_temperature_is_plain_langevin_dynamics():
    reference = double_well(400, energy=Harmonic(2), ladder=(1.0,), n_ladders=200)
    second = np.square(reference.positions[..., 0])
    assert second.mean() == pytest.approx(1.0, abs=0.05)
    assert reference.acceptance.size == 0
    assert reference.round_trips.sum() == 0
    assert reference.energy_calls == 401 * 200


def test_acceptance_and_round_trips_of_a_flat_energy():
    class Flat(Energy):
        def _energy(self, x):
            return 0.0 * x.sum(-1)

    reference = double_well(200, energy=Flat((2,)), ladder=(1.0, 2.0, 3.0))
    assert reference.acceptance.tolist() == [1.0, 1.0]
    # even and odd pairs in turn carry each replica up and down in 2 * 3 exchanges
    assert reference.round_trips.tolist() == [3 * (40 // 6)] * 8


# The result


def test_records_energies_and_calls():
    reference = double_well(100, equilibration=20, bias=lambda x: 0.1 * x[:, 1])
    assert reference.positions.shape == (8, 8, 2)
    x = torch.from_numpy(reference.positions)
    assert reference.energies == pytest.approx(WELL(x).numpy())
    assert reference.log_weights == pytest.approx(0.1 * reference.positions[..., 1])
    assert reference.energy_calls == 101 * 32
    assert reference.seconds > 0


def test_save_and_load(tmp_path):
    reference = double_well(100)
    reference.estimate(coordinate(0))
    assert isinstance(reference.warnings, tuple)
    reference.save(tmp_path / "reference.npz")
    loaded = Reference.load(tmp_path / "reference.npz")
    for name in ("positions", "energies", "log_weights", "acceptance", "round_trips"):
        assert np.array_equal(getattr(loaded, name), getattr(reference, name))
    for name in ("beta", "ladder", "energy_calls", "seconds", "settings"):
        assert getattr(loaded, name) == getattr(reference, name)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        Reference.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ValueError, match="expected a saved reference at"):
            Reference.load(tmp_path / name)


def test_warnings_name_bad_acceptance_and_missing_round_trips():
    reference = double_well(200, Harmonic(2), ladder=(1.0, 1e5))
    assert any("exchanges between rungs 0 and 1" in text for text in reference.warnings)
    assert any("round trips" in text for text in reference.warnings)


# Determinism, checkpoints


def same(first, second):
    for name in ("positions", "energies", "log_weights", "acceptance", "round_trips"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert first.energy_calls == second.energy_calls


def test_same_seed_same_numbers_and_no_global_generator():
    state = torch.get_rng_state()
    first = double_well(50, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    same(first, double_well(50, seed=3))
    assert not np.array_equal(first.positions, double_well(50, seed=4).positions)


class Stopping(DoubleWell):
    """Interrupts at a given number of calls."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def _energy(self, x):
        if self.calls >= self.at:
            raise KeyboardInterrupt
        return super()._energy(x)


@pytest.mark.parametrize("interrupted_at", [32 * 7, 32 * 43, 32 * 95])
def test_resume_gives_the_same_numbers(tmp_path, interrupted_at):
    file = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        double_well(100, Stopping(interrupted_at), checkpoint=file, checkpoint_seconds=0.0)
    assert file.exists()
    same(double_well(100, checkpoint=file), double_well(100))
    same(double_well(100, checkpoint=file), double_well(100))  # there is nothing left to do


def test_a_finished_run_is_extended(tmp_path):
    file = tmp_path / "run.pt"
    double_well(60, checkpoint=file, equilibration=20)
    longer = double_well(100, checkpoint=file, equilibration=20)
    same(longer, double_well(100, equilibration=20))


def test_resume_refuses_other_settings(tmp_path):
    file = tmp_path / "run.pt"
    double_well(60, checkpoint=file, equilibration=20)
    with pytest.raises(ValueError, match=r"\(seed=0\), got seed=1"):
        double_well(60, checkpoint=file, equilibration=20, seed=1)
    with pytest.raises(ValueError, match=r"\(n_steps=60\), got n_steps=50"):
        double_well(50, checkpoint=file, equilibration=20)
    with pytest.raises(FileNotFoundError, match="make it first"):
        double_well(60, checkpoint=tmp_path / "none" / "run.pt")


# Molecules


@pytest.fixture(scope="module")
def molecule():
    return alanine_dipeptide()


def test_a_molecule_with_bias_and_heavy_hydrogens(molecule):
    energy = CompiledEnergy(molecule, torch.float32, compile=False)
    start = torch.tensor(molecule.positions, dtype=torch.float32)[None]
    reference = replica_exchange(
        BoltzmannTarget(energy, 330.0),
        start,
        300,
        masses=repartitioned_masses(molecule),
        time_step=0.002,
        friction=20.0,
        ladder=temperature_ladder(2, 1.3),
        n_ladders=16,
        exchange_every=20,
        record_every=20,
        equilibration=200,
        bias=TorsionBias((4, 6, 8, 14), math.radians(-150.0), 20.0),
        **QUIET,
    )
    assert reference.positions.dtype == np.float32
    x = torch.from_numpy(reference.positions)
    assert reference.energies == pytest.approx(energy(x).numpy(), abs=0.01)
    # 60 degrees of freedom, nearly harmonic, take up kT/2 each above the minimum
    minimum = float(energy(start)[0])
    excess = (reference.energies.mean() - minimum) / (30 / reference.beta)
    assert 0.75 < excess < 1.1
    assert reference.evaluate(phi(molecule)).shape == (16, 5)
    weights = reference.log_weights / reference.beta
    angle = reference.evaluate(phi(molecule))
    assert weights == pytest.approx(-10 * (1 + np.cos(angle - np.radians(-150.0))), abs=0.01)


def test_a_time_step_that_is_too_long_is_reported(molecule):
    energy = CompiledEnergy(molecule, compile=False)
    start = torch.tensor(molecule.positions)[None]
    with pytest.raises(FloatingPointError, match="shorter time step"):
        replica_exchange(
            BoltzmannTarget(energy, 330.0),
            start,
            500,
            masses=molecule.masses,
            time_step=0.01,
            n_ladders=2,
            record_every=10,
            **QUIET,
        )


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ladders": 1}, "at least 2 ladders"),
        ({"record_every": 0}, "record_every of at least 1"),
        ({"exchange_every": 0}, "exchange_every of at least 1"),
        ({"equilibration": 100}, "leaves steps to record"),
        ({"record_every": 200}, "leaves steps to record"),
        ({"time_step": 0.0}, "time step above 0"),
        ({"friction": -1.0}, "friction of at least 0"),
        ({"ladder": (2.0, 3.0)}, "rising from 1"),
        ({"ladder": (1.0, 1.0)}, "rising from 1"),
        ({"ladder": ()}, "rising from 1"),
        ({"masses": [1.0, 2.0]}, "positive masses"),
        ({"masses": -1.0}, "positive masses"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        double_well(100, **options)


@pytest.mark.parametrize("start", [torch.zeros(2), torch.zeros(0, 2), torch.zeros(1, 2).long()])
def test_refused_start(start):
    with pytest.raises(ValueError, match=r"start positions of shape \(n_starts, 2\)"):
        replica_exchange(BoltzmannTarget(WELL, beta=1.0), start, 500, **QUIET)
