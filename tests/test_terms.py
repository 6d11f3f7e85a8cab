"""Every term against hand-computed numbers, OpenMM's Reference platform and its own gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import openmm
import pytest
import torch
from openmm.app.internal import customgbforces

from pyrocg.energies.contexts import BatchContext, ContextSetup
from pyrocg.energies.conversion import UnsupportedForceError, terms_of
from pyrocg.energies.customgb import general_gb
from pyrocg.energies.implicit import custom_gb as known_solvent
from pyrocg.energies.terms import PairRows, Potential, by_rows

N_ATOMS = 6
COULOMB = 138.93545764438198


def system_of(*forces: openmm.Force, n_atoms: int = N_ATOMS) -> openmm.System:
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(1.0)
    for force in forces:
        system.addForce(force)
    return system


def bonds() -> openmm.Force:
    force = openmm.HarmonicBondForce()
    force.addBond(0, 1, 0.1, 2e5)
    force.addBond(3, 1, 0.15, 3e5)
    return force


def angles() -> openmm.Force:
    force = openmm.HarmonicAngleForce()
    force.addAngle(0, 1, 2, 1.9, 400.0)
    force.addAngle(5, 2, 1, 2.1, 300.0)
    force.addAngle(3, 1, 0, math.pi, 100.0)
    return force


def periodic_torsions() -> openmm.Force:
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(0, 1, 2, 3, 3, 0.4, 5.0)
    force.addTorsion(0, 1, 2, 3, 1, math.pi, 2.0)
    force.addTorsion(0, 1, 2, 3, 3, 0.0, -1.5)
    force.addTorsion(2, 3, 4, 5, 6, -1.0, 0.7)
    force.addTorsion(5, 1, 0, 2, 2, math.pi, 40.0)
    return force


def rb_torsions() -> openmm.Force:
    force = openmm.RBTorsionForce()
    force.addTorsion(0, 1, 2, 3, 1.0, -2.0, 3.0, 4.0, -5.0, 6.0)
    force.addTorsion(1, 2, 5, 4, 9.2, 1.2, -13.1, 0.1, 26.2, -31.5)
    return force


def correction_maps() -> openmm.Force:
    """Maps of two sizes; one torsion pair shares three atoms, as in a protein, another none."""
    force = openmm.CMAPTorsionForce()
    for size in (24, 5):
        force.addMap(size, np.random.default_rng(size).normal(size=size * size))
    force.addTorsion(0, 0, 1, 2, 3, 1, 2, 3, 4)
    force.addTorsion(1, 0, 1, 2, 3, 5, 4, 2, 1)
    force.addTorsion(0, 2, 3, 4, 5, 1, 0, 5, 2)
    return force


def nonbonded() -> openmm.Force:
    force = openmm.NonbondedForce()
    for i in range(N_ATOMS):
        force.addParticle(0.3 * (-1) ** i, 0.25 + 0.02 * i, 0.4 * (i != 4))
    force.addException(0, 1, 0.0, 1.0, 0.0)
    force.addException(4, 1, -0.2, 0.31, 0.7)
    return force


def cutoff() -> openmm.NonbondedForce:
    """Cut off within the chain of 0.7 nm, exceptions on both sides."""
    force = nonbonded()
    force.addException(0, 5, 0.1, 0.5, 0.3)
    force.setNonbondedMethod(force.CutoffNonPeriodic)
    force.setCutoffDistance(0.4)
    force.setReactionFieldDielectric(30.0)
    return force


def switched() -> openmm.NonbondedForce:
    force = cutoff()
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(0.25)
    return force


def offsets() -> openmm.NonbondedForce:
    force = nonbonded()
    force.addGlobalParameter("lambda", 0.7)
    force.addGlobalParameter("mu", -0.3)
    force.addParticleParameterOffset("lambda", 0, 0.1, 0.02, 0.3)
    force.addParticleParameterOffset("lambda", 3, 0.2, 0.0, 0.1)
    force.addParticleParameterOffset("mu", 0, -0.4, 0.0, 0.0)
    force.addExceptionParameterOffset("mu", 1, 0.5, 0.1, -0.2)
    force.addExceptionParameterOffset("lambda", 0, 0.1, 0.0, 0.2)
    return force


def gbsa_obc() -> openmm.Force:
    force = openmm.GBSAOBCForce()
    force.setSoluteDielectric(2.0)
    force.setSolventDielectric(60.0)
    force.setSurfaceAreaEnergy(3.0)
    for i in range(N_ATOMS):
        force.addParticle(0.4 * (-1) ** i, 0.12 + 0.02 * i, (0.05, 0.8, 1.5)[i % 3])
    return force


def gbsa_in_vacuum() -> openmm.Force:
    force = gbsa_obc()
    force.setSolventDielectric(0.0)
    return force


def custom_gb(model: str, kappa: float = 0.0, surface: str | None = "ACE") -> openmm.CustomGBForce:
    """A solvent as OpenMM's own class writes it; small screened spheres bury no atom, large do."""
    make = getattr(customgbforces, model)
    force = make(solventDielectric=60.0, soluteDielectric=2.0, SA=surface, kappa=kappa)
    for i in range(N_ATOMS):
        screening = [1.5 if i == 2 else 0.8, *([1.1, 0.9, 0.6] if "GBn2" in model else [])]
        force.addParticle([0.4 * (-1) ** i, (0.12, 0.15, 0.17)[i % 3], *screening])
    force.finalize()
    return force


