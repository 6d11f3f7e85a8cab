"""Copies of a molecule in one Context: the forces of one molecule alone, or a refusal."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable

import numpy as np
import openmm
import pytest
import test_custom_forces
import test_terms
import torch
from openmm import app
from test_terms import N_ATOMS, structures, system_of

from pyrocg.energies import copies
from pyrocg.energies import openmm as engine
from pyrocg.energies.compiled import CompiledEnergy, molecular_energy
from pyrocg.energies.copies import CopiesEnergy
from pyrocg.energies.openmm import OpenMMEnergy
from pyrocg.energies.replicas import replicated
from pyrocg.energies.terms import UnsupportedForceError
from pyrocg.molecules import Molecule, alanine_dipeptide, peptide


def centroids() -> openmm.Force:
    """A force without a compiled form."""
    force = openmm.CustomCentroidBondForce(2, "k*(distance(g1,g2)-0.3)^2")
    force.addPerBondParameter("k")
    force.addGroup([0, 1])
    force.addGroup([2, 5], [1.0, 2.0])
    force.addGroup([3])
    force.addBond([0, 1], [300.0])
    force.addBond([2, 0], [-200.0])
    return force


FORCES: dict[str, Callable[[], openmm.Force]] = {
    **test_terms.FORCES,
    **test_custom_forces.FORCES,
    "centroids": centroids,
}


def molecule_of(*forces: openmm.Force) -> Molecule:
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    carbon = app.Element.getBySymbol("C")
    atoms = [topology.addAtom(f"C{i}", carbon, residue) for i in range(N_ATOMS)]
    for bond in itertools.pairwise(atoms):
        topology.addBond(*bond)
    return Molecule("chain", topology, system_of(*forces), structures(0.0, 1)[0])


def forces_alone(molecule: Molecule, x: np.ndarray) -> np.ndarray:
    alone = OpenMMEnergy(molecule, platform="Reference", workers=1)
    return alone.energy_and_forces(x)[1]


def agrees(molecule: Molecule, x: np.ndarray, platform: str, tolerance: float) -> None:
    energy = CopiesEnergy(molecule, platform, copies=5)
    expected = forces_alone(molecule, x)
    error = np.abs(energy.forces(x) - expected).max(axis=(1, 2))
    assert (error <= tolerance * (np.abs(expected).max(axis=(1, 2)) + 1.0)).all()


PLACED = {name for name in FORCES if name.startswith("external") or "x1" in name}


@pytest.mark.parametrize("name", [name for name in FORCES if name not in PLACED])
def test_forces_are_those_of_one_molecule(name):
    x = np.concatenate([structures(spread, 4) for spread in (0.02, 0.1)])
    agrees(molecule_of(FORCES[name]()), x, "Reference", 1e-12)


def of_coordinates() -> openmm.Force:
    return test_terms.of_positions()


def of_many() -> openmm.Force:
    force = openmm.CustomManyParticleForce(3, "distance(p1,p2)*distance(p2,p3)")
    for _ in range(N_ATOMS):
        force.addParticle([], 0)
    return force


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        *((FORCES[name], "it depends on where the molecule is") for name in sorted(PLACED)),
        (of_coordinates, "it depends on where the molecule is"),
        (of_many, "CustomManyParticleForce .force 1.: it cannot be copied"),
        (test_terms.ewald, "NonbondedForce .force 1.: it uses periodic boundary conditions"),
        (test_terms.periodic_bonds, "HarmonicBondForce .force 1.: it uses periodic"),
    ],
)
def test_forces_that_are_not_the_same_on_copies_are_refused(make, reason):
    with pytest.raises(UnsupportedForceError, match=reason):
        replicated(system_of(test_terms.bonds(), make()), 2, 1.0)


def test_virtual_sites_are_refused():
    system = system_of(test_terms.bonds())
    system.setParticleMass(5, 0.0)
    system.setVirtualSite(5, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(UnsupportedForceError, match="virtual sites"):
        replicated(system, 2, 1.0)


@pytest.mark.parametrize("name", ["nonbonded", "offsets", "gbsa_obc", "obc2", "centroids"])
def test_the_cpu_platform_agrees_in_single_precision(name):
    agrees(molecule_of(FORCES[name]()), structures(0.02, 7), "CPU", 1e-4)


@pytest.fixture(scope="module")
def energy() -> CopiesEnergy:
    """Energies by another engine, forces by copies."""
    molecule = alanine_dipeptide()
    whole = CompiledEnergy(molecule, compile=False)
    return CopiesEnergy(molecule, "Reference", copies=6, energies=whole)


def noisy(molecule: Molecule, count: int, spread: float = 0.005) -> torch.Tensor:
    noise = np.random.default_rng(2).standard_normal((count, molecule.n_atoms, 3))
    return torch.tensor(molecule.positions + spread * noise)


@pytest.mark.parametrize("make", [alanine_dipeptide, lambda: peptide("A")], ids=["obc", "gbn2"])
def test_a_molecule_is_that_of_openmm(make):
    molecule = make()
    energy = CopiesEnergy(molecule, "Reference", copies=3)
    x = noisy(molecule, 4)
    expected, forces = OpenMMEnergy(molecule, "Reference", workers=1).energy_and_forces(x.numpy())
    x.requires_grad_()
    energies = energy(x)
    (gradient,) = torch.autograd.grad(energies.sum(), x)
    np.testing.assert_allclose(energies.detach(), expected, rtol=1e-12)
    np.testing.assert_allclose(-gradient, forces, atol=1e-10 * np.abs(forces).max())


def test_the_gradient_is_the_derivative_of_the_energy(energy):
    """Though they come from different engines."""
    x = noisy(alanine_dipeptide(), 8).requires_grad_()
    weights = torch.arange(8.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * energy(x)).sum(), x)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = (energy(x + 1e-5 * direction) - energy(x - 1e-5 * direction)) / 2e-5
    slopes = (gradient * direction).sum((1, 2))
    torch.testing.assert_close(slopes, weights * change, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="first derivatives"):
        torch.autograd.grad(energy(x).sum(), x, create_graph=True)[0].sum().backward()


def test_a_configuration_does_not_see_its_neighbours(energy):
    x = noisy(alanine_dipeptide(), 13).numpy()
    forces = energy.forces(x)
    np.testing.assert_allclose(energy.forces(x[::-1])[::-1], forces, atol=1e-8)
    x[3, 5] = x[3, 9]  # an infinite force
    x[7, 0, 0] = np.nan
    x[8] *= 3.0  # larger than the reach
    others = [k for k in range(13) if k not in (3, 7, 8)]
    after = energy.forces(x)
    np.testing.assert_allclose(after[others], forces[others], atol=1e-8)
    assert np.isnan(after[7]).all()
    alone = forces_alone(alanine_dipeptide(), x[8:9])[0]
    np.testing.assert_allclose(after[8], alone, atol=1e-12 * np.abs(alone).max())


def test_a_copy_of_the_energy_makes_its_own_context(energy):
    x = noisy(alanine_dipeptide(), 2)
    expected = energy.forces(x.numpy())
    for twin in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert twin._context is None
        assert np.array_equal(twin.forces(x.numpy()), expected)
    assert "copies=6" in repr(energy)


def test_wrong_forces_are_refused(monkeypatch):
    def crowded(*arguments):
        xml, spacing = replicated(*arguments)
        return xml, 0.3 * spacing

    monkeypatch.setattr(copies, "replicated", crowded)
    with pytest.raises(RuntimeError, match="expected forces on copies to agree"):
        CopiesEnergy(alanine_dipeptide(), "Reference", copies=8)


@pytest.mark.parametrize("arguments", [{"copies": 0}, {"reach": 0.0}])
def test_unusable_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="copies >= 1 and reach > 0 nm"):
        CopiesEnergy(alanine_dipeptide(), "Reference", **arguments)


def test_copies_can_be_named_and_take_the_compiled_energies_where_there_are_some():
    energy = molecular_energy(alanine_dipeptide(), "copies")
    assert isinstance(energy, CopiesEnergy)
    assert isinstance(energy._energies, CompiledEnergy)
    assert energy.engine_reason == "asked for"
    energy = molecular_energy(molecule_of(centroids()), "copies")
    assert isinstance(energy, CopiesEnergy)
    assert isinstance(energy._energies, OpenMMEnergy)


def test_they_are_chosen_on_a_gpu_only_and_where_they_are_exact(monkeypatch):
    molecule = molecule_of(centroids(), test_terms.nonbonded())
    monkeypatch.setattr(engine, "gpu_platform", lambda: None)
    assert isinstance(molecular_energy(molecule), OpenMMEnergy)
    monkeypatch.setattr(engine, "gpu_platform", lambda: "Reference")
    chosen = molecular_energy(molecule)
    assert isinstance(chosen, CopiesEnergy)
    assert "CustomCentroidBondForce (force 0)" in chosen.engine_reason
    other = molecular_energy(molecule_of(centroids(), of_many()))
    assert isinstance(other, OpenMMEnergy)
    assert "no copies on Reference: expected forces that are the same" in other.engine_reason
