import math

import numpy as np
import pytest
import torch

from pyrocg.energies.toy import DoubleWell, Harmonic
from pyrocg.geometry import phi
from pyrocg.langevin import (
    Baoab,
    Replicas,
    TorsionBias,
    exchange,
    repartitioned_masses,
    temperature_ladder,
)
from pyrocg.molecules import alanine_dipeptide

PHI = (4, 6, 8, 14)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def covariance_of(dynamics, n=2000, equilibration=100, snapshots=20, apart=15):
    """Second moments of positions and velocities of each rung, from many replicas."""
    random = generator()
    dim, rungs = dynamics.energy.event_shape[0], len(dynamics.kt)
    replicas = dynamics.start(torch.zeros(n, rungs, dim, dtype=torch.float64), random)
    moments = []
    for i in range(equilibration + snapshots * apart):
        replicas = dynamics.step(replicas, random)
        if i >= equilibration and i % apart == 0:
            moments.append((replicas.x.square().mean(0), replicas.v.square().mean(0)))
    return [torch.stack(m).mean(0) for m in zip(*moments, strict=True)]


@pytest.mark.parametrize("time_step", [0.2, 0.9])
def test_positions_in_a_harmonic_well_are_exact_at_every_time_step(time_step):
    stiffness, masses = torch.tensor([1.0, 4.0, 0.5]), torch.tensor([1.0, 1.0, 2.0]).double()
    kt = torch.tensor([1.0, 2.5]).double()
    dynamics = Baoab(Harmonic(3, stiffness), kt, masses, time_step, friction=1.0)
    x2, v2 = covariance_of(dynamics)
    ratio = x2 / (kt[:, None] / stiffness)
    assert ratio == pytest.approx(torch.ones(2, 3), abs=0.04)  # 4 standard errors
    # the velocities are not exact: at the end of a step their variance is too small
    shrink = 1 - (time_step**2 * stiffness / masses) / 4
    assert v2 / (kt[:, None] / masses) == pytest.approx(shrink.expand(2, 3), abs=0.04)


def test_without_friction_energy_is_conserved():
    dynamics = Baoab(DoubleWell(), torch.ones(1).double(), torch.ones(1).double(), 0.01, 0.0)
    replicas = dynamics.start(torch.tensor([[[-2.0, 0.5]]]).double(), generator())

    def total(r):
        return float(r.energy + 0.5 * r.v.square().sum())

    before = total(replicas)
    for _ in range(1000):
        replicas = dynamics.step(replicas, generator())
    assert total(replicas) == pytest.approx(before, abs=2e-3)


def test_one_call_for_each_replica_and_step():
    energy = DoubleWell()
    dynamics = Baoab(energy, torch.ones(3), torch.ones(1), 0.1, 1.0)
    replicas = dynamics.start(torch.zeros(4, 3, 2), generator())
    assert energy.calls == 12
    dynamics.step(replicas, generator())
    assert energy.calls == 24


def test_a_bias_adds_its_force_and_not_its_energy():
    energy = DoubleWell()
    biased = Baoab(energy, torch.ones(1), torch.ones(1), 0.1, 1.0, bias=lambda x: 3.0 * x[:, 0])
    plain = Baoab(energy, torch.ones(1), torch.ones(1), 0.1, 1.0)
    x = torch.tensor([[[0.3, 0.4]], [[-1.0, 0.2]]])
    first, second = biased.start(x, generator()), plain.start(x, generator())
    assert torch.equal(first.energy, second.energy)
    assert (first.force - second.force)[:, 0] == pytest.approx(torch.tensor([[-3.0, 0.0]] * 2))
    assert first.bias[:, 0] == pytest.approx(3.0 * x[:, 0, 0])
    assert torch.equal(second.bias, torch.zeros(2, 1))


# Exchange


def exact_replicas(n, kt, seed=0):
    """Exact samples of a harmonic well of two variables on every rung."""
    random = generator(seed)
    shape = (n, len(kt), 2)
    x, v = (torch.randn(shape, dtype=torch.float64, generator=random) for _ in range(2))
    x, v = (value * kt.sqrt()[:, None] for value in (x, v))
    energy = 0.5 * x.square().sum(-1)
    return Replicas(x, v, -x, energy, torch.zeros_like(energy))


def test_exchange_leaves_every_rung_in_equilibrium():
    kt = torch.tensor([1.0, 1.7, 3.0, 4.0]).double()
    replicas, random = exact_replicas(40_000, kt), generator(1)
    for k in range(20):
        replicas, _ = exchange(replicas, kt, bool(k % 2), random)
    assert torch.equal(replicas.energy, 0.5 * replicas.x.square().sum(-1))
    assert torch.equal(replicas.force, -replicas.x)
    for value in (replicas.x, replicas.v):
        scaled = value / kt.sqrt()[:, None]
        assert scaled.mean(0) == pytest.approx(torch.zeros(4, 2), abs=0.025)
        assert scaled.square().mean(0) == pytest.approx(torch.ones(4, 2), abs=0.035)
        assert scaled.pow(4).mean(0) == pytest.approx(torch.full((4, 2), 3.0), abs=0.25)
    # of two variables the energy is exponential
    beyond = (replicas.energy / kt > 2.0).double().mean(0)
    assert beyond == pytest.approx(torch.full((4,), math.exp(-2.0)), abs=0.008)


