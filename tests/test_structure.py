"""Structure observables against hand-made structures, hand-written formulas and MDTraj."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from pyrocg.geometry import basin_populations, distance, phi, psi
from pyrocg.molecules import Molecule, peptide
from pyrocg.observables import window
from pyrocg.structure import (
    conformations,
    contact,
    hydrogen_bond,
    hydrogen_bonds,
    j_coupling,
    native_contacts,
    rmsd,
    solvent_accessible_surface,
)

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def x(reference):
    return reference


def frames(molecule, x):
    return mdtraj.Trajectory(x, molecule.mdtraj_topology)


# Conformations


def test_conformations_are_windows_of_phi_and_psi(ala2, x):
    first, second = np.degrees(phi(ala2)(x)), np.degrees(psi(ala2)(x))
    high = np.where(second < 0, second + 360, second)  # so that beta does not cross the cut
    expected = [
        (first > -70) & (first < -50) & (second > -60) & (second < -40),
        (first > -180) & (first < -100) & (high > 105) & (high < 205),
        (first > -100) & (first < -20) & (high > 90) & (high < 210),
    ]
    found = [c(x) for c in conformations(ala2)]
    for values, inside in zip(found, expected, strict=True):
        np.testing.assert_array_equal(values, inside)
        assert values.any()
    assert np.sum(found, axis=0).max() == 1
    _, alpha, beta = (b(x) for b in basin_populations(ala2))
    assert np.all(alpha[found[0] == 1] == 1)
    assert np.all(beta[found[1] + found[2] == 1] == 1)


def test_conformations_of_a_longer_peptide_are_named(tripeptide):
    names = [c.name for r in range(3) for c in conformations(tripeptide, r)]
    assert len(set(names)) == 9
    assert names[0] == "conformation_alpha_ALA2"


# Contacts


def test_contact_is_the_closest_pair_of_heavy_atoms(ala2, x):
    heavy = [i for i, symbol in enumerate(ala2.symbols) if symbol != "H"]
    ace, nme = [i for i in heavy if i < 6], [i for i in heavy if i >= 16]
    pairs = np.linalg.norm(x[:, ace][:, :, None] - x[:, nme][:, None], axis=-1)
    closest = pairs.min((1, 2))
    cutoff = float(np.median(closest)) + 1e-6
    found = contact(ala2, (0, 2), cutoff)
    np.testing.assert_array_equal(found(x), closest < cutoff)
    assert found.name == "contact_0_2"
    atoms = window("near", (distance(ala2, (4, 16)), 0.0, 0.35))
    expected = np.linalg.norm(x[:, 4] - x[:, 16], axis=-1) < 0.35
    np.testing.assert_array_equal(atoms(x), expected)


@pytest.mark.parametrize("residues", [(0, 0), (0, 3), (-1, 0), (0, 1, 2)])
def test_contacts_of_missing_residues_are_refused(ala2, residues):
    with pytest.raises(ValueError, match="expected two different residues from 0 to 2, got"):
        contact(ala2, residues)


def test_native_contacts_by_the_formula(ala2, x):
    heavy = [i for i, symbol in enumerate(ala2.symbols) if symbol != "H"]
    residue = np.repeat([0, 1, 2], [6, 10, 6])
    start = ala2.positions
    pairs = [
        (i, j)
        for i in heavy
        for j in heavy
        if residue[j] - residue[i] >= 2 and np.linalg.norm(start[i] - start[j]) < 0.6
    ]
    i, j = np.array(pairs).T
    r0 = np.linalg.norm(start[i] - start[j], axis=-1)
    r = np.linalg.norm(x[:, i] - x[:, j], axis=-1)
    expected = (1 / (1 + np.exp(50 * (r - 1.8 * r0)))).mean(1)
    found = native_contacts(ala2, cutoff=0.6, min_separation=2)
    np.testing.assert_allclose(found(x), expected, atol=1e-4)
    assert found(start[None])[0] > 0.99
    assert found(10 * start[None])[0] < 1e-6


def test_a_molecule_without_native_contacts(ala2):
    with pytest.raises(ValueError, match=r"expected contacts nearer than 0\.45 nm"):
        native_contacts(ala2)


# Hydrogen bonds


def test_hydrogen_bond_of_a_hand_made_structure(ala2):
    made = np.full((4, 22, 3), 5.0) + 0.2 * np.arange(22)[:, None]
    made[:, 6], made[:, 7] = [0.0, 0.0, 0.0], [0.1, 0.0, 0.0]  # N-H of alanine
    turn = np.deg2rad([0.0, 55.0, 65.0, 0.0])  # D-H...A is 180, 125, 115 and 180 degrees
    length = np.array([0.24, 0.24, 0.24, 0.26])
    made[:, 5] = made[:, 7] + np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1) * length[:, None]
    found = hydrogen_bond(ala2, (6, 7, 5))
    assert found.name == "hydrogen_bond_7_5"
    np.testing.assert_array_equal(found(made), [1, 1, 0, 0])
    with pytest.raises(ValueError, match="expected 3 different atom indices"):
        hydrogen_bond(ala2, (6, 7))


def test_hydrogen_bonds_are_those_of_mdtraj(ala2, x):
    counts = hydrogen_bonds(ala2)(x[:200])
    trajectory = frames(ala2, x[:200])
    expected = [len(mdtraj.baker_hubbard(f, freq=0.0, periodic=False)) for f in trajectory]
    np.testing.assert_array_equal(counts, expected)
    assert counts.max() >= 1


# RMSD, surface, couplings


def test_rmsd_by_the_kabsch_formula(ala2, x):
    heavy = [i for i, symbol in enumerate(ala2.symbols) if symbol != "H"]

    def kabsch(a, b):
        a, b = a - a.mean(0), b - b.mean(0)
        u, s, vt = np.linalg.svd(a.T @ b)
        s[-1] *= np.sign(np.linalg.det(u @ vt))
        return np.sqrt(max(((a**2).sum() + (b**2).sum() - 2 * s.sum()) / len(a), 0.0))

    for atoms, chosen in (("heavy", heavy), ("all", list(range(22))), ([4, 6, 8], [4, 6, 8])):
        expected = [kabsch(frame[chosen], ala2.positions[chosen]) for frame in x[:20]]
        np.testing.assert_allclose(rmsd(ala2, atoms=atoms)(x[:20]), expected, atol=1e-5)
    assert rmsd(ala2, reference=x[3])(x[3:4])[0] == pytest.approx(0.0, abs=1e-4)


def test_rmsd_refuses_bad_atoms_and_references(ala2):
    with pytest.raises(ValueError, match="'heavy', 'all' or indices, got 'light'"):
        rmsd(ala2, atoms="light")
    with pytest.raises(ValueError, match="at least 3 atoms to superpose, got 2"):
        rmsd(ala2, atoms=[0, 1])
    with pytest.raises(ValueError, match=r"\(n, 22, 3\)"):
        rmsd(ala2, reference=np.zeros((21, 3)))


def test_surface_of_spheres_by_hand(ala2):
    """Atoms far apart: 4 pi (r + probe)² each; a residue has its own."""
    far = np.zeros((1, 22, 3))
    far[0, :, 0] = np.arange(22.0)
    radii = {"C": 0.17, "H": 0.12, "N": 0.155, "O": 0.152}
    area = np.array([4 * np.pi * (radii[s] + 0.14) ** 2 for s in ala2.symbols])
    whole, ace = solvent_accessible_surface(ala2), solvent_accessible_surface(ala2, residue=0)
    assert whole(far)[0] == pytest.approx(area.sum(), rel=1e-4)
    assert ace(far)[0] == pytest.approx(area[:6].sum(), rel=1e-4)
    assert (whole.name, ace.name, whole.unit) == ("surface", "surface_ACE1", "nm²")
    assert solvent_accessible_surface(ala2, probe_radius=0.0)(far)[0] < whole(far)[0]
    with pytest.raises(ValueError, match="expected a residue from 0 to 2, got 3"):
        solvent_accessible_surface(ala2, residue=3)


def test_j_coupling_is_the_karplus_curve(ala2, x):
    cosine = np.cos(phi(ala2)(x) - np.pi / 3)
    expected = 8.4 * cosine**2 - 1.36 * cosine + 0.33
    found = j_coupling(ala2)
    np.testing.assert_allclose(found(x), expected, atol=1e-4)
    assert (found.name, found.unit) == ("j_coupling", "Hz")
    expected = 7.9 * cosine**2 - 1.05 * cosine + 0.65
    np.testing.assert_allclose(j_coupling(ala2, model="Ruterjans1999")(x), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected one of Bax2007, .* got 'Bax1842'"):
        j_coupling(ala2, model="Bax1842")


def test_j_coupling_is_that_of_a_residue_that_has_one(ala2):
    proline = peptide("P", ("amber96.xml", "amber96_obc.xml"))
    with pytest.raises(ValueError, match="a hydrogen on N, got PRO2"):
        j_coupling(proline)
    mirror = Molecule.from_openmm(ala2.topology, ala2.system, ala2.positions * [1, 1, -1])
    with pytest.raises(ValueError, match=r"an L residue, got ALA2 .* phi \+ 60 degrees"):
        j_coupling(mirror)


def test_j_coupling_of_each_residue(tripeptide):
    frame = tripeptide.positions[None]
    for r in range(3):
        cosine = np.cos(phi(tripeptide, r)(frame) - np.pi / 3)
        expected = 8.4 * cosine**2 - 1.36 * cosine + 0.33
        assert j_coupling(tripeptide, r)(frame) == pytest.approx(expected, abs=1e-4)
    assert j_coupling(tripeptide, 1).name == "j_coupling_GLY3"
