"""Molecules: the built-in ones, against the reference ensemble."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import openmm
import pytest
from reference_energies import energies

from pyrocg.molecules import alanine_dipeptide, peptide
from pyrocg.peptides import RESIDUES, peptide_structure

DATA = Path(__file__).parent / "data"
AMBER96 = ("amber96.xml", "amber96_obc.xml")


def named(molecule, residue):
    """Positions by atom name of one residue."""
    found = list(molecule.topology.residues())[residue]
    return {atom.name: molecule.positions[atom.index] for atom in found.atoms()}


def handedness(atoms, center, names):
    """Sign of the triple product of three substituents."""
    a, b, c = (atoms[name] - atoms[center] for name in names)
    return np.sign(np.dot(np.cross(a, b), c))


def torsion(a, b, c, d):
    """Dihedral in degrees, by the projection formula."""
    u, v, w = b - a, c - b, d - c
    first, second = np.cross(u, v), np.cross(v, w)
    return np.degrees(np.arctan2(np.linalg.norm(v) * np.dot(u, second), np.dot(first, second)))


def test_import_loads_neither_openmm_nor_mdtraj():
    code = (
        "import sys, pyrocg.molecules, pyrocg.observables; "
        "assert not {'openmm', 'mdtraj'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_alanine_dipeptide_atoms_and_properties(ala2):
    names = "H1 CH3 H2 H3 C O N H CA HA CB HB1 HB2 HB3 C O N H C H1 H2 H3"
    assert " ".join(atom.name for atom in ala2.topology.atoms()) == names
    assert [r.name for r in ala2.topology.residues()] == ["ACE", "ALA", "NME"]
    assert "".join(ala2.symbols) == "HCHHCONHCHCHHHCONHCHHH"
    assert ala2.n_atoms == 22
    assert len(ala2.bonds) == 21
    assert ala2.bonds == tuple(sorted(ala2.bonds))
    assert {(1, 4), (4, 6), (6, 8), (8, 10), (8, 14), (14, 16), (16, 18)} <= set(ala2.bonds)
    total = 6 * 12.011 + 12 * 1.008 + 2 * (14.007 + 15.999)
    assert ala2.masses.sum() == pytest.approx(total, abs=0.01)
    assert ala2.mdtraj_topology.n_atoms == 22
    assert ala2.mdtraj_topology is ala2.mdtraj_topology
    kinds = {type(force).__name__ for force in ala2.system.getForces()}
    assert "GBSAOBCForce" in kinds
    assert ala2.system.getNumConstraints() == 0


def test_alanine_dipeptide_energy_matches_the_reference_ensemble(ala2, reference):
    # 184320 samples at 330 K: mean -81.252, standard deviation 14.969 kJ/mol.
    values = energies(ala2, reference)
    assert abs(values.mean() + 81.252) < 4 * 14.969 / np.sqrt(512)
    assert values.std() == pytest.approx(14.97, rel=0.15)
    assert energies(ala2, [ala2.positions])[0] < values.min()


def test_alanine_dipeptide_is_the_l_form_of_the_reference(ala2, reference):
    index = {a.name: a.index for a in list(ala2.topology.residues())[1].atoms()}
    frames = [{name: x[i] for name, i in index.items()} for x in reference[:20]]
    truth = {handedness(frame, "CA", ("N", "C", "CB")) for frame in frames}
    assert truth == {handedness(named(ala2, 1), "CA", ("N", "C", "CB"))}


def test_alanine_dipeptide_is_deterministic_and_read_only(ala2):
    np.testing.assert_array_equal(alanine_dipeptide().positions, ala2.positions)
    with pytest.raises(ValueError, match="read-only"):
        ala2.positions[0, 0] = 1.0
    with pytest.raises(AttributeError):
        ala2.name = "other"


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"amber96-obc, ff96-obc1, got 'gaff'; .*peptide\('A'"):
        alanine_dipeptide("gaff")


@pytest.mark.parametrize("code", RESIDUES)
def test_every_residue_has_sane_geometry(code, ala2):
    molecule = peptide(code, AMBER96)
    assert_sane(molecule)
    atoms = named(molecule, 1)
    left = handedness(named(ala2, 1), "CA", ("N", "C", "CB"))
    if code != "G":
        assert handedness(atoms, "CA", ("N", "C", "CB")) == left
    if code == "I":  # CB is S: CA > CG1 > CG2
        assert handedness(atoms, "CB", ("CA", "CG1", "CG2")) == left
    if code == "T":  # CB is R: OG1 > CA > CG2
        assert handedness(atoms, "CB", ("OG1", "CA", "CG2")) == -left


@pytest.mark.parametrize(
    ("sequence", "caps"), [("AAA", True), ("AAAA", False), ("GPG", True), ("PW", False)]
)
def test_peptides_from_amber14(sequence, caps):
    molecule = peptide(sequence, caps=caps)
    residues = [residue.name for residue in molecule.topology.residues()]
    expected = [RESIDUES[code] for code in sequence]
    assert residues == (["ACE", *expected, "NME"] if caps else expected)
    assert_sane(molecule)


def assert_sane(molecule):
    """Bonds near equilibrium, trans peptide bonds, no overlap, forces small at the minimum."""
    x = molecule.positions
    (bonds,) = (f for f in molecule.system.getForces() if isinstance(f, openmm.HarmonicBondForce))
    for k in range(bonds.getNumBonds()):
        i, j, length, _ = bonds.getBondParameters(k)
        assert 0.9 < np.linalg.norm(x[i] - x[j]) / length._value < 1.3
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1) + np.eye(len(x))
    assert distances.min() > 0.09
    residues = [named(molecule, r) for r in range(molecule.topology.getNumResidues())]
    for first, second in pairwise(residues):
        alpha = first.get("CA", first.get("CH3"))
        omega = torsion(alpha, first["C"], second["N"], second.get("CA", second["C"]))
        assert abs(omega) > 150
    _, start = peptide_structure(*_recipe(molecule))
    minimum, begin = energies(molecule, [x, start])
    assert -100 < (minimum - begin) / molecule.n_atoms < 0


def _recipe(molecule):
    sequence = molecule.name.removeprefix("peptide-")
    return sequence, molecule.topology.getNumResidues() > len(sequence)


def test_large_peptides_are_minimised_on_one_cpu_thread():
    first, second = peptide("AAAAAA"), peptide("AAAAAA")
    assert first.n_atoms == 72
    np.testing.assert_array_equal(first.positions, second.positions)
    assert_sane(first)


@pytest.mark.parametrize("sequence", ["", "AXA", "aa", "A-A"])
def test_bad_sequences_are_refused(sequence):
    with pytest.raises(ValueError, match=r"one-letter codes ACDEFGHIKLMNPQRSTVWY, got '.*'; write"):
        peptide(sequence)


def test_residue_that_the_force_field_does_not_know():
    with pytest.raises(ValueError, match=r"residue of the peptide A .* residue 0 \(ALA\)"):
        peptide("A", caps=False)