SOLVENTS = {
    "hct": partial(custom_gb, "GBSAHCTForce"),
    "obc1": partial(custom_gb, "GBSAOBC1Force"),
    "obc1_without_surface": partial(custom_gb, "GBSAOBC1Force", surface=None),
    "obc1_with_salt": partial(custom_gb, "GBSAOBC1Force", kappa=1.5),
    "obc2": partial(custom_gb, "GBSAOBC2Force"),
    "obc2_with_salt": partial(custom_gb, "GBSAOBC2Force", kappa=0.5),
    "gbn": partial(custom_gb, "GBSAGBnForce"),
    "gbn2": partial(custom_gb, "GBSAGBn2Force"),
    "gbn2_with_salt": partial(custom_gb, "GBSAGBn2Force", kappa=0.5),
}
FORCES = {
    f.__name__: f
    for f in (
        bonds,
        angles,
        periodic_torsions,
        rb_torsions,
        correction_maps,
        nonbonded,
        cutoff,
        switched,
        offsets,
        gbsa_obc,
        gbsa_in_vacuum,
    )
} | SOLVENTS


def structures(spread: float, count: int = 40) -> np.ndarray:
    """A zigzag chain with noise: 0.02 nm is thermal, 0.2 nm overlapping and torn apart."""
    chain = np.array([[0.12 * i, 0.06 * (i % 2), 0.03 * (i % 3)] for i in range(N_ATOMS)])
    noise = np.random.default_rng(1).standard_normal((count, N_ATOMS, 3))
    return chain + spread * noise


def potential_of(*forces: openmm.Force) -> Potential:
    return Potential.of(terms_of(system_of(*forces)), N_ATOMS)