def test_acceptance_of_exponential_energies_is_in_closed_form():
    # E min(1, e^((b1 - b2)(U1 - U2))) = 2 P(U1 > U2) = 2 b2 / (b1 + b2)
    kt = torch.tensor([1.0, 2.0, 5.0]).double()
    replicas = exact_replicas(100_000, kt)
    for odd, pair in ((False, 0), (True, 1)):
        _, source = exchange(replicas, kt, odd, generator(2))
        accepted = float((source[:, pair] == pair + 1).double().mean())
        beta, other = 1 / kt[pair], 1 / kt[pair + 1]
        assert accepted == pytest.approx(float(2 * other / (beta + other)), abs=0.007)


def test_flows_between_two_states_balance():
    """Two states of energies 0 and 1 on two rungs: the flow each way is the same."""
    kt = torch.tensor([1.0, 3.0]).double()
    n, random = 200_000, generator(3)
    excited = torch.sigmoid(-1.0 / kt)
    state = (torch.rand(n, 2, dtype=torch.float64, generator=random) < excited).double()
    x = state.unsqueeze(-1)
    _, source = exchange(Replicas(x, x, x, state, 0 * state), kt, False, random)
    swapped = source[:, 0] == 1
    up = float((swapped & (state[:, 0] == 1) & (state[:, 1] == 0)).double().mean())
    down = float((swapped & (state[:, 0] == 0) & (state[:, 1] == 1)).double().mean())
    exact = float(excited[0] * (1 - excited[1]))  # this way is downhill, always accepted
    assert up == pytest.approx(exact, abs=4 * math.sqrt(exact / n))
    assert down == pytest.approx(exact, abs=4 * math.sqrt(exact / n))


def test_the_bias_counts_in_exchanges_and_pairs_do_not_overlap():
    kt = torch.tensor([1.0, 2.0, 4.0, 8.0]).double()
    zero = torch.zeros(10, 4, 1).double()
    bias = torch.tensor([30.0, 0.0, 50.0, 0.0]).double().expand(10, 4)
    state = Replicas(zero, zero, zero, torch.zeros(10, 4).double(), bias)
    _, even = exchange(state, kt, False, generator())
    assert torch.equal(even, torch.tensor([1, 0, 3, 2]).expand(10, 4))
    _, odd = exchange(state, kt, True, generator())
    assert torch.equal(odd, torch.arange(4).expand(10, 4))  # (0 - 50) (1/2 - 1/4) < 0


# Ladders, masses, biases


def test_ladder_is_geometric():
    ladder = temperature_ladder(5, 3.0)
    assert ladder[0] == 1.0
    assert ladder[-1] == pytest.approx(3.0)
    assert np.diff(np.log(ladder)) == pytest.approx(np.full(4, math.log(3.0) / 4))


@pytest.mark.parametrize(("n_rungs", "hottest"), [(1, 2.0), (3, 1.0), (3, math.inf)])
def test_ladder_refused(n_rungs, hottest):
    with pytest.raises(ValueError, match="at least 2 rungs"):
        temperature_ladder(n_rungs, hottest)


def test_repartitioned_masses_keep_the_sum_and_name_the_limit():
    molecule = alanine_dipeptide()
    masses = repartitioned_masses(molecule, 3.0)
    hydrogens = np.array(molecule.symbols) == "H"
    assert masses.sum() == pytest.approx(molecule.masses.sum())
    assert (masses[hydrogens] == 3.0).all()
    assert masses[~hydrogens].min() == pytest.approx(12.01 + 3 * 1.008 - 9.0, abs=0.01)
    with pytest.raises(ValueError, match=r"at most 3\.76 for alanine-dipeptide"):
        repartitioned_masses(molecule, 4.0)


def test_torsion_bias_is_a_cosine_of_the_torsion():
    molecule = alanine_dipeptide()
    x = torch.tensor(molecule.positions) + 0.02 * torch.randn(
        50, 22, 3, dtype=torch.float64, generator=generator()
    )
    bias = TorsionBias(PHI, centre=0.7, depth=8.0)
    angle = torch.from_numpy(phi(molecule)(x.numpy()))
    assert bias(x) == pytest.approx(-4.0 * (1 + (angle - 0.7).cos()), abs=1e-5)
    assert torch.autograd.gradcheck(bias, x[:3].clone().requires_grad_())
