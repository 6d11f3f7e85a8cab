"""Observables of geometry against hand-written formulas and the reference ensemble."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from pyrocg.geometry import (
    basin_populations,
    dihedral,
    distance,
    end_to_end,
    omega,
    phi,
    psi,
    radius_of_gyration,
    standard_observables,
)
from pyrocg.molecules import peptide

DATA = Path(__file__).parent / "data"
# C-N-CA-C, N-CA-C-N and the two CA-C-N-CA of alanine dipeptide, by hand from its atom order.
PHI, PSI, OMEGAS = (4, 6, 8, 14), (6, 8, 14, 16), ((1, 4, 6, 8), (8, 14, 16, 18))


def torsion(x, quad):
    """Dihedrals (n,) in rad, by the projection formula."""
    a, b, c, d = (x[:, i] for i in quad)
    u, v, w = b - a, c - b, d - c
    first, second = np.cross(u, v), np.cross(v, w)
    sine = np.linalg.norm(v, axis=-1) * (u * second).sum(-1)
    return np.arctan2(sine, (first * second).sum(-1))


def angle_error(a, b):
    return np.abs(np.angle(np.exp(1j * (a - b)))).max()


@pytest.fixture(scope="module")
def x(reference):
    return reference


# Angles.


def test_dihedral_of_a_hand_made_structure(ala2):
    chain = np.zeros((3, 22, 3))
    chain[:, 0] = [0.1, 0.0, 0.0]
    chain[:, 2] = [0.0, 0.0, 0.1]
    chain[:, 3] = [[0.1, 0.0, 0.1], [-0.1, 0.0, 0.1], [0.0, 0.1, 0.1]]  # cis, trans, +90 degrees
    observable = dihedral(ala2, (0, 1, 2, 3))
    assert (observable.name, observable.unit) == ("dihedral_0_1_2_3", "rad")
    assert observable.circular
    assert angle_error(observable(chain), np.array([0.0, np.pi, np.pi / 2])) < 1e-6


def test_backbone_torsions_by_the_formula(ala2, x):
    for observable, quad, name in [
        (phi(ala2), PHI, "phi"),
        (psi(ala2), PSI, "psi"),
        (omega(ala2, 0), OMEGAS[0], "omega_ALA2"),
        (omega(ala2, 1), OMEGAS[1], "omega_NME3"),
    ]:
        values = observable(x)
        assert observable.name == name
        assert values.dtype == np.float64
        assert angle_error(values, torsion(x, quad)) < 1e-4


def test_backbone_torsions_are_those_of_the_reference(ala2, x):
    # Means over 184320 samples; 512 structures give them to about 0.03.
    first, second = phi(ala2)(x), psi(ala2)(x)
    assert np.cos(first).mean() == pytest.approx(-0.3286, abs=0.1)
    assert np.sin(first).mean() == pytest.approx(-0.7336, abs=0.1)
    assert np.cos(second).mean() == pytest.approx(-0.5465, abs=0.12)
    assert np.sin(second).mean() == pytest.approx(0.2930, abs=0.12)


def test_torsions_of_a_longer_peptide(tripeptide):
    frame = tripeptide.positions[None]
    names = {(a.residue.index, a.name): a.index for a in tripeptide.topology.atoms()}
    quad = [names[1, "C"], names[2, "N"], names[2, "CA"], names[2, "C"]]
    assert phi(tripeptide, 1).name == "phi_GLY3"
    assert angle_error(phi(tripeptide, 1)(frame), torsion(frame, quad)) < 1e-4
    quad = [names[3, "N"], names[3, "CA"], names[3, "C"], names[4, "N"]]
    assert psi(tripeptide, 2).name == "psi_ALA4"
    assert angle_error(psi(tripeptide, 2)(frame), torsion(frame, quad)) < 1e-4
    assert len({omega(tripeptide, i).name for i in range(4)}) == 4


def test_uncapped_ends_have_no_ramachandran_pair():
    molecule = peptide("AAA", ("amber96.xml", "amber96_obc.xml"), caps=False)
    assert phi(molecule, 0).name == "phi"
    with pytest.raises(ValueError, match="index below 1, the number of residues with phi and psi"):
        phi(molecule, 1)


@pytest.mark.parametrize("factory", [phi, psi, basin_populations])
@pytest.mark.parametrize("residue", [1, -1])
def test_missing_residue(ala2, factory, residue):
    with pytest.raises(ValueError, match=rf"index below 1, .* got {residue}; use dihedral"):
        factory(ala2, residue)


def test_missing_peptide_bond(ala2):
    with pytest.raises(ValueError, match="index below 2, the number of peptide bonds"):
        omega(ala2, 2)


@pytest.mark.parametrize("atoms", [(0, 1, 2), (0, 1, 2, 22), (0, 1, 2, -1), (0, 1, 1, 2)])
def test_bad_atom_indices(ala2, atoms):
    with pytest.raises(ValueError, match="expected 4 different atom indices from 0 to 21, got"):
        dihedral(ala2, atoms)
    with pytest.raises(ValueError, match="expected 2 different atom indices"):
        distance(ala2, atoms)


# Lengths.


def test_distances_by_the_formula(ala2, x):
    expected = np.linalg.norm(x[:, 2] - x[:, 15], axis=-1)
    np.testing.assert_allclose(distance(ala2, (2, 15))(x), expected, rtol=1e-5)
    expected = np.linalg.norm(x[:, 1] - x[:, 18], axis=-1)
    np.testing.assert_allclose(end_to_end(ala2)(x), expected, rtol=1e-5)
    assert distance(ala2, (2, 15)).name == "distance_2_15"


def test_radius_of_gyration_is_the_reference_definition(ala2, x):
    values = radius_of_gyration(ala2)(x)
    centered = x - x.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(values, np.sqrt((centered**2).sum((1, 2)) / 22), rtol=1e-5)
    trajectory = mdtraj.Trajectory(x, ala2.mdtraj_topology)
    np.testing.assert_allclose(values, mdtraj.compute_rg(trajectory), rtol=1e-5)
    # 0.29186 +- 0.00778 nm over 2048 samples; weighting by mass gives 0.24.
    assert abs(values.mean() - 0.29186) < 4 * 0.00778 / np.sqrt(512)
    assert values.std() == pytest.approx(0.00778, rel=0.2)


def test_radius_of_gyration_by_mass(ala2, x):
    weights = ala2.masses / ala2.masses.sum()
    centered = x - np.einsum("a,nad->nd", weights, x)[:, None]
    expected = np.sqrt(np.einsum("a,nad->n", weights, centered**2))
    values = radius_of_gyration(ala2, mass_weighted=True)(x)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


# Populations.


def test_basins_are_a_partition_with_the_reference_populations(ala2, x):
    left, alpha, beta = (basin(x) for basin in basin_populations(ala2))
    np.testing.assert_array_equal(left + alpha + beta, np.ones(512))
    # 0.42, 15.72 and 83.86 % of 184320 samples.
    assert left.mean() == pytest.approx(0.0042, abs=4 * np.sqrt(0.0042 / 512))
    assert alpha.mean() == pytest.approx(0.1572, abs=4 * np.sqrt(0.1572 * 0.8428 / 512))
    first, second = np.degrees(torsion(x, PHI)), np.degrees(torsion(x, PSI))
    inside = (first > 0) & (first < 120)
    np.testing.assert_array_equal(left, inside)
    np.testing.assert_array_equal(alpha, ~inside & (second > -120) & (second < 60))


def test_basin_names(ala2, tripeptide):
    names = [basin.name for basin in basin_populations(ala2)]
    assert names == ["population_left", "population_alpha", "population_beta"]
    assert basin_populations(tripeptide, 2)[0].name == "population_left_ALA4"


# Sets.


def test_standard_observables_of_alanine_dipeptide(ala2, x):
    found = {o.name: o(x) for o in standard_observables(ala2)}
    assert list(found) == [
        *("population_left", "population_alpha", "population_beta"),
        *("radius_of_gyration", "end_to_end", "phi", "psi"),
    ]
    assert all(values.shape == (512,) for values in found.values())


def test_standard_observables_of_a_longer_peptide_have_unique_names(tripeptide):
    observables = standard_observables(tripeptide)
    assert len({o.name for o in observables}) == len(observables) == 3 * 3 + 2 + 3 * 2


def test_standard_observables_without_phi_and_psi(butane, butane_frames):
    observables = standard_observables(butane)
    assert [o.name for o in observables] == [
        *("radius_of_gyration", "end_to_end", "dihedral_0_1_2_3"),
    ]
    values = observables[1](butane_frames)
    expected = np.linalg.norm(butane_frames[:, 0] - butane_frames[:, 3], axis=-1)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def butane():
    """Four united carbons in a row."""
    import openmm
    from openmm import app

    from pyrocg.molecules import Molecule

    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("BUT", topology.addChain())
    carbon = app.element.carbon
    atoms = [topology.addAtom(f"C{i}", carbon, residue) for i in range(4)]
    for i in range(3):
        topology.addBond(atoms[i], atoms[i + 1])
    for _ in atoms:
        system.addParticle(14.0)
    return Molecule("butane", topology, system, np.eye(4, 3))


@pytest.fixture
def butane_frames():
    return np.random.default_rng(0).normal(size=(5, 4, 3))


def test_end_to_end_needs_two_heavy_atoms():
    import openmm
    from openmm import app

    from pyrocg.molecules import Molecule

    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("HOH", topology.addChain())
    oxygen = topology.addAtom("O", app.element.oxygen, residue)
    for i in (1, 2):
        topology.addBond(oxygen, topology.addAtom(f"H{i}", app.element.hydrogen, residue))
    for _ in range(3):
        system.addParticle(1.0)
    water = Molecule("water", topology, system, np.eye(3))
    assert [o.name for o in standard_observables(water)] == ["radius_of_gyration"]
    with pytest.raises(ValueError, match="at least 2 heavy atoms, got 1 in water"):
        end_to_end(water)


# What is refused.


@pytest.mark.parametrize("shape", [(2, 21, 3), (2, 22, 2), (2, 66)])
def test_configurations_of_another_molecule_are_refused(ala2, shape):
    for observable in standard_observables(ala2):
        with pytest.raises(ValueError, match=r"shape \(n, 22, 3\) for alanine-dipeptide, got"):
            observable(np.zeros(shape))