def reference(system: openmm.System, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    setup = ContextSetup(openmm.XmlSerializer.serialize(system), "Reference", {})
    energies, forces = BatchContext(setup).evaluate(x, forces=True)
    assert forces is not None
    return energies, forces


def agrees_with_openmm(make: Callable[[], openmm.Force]) -> None:
    """Energies and forces on thermal, distorted and overlapping structures."""
    system = system_of(make())
    potential = Potential.of(terms_of(system), N_ATOMS)
    for spread in (0.02, 0.05, 0.2):
        x = structures(spread)
        energies, forces = reference(system, x)
        energy, gradient = potential.energy_and_gradient(torch.tensor(x))
        # energies of opposite sign cancel, and a force is only as precise as the largest of its sum
        scale = np.abs(forces).max(axis=(1, 2))
        np.testing.assert_allclose(energy, energies, rtol=1e-9, atol=1e-12 * (1 + scale.max()))
        error = np.abs(gradient.numpy() + forces).max(axis=(1, 2))
        assert (error <= 1e-10 * (scale + 1e-3)).all()


@pytest.mark.parametrize("name", FORCES)
def test_a_term_agrees_with_openmm(name):
    agrees_with_openmm(FORCES[name])


@pytest.mark.parametrize("name", FORCES)
def test_the_gradient_is_the_derivative_of_the_energy(name):
    potential = potential_of(FORCES[name]())
    x = torch.tensor(structures(0.02, 3), requires_grad=True)
    energy, gradient = potential.energy_and_gradient(x)
    (expected,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("name", FORCES)
def test_no_net_force_and_no_net_torque(name):
    x = torch.tensor(structures(0.05))
    _, gradient = potential_of(FORCES[name]()).energy_and_gradient(x)
    scale = 1e-12 * (1 + float(gradient.abs().max()))
    torch.testing.assert_close(gradient.sum(1), torch.zeros(len(x), 3).double(), rtol=0, atol=scale)
    torque = torch.linalg.cross(x, gradient).sum(1)
    torch.testing.assert_close(torque, torch.zeros_like(torque), rtol=0, atol=scale)


def test_a_sum_is_the_sum_of_its_terms():
    forces = [make() for make in FORCES.values()]
    x = torch.tensor(structures(0.02))
    energy, gradient = potential_of(*forces).energy_and_gradient(x)
    parts = [potential_of(make()).energy_and_gradient(x) for make in FORCES.values()]
    torch.testing.assert_close(energy, sum(e for e, _ in parts), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(gradient, sum(g for _, g in parts), rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("n", range(1, 10))
def test_rows_hold_every_pair_once(n):
    rows, atoms = PairRows.of(n), torch.arange(n)
    second = rows.seconds(atoms[:, None].double())[..., 0]
    assert second.shape == (n // 2, n)
    counted = by_rows(torch.ones(n, n), empty=0.0).bool()
    first = atoms.expand_as(second)
    found = {frozenset((i, j)) for i, j in zip(*_both(first, second, counted), strict=True)}
    assert found == {frozenset(p) for p in itertools.combinations(range(n), 2)}
    assert int(counted.sum()) == n * (n - 1) // 2
    table = torch.arange(float(n * n)).reshape(n, n)
    assert torch.equal(by_rows(table, empty=None), table[first, second.long()])
    assert torch.equal(by_rows(table, empty=7.0)[~counted], torch.full((int((~counted).sum()),), 7))
    assert by_rows(torch.eye(n, dtype=torch.bool)).sum() == 0


def _both(first, second, counted):
    return first[counted].tolist(), second[counted].long().tolist()


@pytest.mark.parametrize("n", range(1, 8))
def test_what_pairs_give_to_both_atoms_is_collected(n):
    generator = torch.Generator().manual_seed(n)
    of_first, of_second = torch.rand(2, n // 2, n, 4, generator=generator).double()
    expected = torch.zeros(n, 4).double()
    for k in range(n // 2):
        for i in range(n):
            expected[i] += of_first[k, i]
            expected[(i + k + 1) % n] += of_second[k, i]
    torch.testing.assert_close(PairRows.of(n).collect(of_first, of_second), expected)


def first_atoms(force: openmm.Force, n: int) -> openmm.Force:
    """A force of pairs without parameters of atoms beyond the first n, and without exceptions."""
    smaller = type(force)()
    if isinstance(force, openmm.CustomGBForce):
        xml = openmm.XmlSerializer.serialize(force)
        kept, rows = [], 0
        for line in xml.splitlines():
            rows += "<Particle " in line
            if "<Exclusion " not in line and ("<Particle " not in line or rows <= n):
                kept.append(line)
        return openmm.XmlSerializer.deserialize("\n".join(kept))
    for i in range(n):
        smaller.addParticle(*force.getParticleParameters(i))
    return smaller


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["nonbonded", "gbsa_obc", "hct", "gbn2", "obc2_with_salt"])
def test_few_atoms_and_odd_numbers_of_them(name, n):
    system = system_of(first_atoms(FORCES[name](), n), n_atoms=n)
    potential = Potential.of(terms_of(system), n)
    x = np.concatenate([structures(spread, 5)[:, :n] for spread in (0.02, 0.2)])
    energies, forces = reference(system, x)
    energy, gradient = potential.energy_and_gradient(torch.tensor(x))
    scale = np.abs(forces).max()
    np.testing.assert_allclose(energy, energies, rtol=1e-9, atol=1e-12 * (1 + scale))
    np.testing.assert_allclose(-gradient, forces, rtol=0, atol=1e-10 * (scale + 1e-3))
    x[0, 0, 1] = math.nan
    assert torch.isnan(potential.energy_and_gradient(torch.tensor(x))[0]).tolist() == [True] + 9 * [
        False
    ]


def test_a_term_has_an_energy_of_its_own():
    (term,) = terms_of(system_of(bonds()))
    x = torch.zeros(1, N_ATOMS, 3, dtype=torch.float64)
    x[0, 1, 0], x[0, 3, 0] = 0.12, 0.28
    expected = 0.5 * 2e5 * 0.02**2 + 0.5 * 3e5 * 0.01**2
    assert term.energy(x).item() == pytest.approx(expected, rel=1e-12)


def test_an_angle_by_hand():
    (term,) = terms_of(system_of(one_angle(math.pi / 3)))
    x = torch.zeros(1, N_ATOMS, 3, dtype=torch.float64)
    x[0, 0, 0], x[0, 2, 1] = 0.1, 0.2
    assert term.energy(x).item() == pytest.approx(50.0 * (math.pi / 6) ** 2, rel=1e-12)


@pytest.mark.parametrize("degrees", [-150.0, -90.0, -1e-6, 0.0, 45.0, 90.0, 180.0])
def test_a_torsion_by_hand(degrees):
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(0, 1, 2, 3, 3, 0.5, 4.0)
    phi = math.radians(degrees)
    x = torch.zeros(1, N_ATOMS, 3, dtype=torch.float64)
    x[0, 0] = torch.tensor([1.0, 0.0, 0.0])
    x[0, 2] = torch.tensor([0.0, 0.0, 1.0])
    x[0, 3] = torch.tensor([math.cos(phi), math.sin(phi), 1.0], dtype=torch.float64)
    (term,) = terms_of(system_of(force))
    expected = 4.0 * (1 + math.cos(3 * phi - 0.5))
    assert term.energy(x).item() == pytest.approx(expected, rel=1e-12)


def test_a_map_is_met_at_its_grid_points_and_not_left_by_nan():
    force, size = openmm.CMAPTorsionForce(), 6
    table = np.random.default_rng(0).normal(size=(size, size))
    force.addMap(size, table.ravel())
    force.addTorsion(0, 0, 1, 2, 3, 0, 1, 2, 4)
    (term,) = terms_of(system_of(force))
    degrees = [(0, 0), (60, 0), (0, 60), (180, -60), (-60, -120), (-1e-13, 1e-13), (math.nan, 0)]
    angles = np.radians(degrees)
    x = np.zeros((len(angles), N_ATOMS, 3))
    x[:, 0] = [1.0, 0.0, 0.0]
    x[:, 2] = [0.0, 0.0, 1.0]
    x[:, 3:5] = np.stack([np.cos(angles), np.sin(angles), np.ones_like(angles)], axis=-1)
    expected = [table[0, 0], table[0, 1], table[1, 0], table[5, 3], table[4, 5], table[0, 0]]
    energies = term.energy(torch.tensor(x))
    np.testing.assert_allclose(energies[:-1], expected, rtol=1e-9)
    assert torch.isnan(energies[-1])


def test_charges_and_lennard_jones_by_hand():
    x = torch.tensor([[[1.0 * i, 0.0, 0.0] for i in range(N_ATOMS)]], dtype=torch.float64)
    x[0, 1, 0] = 0.3
    force = openmm.NonbondedForce()
    for i in range(N_ATOMS):
        force.addParticle(
            *((0.5, 0.3, 0.2) if i == 0 else (-1.0, 0.2, 0.8) if i == 1 else (0, 1, 0))
        )
    (term,) = terms_of(system_of(force))
    ratio = (0.25 / 0.3) ** 6
    expected = 4 * 0.4 * (ratio**2 - ratio) - COULOMB * 0.5 / 0.3
    assert term.energy(x).item() == pytest.approx(expected, rel=1e-12)


def test_one_ion_in_water_by_hand():
    force = openmm.GBSAOBCForce()
    for i in range(N_ATOMS):
        force.addParticle(1.0 if i == 0 else 0.0, 0.2, 0.0)
    force.setSurfaceAreaEnergy(0.0)
    (term,) = terms_of(system_of(force))
    x = torch.arange(N_ATOMS).double().reshape(1, -1, 1) * torch.tensor([5.0, 0.0, 0.0])
    born = -0.5 * COULOMB * (1 - 1 / 78.3) / 0.191
    assert term.energy(x.double()).item() == pytest.approx(born, rel=1e-9)


def one_angle(theta: float) -> openmm.Force:
    force = openmm.HarmonicAngleForce()
    force.addAngle(0, 1, 2, theta, 100.0)
    return force


@pytest.mark.parametrize("bend", [0.0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_straight_and_folded_angles_stay_finite(direction, bend):
    system = system_of(one_angle(1.9))
    x = np.zeros((1, N_ATOMS, 3))
    x[0, 0], x[0, 2] = [0.1, 0, 0], [direction * 0.15, 0.15 * bend, 0]
    energies, forces = reference(system, x)
    energy, gradient = Potential.of(terms_of(system), N_ATOMS).energy_and_gradient(torch.tensor(x))
    assert torch.isfinite(gradient).all()
    # OpenMM's arc cosine knows the angle to 1e-8 at best here, so neither it nor its force is exact
    np.testing.assert_allclose(energy, energies, rtol=1e-6)
    np.testing.assert_allclose(
        -gradient, forces, rtol=1e-6, atol=1e-6 * np.abs(forces).max() + 1e-9
    )


@pytest.mark.parametrize("name", ["nonbonded", "cutoff", "switched", "gbsa_obc", "bonds"])
def test_excluded_atoms_on_top_of_each_other_are_those_of_openmm(name):
    system = system_of(FORCES[name]())
    x = structures(0.02, 3)
    x[1, 1] = x[1, 0]
    energies, forces = reference(system, x)
    assert np.isfinite(energies).all()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        potential = Potential.of(terms_of(system), N_ATOMS).to(dtype, torch.device("cpu"))
        energy, gradient = potential.energy_and_gradient(torch.tensor(x, dtype=dtype))
        np.testing.assert_allclose(energy, energies, rtol=tolerance)
        np.testing.assert_allclose(-gradient, forces, atol=tolerance * np.abs(forces).max())


@pytest.mark.parametrize("end", [0, 2])
def test_an_angle_without_an_arm_is_nan_as_in_openmm(end):
    system = system_of(one_angle(1.9))
    x = structures(0.02, 2)
    x[1, end] = x[1, 1]
    energies, _ = reference(system, x)
    energy, gradient = Potential.of(terms_of(system), N_ATOMS).energy_and_gradient(torch.tensor(x))
    np.testing.assert_allclose(energy, energies, rtol=1e-12)
    assert torch.isnan(energy).tolist() == [False, True]
    assert torch.isfinite(gradient[0]).all()


def test_atoms_on_top_of_each_other_do_not_spoil_other_configurations():
    potential = potential_of(nonbonded(), gbsa_obc(), bonds(), angles(), periodic_torsions())
    x = torch.tensor(structures(0.02, 3))
    expected, expected_gradient = potential.energy_and_gradient(x)
    x[1, 1] = x[1, 0]
    x[1, 5] = x[1, 2]
    energy, gradient = potential.energy_and_gradient(x)
    assert not torch.isfinite(energy[1])
    torch.testing.assert_close(energy[::2], expected[::2], rtol=0, atol=0)
    torch.testing.assert_close(gradient[::2], expected_gradient[::2], rtol=0, atol=0)


@pytest.mark.parametrize("name", FORCES)
def test_nan_positions_give_nan(name):
    x = torch.tensor(structures(0.02, 2))
    x[1, 1, 2] = math.nan
    energy, gradient = potential_of(FORCES[name]()).energy_and_gradient(x)
    assert torch.isnan(energy).tolist() == [False, True]
    assert torch.isfinite(gradient[0]).all()


def test_an_overlap_in_float32_is_infinite_not_nan():
    potential = potential_of(nonbonded()).to(torch.float32, torch.device("cpu"))
    x = torch.tensor(structures(0.0, 1), dtype=torch.float32)
    x[0, 3] = x[0, 2] + 1e-5
    energy, _ = potential.energy_and_gradient(x)
    assert energy.item() == math.inf


def custom() -> openmm.Force:
    return openmm.CustomCentroidBondForce(2, "distance(g1,g2)^2")


def ewald() -> openmm.Force:
    force = nonbonded()
    force.setNonbondedMethod(force.Ewald)
    return force


def periodic_bonds() -> openmm.Force:
    force = bonds()
    force.setUsesPeriodicBoundaryConditions(True)
    return force


def gbsa_cutoff() -> openmm.Force:
    force = gbsa_obc()
    force.setNonbondedMethod(force.CutoffNonPeriodic)
    return force


def solvent_cutoff() -> openmm.Force:
    force = custom_gb("GBSAOBC2Force")
    force.setNonbondedMethod(force.CutoffNonPeriodic)
    return force


def rewritten(computed: dict[int, str] | None = None, **energies: str) -> openmm.Force:
    """OBC2 with a computed value replaced, or an energy added."""
    force = custom_gb("GBSAOBC2Force")
    for index, expression in (computed or {}).items():
        name, _, kind = force.getComputedValueParameters(index)
        force.setComputedValueParameters(index, name, expression, kind)
    for kind, expression in energies.items():
        force.addEnergyTerm(expression, getattr(force, kind))
    return force


def other_energy(index: int, old: str, new: str, kappa: float = 0.0) -> openmm.Force:
    """OBC2 with a part of an energy in other words."""
    force = custom_gb("GBSAOBC2Force", kappa)
    expression, kind = force.getEnergyTermParameters(index)
    force.setEnergyTermParameters(index, expression.replace(old, new), kind)
    return force


def uneven_neck() -> openmm.Force:
    force = custom_gb("GBSAGBnForce")
    name, expression, kind = force.getComputedValueParameters(0)
    force.setComputedValueParameters(0, name, expression.replace("1+100*", "1+or1*"), kind)
    return force


def off_the_table() -> openmm.Force:
    force = custom_gb("GBSAGBnForce")
    *parameters, _ = force.getParticleParameters(3)
    force.setParticleParameters(3, [*parameters, 7.0])
    return force


def confusing_parameter() -> openmm.Force:
    force = rewritten(SingleParticle="x*charge/B")
    force.addGlobalParameter("x", 1.0)
    return force


def third_value() -> openmm.Force:
    force = custom_gb("GBSAOBC2Force")
    force.addComputedValue("C", "2*B", force.SingleParticle)
    return force


def excluded_pairs() -> openmm.Force:
    force = rewritten(ParticlePair="charge1*charge2/r")
    force.addExclusion(0, 1)
    return force


def negative_radius() -> openmm.Force:
    force = custom_gb("GBSAOBC2Force")
    force.setParticleParameters(3, [0.1, -0.01, 0.1])
    return force


def of_positions() -> openmm.Force:
    return rewritten(SingleParticle="x*charge/B")


F = "f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"
UNCOVERED = (of_positions, off_the_table, confusing_parameter, negative_radius)
UNKNOWN = [
    (solvent_cutoff, "nonbonded method is not NoCutoff"),
    (third_value, "computed values are not I, then B"),
    (excluded_pairs, "an energy of pairs has exclusions"),
    (negative_radius, "radius of an atom is not positive"),
    (uneven_neck, "square is not the same for all pairs"),
    (off_the_table, "an index of a tabulated function is outside of its table"),
    (confusing_parameter, "energy of atoms is not that of HCT"),
    (partial(other_energy, 0, "kappa=1", "kappa=2", kappa=1.0), "kappa is not the same everywhere"),
    (partial(other_energy, 2, "charge1", "or1"), "an energy of pairs depends on their order"),
    (partial(rewritten, {1: "1/(1/or-sin(I*or)/(or+0.009))"}), "B is not that of HCT, OBC1"),
    (partial(rewritten, {1: "1/(1/or-tanh(psi^2)/or); psi=I*or"}), "B is not that of HCT, OBC1"),
    (partial(rewritten, {0: "1/(r+or1+sr2)"}), "I is not that of HCT"),
    (partial(rewritten, SingleParticle="charge*B"), "energy of atoms is not that of HCT"),
    (partial(rewritten, SingleParticle="charge/B"), "second energy of polarization of atoms"),
    (partial(rewritten, SingleParticle="or*(or/B)^6"), "second energy of surface"),
    (of_positions, "energy of atoms is not that of HCT"),
    (partial(rewritten, ParticlePairNoExclusions="charge1/r"), "energy of pairs is not that"),
    (partial(rewritten, ParticlePairNoExclusions=f"or1*or2/f; {F}"), "second energy of polar"),
]


@pytest.mark.parametrize(("make", "reason"), UNKNOWN)
def test_another_solvent_is_not_a_known_one(make, reason):
    with pytest.raises(UnsupportedForceError, match=reason):
        known_solvent(make())


@pytest.mark.parametrize("make", [make for make, _ in UNKNOWN if make not in UNCOVERED])
def test_another_solvent_is_compiled_as_it_is_written(make):
    (term,) = terms_of(system_of(make()))
    assert type(term).__name__ == "CustomGB"
    agrees_with_openmm(make)


@pytest.mark.parametrize("name", SOLVENTS)
def test_a_known_solvent_is_the_same_as_it_is_written(name):
    x = torch.tensor(structures(0.05))
    term = general_gb(SOLVENTS[name]())
    assert term is not None
    expected = potential_of(SOLVENTS[name]()).energy_and_gradient(x)
    general = Potential.of((term,), N_ATOMS)
    torch.testing.assert_close(general.energy_and_gradient(x), expected, rtol=1e-9, atol=1e-9)
    single, _ = general.to(torch.float32, torch.device("cpu")).energy_and_gradient(x.float())
    torch.testing.assert_close(single.double(), expected[0], rtol=1e-5, atol=1e-3)


def other_values(kind: int) -> openmm.Force:
    """A sum with exclusions, values in a row, energies of atoms alone or of pairs."""
    force = openmm.CustomGBForce()
    force.addPerParticleParameter("q")
    force.addGlobalParameter("g", 0.7)
    force.addComputedValue("V", "q2*exp(-g*r)/r", force.ParticlePair)
    force.addComputedValue("W", "exp(-V^2)*g+q", force.SingleParticle)
    force.addComputedValue("Z", "W*V+W^2", force.SingleParticle)
    force.addEnergyTerm("W*Z*q" if kind == force.SingleParticle else "W1*V2*V1*W2+Z1*Z2*r", kind)
    for i in range(N_ATOMS):
        force.addParticle([0.3 * i])
    force.addExclusion(2, 3)
    return force


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_values_that_depend_on_values(kind):
    agrees_with_openmm(partial(other_values, kind))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_values_of_few_atoms(n):
    system = system_of(first_atoms(other_values(2), n), n_atoms=n)
    x = structures(0.02, 3)[:, :n].copy()
    energies, forces = reference(system, x)
    energy, gradient = Potential.of(terms_of(system), n).energy_and_gradient(torch.tensor(x))
    np.testing.assert_allclose(energy, energies, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(-gradient, forces, rtol=1e-10, atol=1e-10)


def two_meanings(name: str) -> openmm.Force:
    """A parameter of the particles with the name of something else."""
    force = openmm.CustomGBForce()
    force.addPerParticleParameter(name)
    force.addComputedValue("I", f"{name}1*{name}2*exp(-r)", force.ParticlePairNoExclusions)
    force.addComputedValue("B", "1/(1+I)", force.SingleParticle)
    force.addEnergyTerm(f"{name}*B", force.SingleParticle)
    force.addEnergyTerm("B1*B2", force.ParticlePair)
    for i in range(N_ATOMS):
        force.addParticle([0.1 * i])
    return force


def without_values() -> openmm.Force:
    force = openmm.CustomGBForce()
    force.addEnergyTerm("1/r", force.ParticlePair)
    for _ in range(N_ATOMS):
        force.addParticle([])
    return force


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (off_the_table, "an index of a tabulated function is outside of its table"),
        (of_positions, "expected a variable or a parameter, got 'x'"),
        (confusing_parameter, "expected a variable or a parameter, got 'x'"),
        (partial(two_meanings, "x"), "expected a variable or a parameter, got 'x'"),
        (partial(two_meanings, "B"), "'B1?' is a parameter and a variable"),
        (without_values, "its first computed value alone is not a sum over pairs"),
    ],
)
def test_a_solvent_that_is_not_covered_is_refused_by_class_and_index(make, reason):
    with pytest.raises(UnsupportedForceError, match=f"CustomGBForce .force 1.: .*{reason}"):
        terms_of(system_of(bonds(), make()))


def test_a_solvent_without_energy_leaves_no_term():
    force = openmm.CustomGBForce()
    for _ in range(N_ATOMS):
        force.addParticle([])
    assert terms_of(system_of(force)) == ()


def test_a_solvent_in_other_words_is_the_same():
    """Global parameters, other names, numbers instead of definitions, terms in another order."""
    force = openmm.CustomGBForce()
    for name in ("scaled", "q", "rho"):
        force.addPerParticleParameter(name)
    force.addGlobalParameter("water", 60.0)
    force.addComputedValue(
        "I",
        "select(step(r+scaled2-rho1), 0.5*(1/low-1/high+0.25*(r-scaled2^2/r)*(1/(high^2)-"
        "1/(low^2))+0.5*log(low/high)/r), 0); high=r+scaled2; low=max(rho1, abs(r-scaled2))",
        force.ParticlePairNoExclusions,
    )
    force.addComputedValue("B", "1/(1/rho-tanh(x-.8*x^2+4.85*x^3)/(rho+9e-3));x=I*rho", 0)
    front = "138.935485*(1/2-1/water)"
    force.addEnergyTerm(f"-{front}*q1*q2/f; {F}", force.ParticlePairNoExclusions)
    force.addEnergyTerm("28.3919551*(a+0.14)^2*(a/B)^6; a=rho+0.009", force.SingleParticle)
    force.addEnergyTerm(f"-0.5*{front}*q^2/B", force.SingleParticle)
    known = custom_gb("GBSAOBC2Force")
    for i in range(N_ATOMS):
        q, rho, scaled = known.getParticleParameters(i)
        force.addParticle([scaled, q, rho])
    x = torch.tensor(structures(0.05))
    expected = potential_of(known).energy_and_gradient(x)
    torch.testing.assert_close(potential_of(force).energy_and_gradient(x), expected)


def test_one_ion_in_salt_water_by_hand():
    force = customgbforces.GBSAHCTForce(solventDielectric=80.0, kappa=2.0)
    for i in range(N_ATOMS):
        force.addParticle([1.0 if i == 0 else 0.0, 0.209, 0.0])
    force.finalize()
    (term,) = terms_of(system_of(force))
    x = torch.arange(N_ATOMS).double().reshape(1, -1, 1) * torch.tensor([5.0, 0.0, 0.0])
    expected = -0.5 * 138.935485 * (1 - math.exp(-2.0 * 0.2) / 80.0) / 0.2
    assert term.energy(x.double()).item() == pytest.approx(expected, rel=1e-9)


def tiny_radius() -> openmm.Force:
    force = gbsa_obc()
    force.setParticleParameters(2, 0.1, 0.005, 0.8)
    return force


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (custom, "CustomCentroidBondForce .force 1.: it has no compiled form"),
        (ewald, "NonbondedForce .force 1.: it uses periodic boundary conditions"),
        (gbsa_cutoff, "GBSAOBCForce .force 1.: its nonbonded method is not NoCutoff"),
        (periodic_bonds, "HarmonicBondForce .force 1.: it uses periodic boundary conditions"),
        (tiny_radius, "atom 2 has a radius of 0.005 nm"),
    ],
)
def test_what_is_not_covered_is_refused_by_class_and_index(make, reason):
    with pytest.raises(UnsupportedForceError, match=reason):
        terms_of(system_of(bonds(), make()))


def test_virtual_sites_are_refused():
    system = system_of(bonds())
    system.setParticleMass(5, 0.0)
    system.setVirtualSite(5, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(UnsupportedForceError, match="virtual sites"):
        terms_of(system)


def test_forces_without_energy_leave_no_term():
    system = system_of(openmm.CMMotionRemover(), openmm.HarmonicBondForce())
    assert terms_of(system) == ()
    energy, gradient = Potential.of((), N_ATOMS).energy_and_gradient(torch.ones(2, N_ATOMS, 3))
    assert energy.tolist() == [0.0, 0.0]
    assert not gradient.any()
