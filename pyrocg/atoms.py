"""Where the atoms of a molecule are: peptide bonds, backbone torsions, heavy neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import mdtraj

    from pyrocg.molecules import Molecule

__all__ = [
    "Backbone",
    "alpha_carbon",
    "atom_indices",
    "backbone",
    "backbones",
    "check_position",
    "check_shape",
    "heavy_atoms",
    "heavy_torsions",
    "neighbours",
    "peptide_bonds",
    "residue_label",
    "trajectory",
]

Array: TypeAlias = NDArray[np.float64]


class Backbone(NamedTuple):
    """Atoms of phi and psi of one residue."""

    phi: tuple[int, int, int, int]
    psi: tuple[int, int, int, int]
    suffix: str
    """Empty in a molecule with one such residue, else ``_ALA2``."""


def trajectory(molecule: Molecule, x: Array) -> mdtraj.Trajectory:
    """Configurations ``(n, n_atoms, 3)`` in nm as a trajectory of MDTraj."""
    import mdtraj

    check_shape(molecule, x)
    return mdtraj.Trajectory(x, molecule.mdtraj_topology)


def check_shape(molecule: Molecule, x: Array) -> None:
    """Raise ValueError unless x is configurations ``(n, n_atoms, 3)`` of the molecule."""
    if x.shape[1:] != (molecule.n_atoms, 3):
        raise ValueError(
            f"expected configurations of shape (n, {molecule.n_atoms}, 3) for {molecule.name}, "
            f"got {x.shape}; check the number of atoms and the order of dimensions"
        )


def atom_indices(molecule: Molecule, atoms: Sequence[int], count: int | None = None) -> list[int]:
    """The indices as a list; ValueError unless they are different, in range and so many."""
    found = [int(i) for i in atoms]
    valid = len(set(found)) == len(found) and all(0 <= i < molecule.n_atoms for i in found)
    if not valid or (count is not None and len(found) != count):
        raise ValueError(
            f"expected {count or 'a list of'} different atom indices from 0 to "
            f"{molecule.n_atoms - 1}, got {tuple(atoms)}"
        )
    return found


def check_position(molecule: Molecule, index: int, count: int, what: str) -> None:
    """Raise ValueError unless there are more than ``index`` of something."""
    if not 0 <= index < count:
        raise ValueError(
            f"expected an index below {count}, the number of {what} in {molecule.name}, "
            f"got {index}; use dihedral(molecule, atoms) for other torsions"
        )


def heavy_atoms(molecule: Molecule) -> list[int]:
    """Indices of all atoms but hydrogens."""
    return [i for i, symbol in enumerate(molecule.symbols) if symbol != "H"]


def neighbours(molecule: Molecule) -> list[list[int]]:
    """Heavy neighbours of every atom, in the order of their indices."""
    found: list[list[int]] = [[] for _ in range(molecule.n_atoms)]
    for i, j in molecule.bonds:
        found[i].append(j)
        found[j].append(i)
    heavy = set(heavy_atoms(molecule))
    return [sorted(heavy.intersection(group)) for group in found]


def heavy_torsions(molecule: Molecule) -> list[tuple[int, int, int, int]]:
    """One dihedral around every bond between heavy atoms that have further heavy neighbours."""
    around = neighbours(molecule)
    heavy = set(heavy_atoms(molecule))
    quads = []
    for b, c in molecule.bonds:
        before = [a for a in around[b] if a != c]
        after = [d for d in around[c] if d != b and d != (before[0] if before else -1)]
        if before and after and {b, c} <= heavy:
            quads.append((before[0], b, c, after[0]))
    return quads


def peptide_bonds(molecule: Molecule) -> list[tuple[int, int]]:
    """Bonds (C, N) between residues, in the order of the chain."""
    atoms = list(molecule.topology.atoms())
    found = []
    for bond in molecule.bonds:
        names = {atoms[i].name: i for i in bond}
        if set(names) == {"C", "N"} and atoms[bond[0]].residue != atoms[bond[1]].residue:
            found.append((names["C"], names["N"]))
    return sorted(found)


def alpha_carbon(molecule: Molecule, atom: int) -> int:
    """CA of the residue of a backbone C or N; the methyl carbon of a cap."""
    atoms = list(molecule.topology.atoms())
    near = {atoms[i].name: i for i in neighbours(molecule)[atom]}
    own = {k: i for k, i in near.items() if atoms[i].residue == atoms[atom].residue}
    carbons = [i for i in own.values() if molecule.symbols[i] == "C"]
    return own.get("CA", carbons[0])


def residue_label(molecule: Molecule, atom: int) -> str:
    """Name and number of the residue of an atom, such as ALA2."""
    residue = list(molecule.topology.atoms())[atom].residue
    return f"{residue.name}{residue.id}"


def backbones(molecule: Molecule) -> list[Backbone]:
    """The torsions of every residue between two peptide bonds."""
    atoms = list(molecule.topology.atoms())
    bonds = peptide_bonds(molecule)
    leaving = {atoms[c].residue.index: (c, n) for c, n in bonds}
    found = []
    for before, n in bonds:
        residue = atoms[n].residue
        alpha = {atom.name: atom.index for atom in residue.atoms()}.get("CA")
        if alpha is not None and residue.index in leaving:
            c, after = leaving[residue.index]
            label = "_" + residue_label(molecule, n)
            found.append(Backbone((before, n, alpha, c), (n, alpha, c, after), label))
    return [found[0]._replace(suffix="")] if len(found) == 1 else found


def backbone(molecule: Molecule, residue: int) -> Backbone:
    """Torsions of the ``residue``-th residue that has both; ValueError if there is none."""
    found = backbones(molecule)
    check_position(molecule, residue, len(found), "residues with phi and psi")
    return found[residue]
