import math

import numpy as np
import pytest
from small_molecules import cyclopropane, drawn, ethane

from pyrocg.bonds import turns
from pyrocg.molecules import peptide

AMBER96 = ("amber96.xml", "amber96_obc.xml")


def turning(molecule):
    """Pairs of names of the bonds within the second residue, and out of it, that turn."""
    atoms = list(molecule.topology.atoms())
    own = [b for b in molecule.bonds if 1 in {atoms[i].residue.index for i in b}]
    return {frozenset(atoms[i].name for i in b) for b in own if turns(molecule, *b)}


@pytest.mark.parametrize(
    ("code", "still", "free"),
    [
        ("F", ["CG CD1", "CD1 CE1", "CE1 CZ"], ["CA CB", "CB CG"]),
        ("Y", ["CG CD1", "CE1 CZ"], ["CB CG", "CZ OH"]),
        ("W", ["CG CD2", "CD1 NE1", "CE2 CZ2"], ["CA CB", "CB CG"]),
        ("H", ["CG ND1", "ND1 CE1", "CD2 NE2"], ["CB CG"]),
        ("R", ["NE CZ", "CZ NH1", "CZ NH2"], ["CG CD", "CD NE"]),
        ("N", ["CG ND2"], ["CB CG"]),
        ("P", [], ["N CD", "CD CG", "CA CB"]),
    ],
)
def test_side_chains_turn_where_chemistry_says(code, still, free):
    molecule = peptide(code, AMBER96)
    found = turning(molecule)
    assert {frozenset(pair.split()) for pair in free} <= found
    assert found.isdisjoint(frozenset(pair.split()) for pair in still)
    assert frozenset(("C", "N")) not in found
    assert {frozenset(("N", "CA")), frozenset(("CA", "C"))} <= found


@pytest.mark.parametrize(("length", "expected"), [(0.134, False), (0.147, True)])
def test_a_short_bond_between_flat_atoms_is_double(length, expected):
    out = np.array([[math.cos(a), math.sin(a), 0] for a in np.deg2rad([120, -120])])
    positions = np.vstack([[0, 0, 0], 0.108 * out, [length, 0, 0], [length, 0, 0] - 0.108 * out])
    bonds = [(0, 1), (0, 2), (0, 3), (3, 4), (3, 5)]
    assert turns(drawn("ethene", "CHHCHH", bonds, positions), 0, 3) is expected


def test_tetrahedral_atoms_turn_whatever_the_length():
    assert turns(ethane(), 0, 1)
    assert turns(cyclopropane(), 0, 1)
