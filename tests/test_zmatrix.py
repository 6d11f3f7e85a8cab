import dataclasses
from collections import Counter

import numpy as np
import pytest
from small_molecules import MOLECULES, drawn, methanol, star

from pyrocg.backbones import find_backbone
from pyrocg.molecules import alanine_dipeptide, peptide
from pyrocg.zmatrix import build_zmatrix, choose_frame

AMBER96 = ("amber96.xml", "amber96_obc.xml")


@pytest.mark.parametrize("name", MOLECULES)
def test_every_atom_is_placed_once_along_bonds_of_the_molecule(name):
    molecule = MOLECULES[name]()
    zmatrix = build_zmatrix(molecule)
    zero, one, two = zmatrix.frame
    bonds = {frozenset(b) for b in molecule.bonds}
    assert {frozenset((zero, one)), frozenset((one, two))} <= bonds
    placed = [zero, one, two, *(row.atom for row in zmatrix.rows)]
    assert sorted(placed) == list(range(molecule.n_atoms))
    for row in zmatrix.rows:
        assert {
            frozenset((row.atom, row.parent)),
            frozenset((row.parent, row.grandparent)),
        } <= bonds
    assert len(set(zmatrix.names)) == len(zmatrix.names) == 3 * molecule.n_atoms - 6


@pytest.mark.parametrize(
    ("name", "torsions", "rotors"),
    [
        ("water", 0, 0),
        ("peroxide", 1, 0),
        ("methane", 0, 0),
        ("ethane", 0, 1),
        ("methanol", 0, 1),
        ("cyclopropane", 2, 0),
        ("alanine_dipeptide", 4, 3),
    ],
)
def test_torsions_and_rotors(name, torsions, rotors):
    zmatrix = build_zmatrix(MOLECULES[name]())
    assert (len(zmatrix.torsions), len(zmatrix.rotors)) == (torsions, rotors)
    unfolded = build_zmatrix(MOLECULES[name](), fold_rotors=False)
    assert (len(unfolded.torsions), len(unfolded.rotors)) == (torsions + rotors, 0)


def test_alanine_dipeptide_has_seven_torsions_and_twelve_phases():
    molecule = alanine_dipeptide()
    zmatrix = build_zmatrix(molecule)
    names = [a.name for a in molecule.topology.atoms()]
    assert [names[a] for a in zmatrix.frame] == ["N", "CA", "C"]
    kinds = Counter(name.split("_")[0] for name in zmatrix.names)
    assert kinds == {"bond": 21, "angle": 20, "phase": 12, "torsion": 4, "rotor": 3}
    aliases = zmatrix.aliases(find_backbone(molecule))
    assert sorted(aliases) == ["omega_1", "omega_2", "phi", "phi_1", "psi", "psi_1"]
    assert len(set(aliases.values())) == 4


def test_torsions_follow_the_backbone_of_a_longer_peptide():
    molecule = peptide("GFPA", forcefield=AMBER96)
    aliases = build_zmatrix(molecule).aliases(find_backbone(molecule))
    expected = [f"{kind}_{k}" for kind in ("phi", "psi") for k in range(1, 5)]
    expected += [f"omega_{k}" for k in range(1, 6)]
    assert sorted(aliases) == sorted(expected)


def test_the_frame_of_a_peptide_is_the_central_residue():
    molecule = peptide("AGA", forcefield=AMBER96)
    assert choose_frame(molecule) == find_backbone(molecule).residues[1]


def test_the_methyl_of_methanol_is_not_in_the_middle_of_the_frame():
    molecule = methanol()
    assert molecule.symbols[choose_frame(molecule)[1]] == "O"


def test_hydrogens_of_different_isotopes_are_no_rotor():
    molecule = dataclasses.replace(methanol())
    object.__setattr__(molecule, "__dict__", molecule.__dict__ | {"symbols": tuple("CHDHOH")})
    assert not build_zmatrix(molecule).rotors


def test_a_linear_molecule_is_refused():
    line = np.arange(3)[:, None] * np.array([[0.1, 0.0, 0.0]])
    with pytest.raises(ValueError, match="not in line"):
        build_zmatrix(drawn("CO2", "OCO", [(0, 1), (1, 2)], line))


def test_two_atoms_are_refused():
    with pytest.raises(ValueError, match="at least 3 atoms, got 2"):
        build_zmatrix(drawn("H2", "HH", star(1), [[0, 0, 0], [0.1, 0, 0]]))
