"""Which atom is placed from which: the spanning tree of a molecule's bonds as a Z-matrix."""

from __future__ import annotations

import heapq
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyrocg.backbones import Backbone, find_backbone
from pyrocg.graphs import distances, neighbours

if TYPE_CHECKING:  # importing OpenMM takes a second and only the type is needed
    from pyrocg.molecules import Molecule

__all__ = [
    "Row",
    "ZMatrix",
    "build_zmatrix",
    "choose_frame",
    "handed_neighbour",
    "keeps_sign",
]

HYDROGEN = frozenset({"H", "D", "T"})
# elements whose three-coordinate pyramid does not invert, so that it can be a stereocentre
FIRM_PYRAMIDS = frozenset({"P", "S", "As", "Se", "Te", "Sb", "Si", "Ge"})
MINIMUM_SINE = 0.05  # an angle closer to a line than 3 degrees does not define a torsion


@dataclass(frozen=True)
class Row:
    """One atom, placed by a bond to ``parent``, an angle to ``grandparent`` and a dihedral.

    The dihedral turns about the axis grandparent -> parent and is counted from ``reference``.
    An atom with an earlier sibling (``first``) has a phase to that sibling instead.
    """

    atom: int
    parent: int
    grandparent: int
    reference: int
    first: int | None = None


@dataclass(frozen=True)
class ZMatrix:
    """Rows in the order of the coordinates: torsions, rotors, phases, rotor phases.

    Args:
        frame: atoms 0, 1, 2 of the molecular frame, bonded 0-1-2.
        torsions: first siblings, each with a torsion of its own.
        rotors: first hydrogens of groups with three interchangeable ones.
        phases: further siblings.
        seconds: second hydrogen of each rotor, at a positive phase to the first.
        thirds: third hydrogen of each rotor, at a negative phase.
    """

    frame: tuple[int, int, int]
    torsions: tuple[Row, ...]
    rotors: tuple[Row, ...]
    phases: tuple[Row, ...]
    seconds: tuple[Row, ...]
    thirds: tuple[Row, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All atoms outside the frame."""
        return self.torsions + self.rotors + self.phases + self.seconds + self.thirds

    @property
    def names(self) -> tuple[str, ...]:
        """Names of bonds, angles, phases and torsions, in this order, by atom indices."""
        zero, one, two = self.frame
        names = [f"bond_{one}_{zero}", f"bond_{two}_{one}"]
        names += [f"bond{mode}_{r.atom}_{r.parent}" for mode, r in self._modes]
        names += [f"angle_{two}_{one}_{zero}"]
        names += [f"angle{mode}_{r.atom}_{r.parent}_{r.grandparent}" for mode, r in self._modes]
        for mode, r in self._modes:
            if r.first is not None:
                names.append(f"phase{mode}_{r.atom}_{r.parent}_{r.grandparent}_{r.first}")
        for kind, group in (("torsion", self.torsions), ("rotor", self.rotors)):
            names += [f"{kind}_{r.atom}_{r.parent}_{r.grandparent}_{r.reference}" for r in group]
        return tuple(names)

    @property
    def _modes(self) -> list[tuple[str, Row]]:
        """Rows with a suffix for rotors, whose three hydrogens share a mean and two modes."""
        groups = {
            "": self.torsions,
            "_mean": self.rotors,
            " ": self.phases,
            "_cos": self.seconds,
            "_sin": self.thirds,
        }
        return [(mode.strip(), row) for mode, group in groups.items() for row in group]

    def aliases(self, backbone: Backbone) -> dict[str, str]:
        """Return the coordinate's name for each backbone torsion, such as ``phi``."""
        named = {tuple(name.split("_")[1:]): name for name in self.names}
        aliases = {}
        for alias, atoms in backbone.torsions.items():
            forward = tuple(map(str, atoms))
            for key in (forward, forward[::-1]):
                if named.get(key, "").startswith("torsion"):
                    aliases[alias] = named[key]
        return aliases


def sine(positions: NDArray[np.float64], i: int, j: int, k: int) -> float:
    """Return the sine of the angle i-j-k, 0 for coincident atoms."""
    a, b = positions[i] - positions[j], positions[k] - positions[j]
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.linalg.norm(np.cross(a, b))) / lengths if lengths > 0 else 0.0


def choose_frame(molecule: Molecule) -> tuple[int, int, int]:
    """Choose three bonded atoms, not in line, near the centre of the molecule.

    For a peptide these are N, CA, C of the central residue. Otherwise the middle atom is the most
    central one; the centre of a methyl is avoided, so that its three wells can be folded into one.

    Args:
        molecule: topology, bonds, symbols and reference positions.

    Raises:
        ValueError: there are no such three atoms.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> choose_frame(alanine_dipeptide())
        (6, 8, 14)
    """
    residues = find_backbone(molecule).residues
    if residues:
        return residues[len(residues) // 2]
    positions = np.asarray(molecule.positions, dtype=np.float64)
    adjacent = neighbours(len(positions), molecule.bonds)
    heavy = [s not in HYDROGEN for s in molecule.symbols]
    best: tuple[tuple[float, ...], tuple[int, int, int]] | None = None
    for middle, around in enumerate(adjacent):
        if len(around) < 2:
            continue
        remoteness = sum(distances(adjacent, middle).values())
        hydrogens = sum(not heavy[b] for b in around)
        size = {b: (heavy[b], len(adjacent[b])) for b in around}
        for i in around:
            for k in around:
                if i == k or sine(positions, i, middle, k) < MINIMUM_SINE:
                    continue
                weight = heavy[i] + heavy[middle] + heavy[k]
                key = (weight, hydrogens < 3, -remoteness, size[i] >= size[k], -middle, -i, -k)
                if best is None or key > best[0]:
                    best = (key, (i, middle, k))
    if best is None:
        raise ValueError(
            f"expected three bonded atoms that are not in line, got none in {molecule.name}; "
            "a linear molecule has no internal frame"
        )
    return best[1]


def _spanning_tree(
    molecule: Molecule, adjacent: Sequence[Sequence[int]], frame: tuple[int, int, int]
) -> dict[int, int]:
    """Return the parent of every atom outside the frame, by the shortest path to the frame.

    Bonds between residues other than along the backbone (disulfide bridges) count as long, so
    that the tree follows the backbone and its torsions stay coordinates.
    """
    residue = [a.residue.index for a in molecule.topology.atoms()]
    backbone = find_backbone(molecule).atoms
    parent: dict[int, int] = {}
    done: set[int] = set()
    # the frame's atoms cost nothing; the middle one comes last, so a ring opens opposite to it
    heap = [(0, order, a, -1) for order, a in enumerate(frame)]
    while heap:
        cost, order, atom, source = heapq.heappop(heap)
        if atom in done:
            continue
        done.add(atom)
        if source >= 0:
            parent[atom] = source
        for b in adjacent[atom]:
            if b not in done and b not in frame:
                bridge = residue[b] != residue[atom] and not {atom, b} <= backbone
                heapq.heappush(heap, (cost + 1 + bridge * len(adjacent), order, b, atom))
    return parent


def build_zmatrix(
    molecule: Molecule, fold_rotors: bool = True, labelled: Container[int] = ()
) -> ZMatrix:
    """Build the Z-matrix of a molecule (which is connected) of at least three atoms.

    Siblings (atoms bonded to the same parent, outside the way back to the frame) are ordered:
    backbone first, heavy before hydrogen, larger branch before smaller. The first one has the
    torsion, the others phases to it.

    Args:
        molecule: topology, bonds, symbols and reference positions.
        fold_rotors: give groups with three interchangeable hydrogens the rows of a rotor.
        labelled: hydrogens that are not interchangeable with their siblings.

    Raises:
        ValueError: fewer than three atoms, or no frame because all are in line.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> zmatrix = build_zmatrix(alanine_dipeptide())
        >>> len(zmatrix.torsions), len(zmatrix.rotors), len(zmatrix.phases)
        (4, 3, 6)
    """
    symbols, n_atoms = molecule.symbols, len(molecule.symbols)
    if n_atoms < 3:
        raise ValueError(f"expected at least 3 atoms, got {n_atoms} in {molecule.name}")
    adjacent = neighbours(n_atoms, molecule.bonds)
    frame = choose_frame(molecule)
    parent = _spanning_tree(molecule, adjacent, frame)
    children = _ordered_children(molecule, parent)
    zero, one, two = frame
    above = parent | {zero: one, one: zero, two: one}
    torsions: list[Row] = []
    phases: list[Row] = []
    hydrogens: list[list[Row]] = [[], [], []]
    for p, group in children.items():
        g = above[p]
        if p == one:
            phases += [Row(a, p, g, two, two) for a in group]
            continue
        reference = two if p == zero else above[g]
        first = Row(group[0], p, g, reference)
        others = [Row(a, p, g, reference, group[0]) for a in group[1:]]
        kinds = {symbols[a] for a in group}
        interchangeable = len(kinds) == 1 and kinds <= HYDROGEN
        interchangeable = interchangeable and not any(a in labelled for a in group)
        if fold_rotors and len(group) == 3 and len(adjacent[p]) == 4 and interchangeable:
            if _turns_left(molecule.positions, first, others[0].atom):
                others.reverse()
            for rows, row in zip(hydrogens, [first, *others], strict=True):
                rows.append(row)
        else:
            torsions.append(first)
            phases += others
    rotors, seconds, thirds = map(tuple, hydrogens)
    return ZMatrix(frame, tuple(torsions), rotors, tuple(phases), seconds, thirds)


def _ordered_children(molecule: Molecule, parent: dict[int, int]) -> dict[int, list[int]]:
    """Return the children of every parent, the one that leads the torsion first."""
    symbols, backbone = molecule.symbols, find_backbone(molecule).atoms
    size = [1] * len(symbols)
    for atom in reversed(parent):  # atoms were reached in the order of their distance
        size[parent[atom]] += size[atom]
    children: dict[int, list[int]] = {}
    for atom, p in parent.items():
        children.setdefault(p, []).append(atom)

    def rank(atom: int) -> tuple[bool, bool, int, int]:
        return atom not in backbone, symbols[atom] in HYDROGEN, -size[atom], atom

    return {p: sorted(group, key=rank) for p, group in children.items()}


def keeps_sign(molecule: Molecule, row: Row) -> bool:
    """Whether the phase of a further sibling may not change its sign: the centre is chiral.

    That is so for a centre with four or more neighbours, and for the firm pyramids of the heavier
    elements; a planar centre and the nitrogen of an amine, which inverts, are free.

    Args:
        molecule: bonds and symbols.
        row: of a further sibling.
    """
    count = sum(row.parent in bond for bond in molecule.bonds)
    return count > 3 or molecule.symbols[row.parent] in FIRM_PYRAMIDS


def handed_neighbour(molecule: Molecule, frame: tuple[int, int, int]) -> int | None:
    """Return the heaviest neighbour of the middle atom off the frame, if that atom can be chiral.

    Args:
        molecule: bonds and symbols.
        frame: three atoms; None is returned unless the middle one is bonded to both others.
    """
    adjacent = neighbours(len(molecule.symbols), molecule.bonds)
    around = adjacent[frame[1]]
    if len(around) < 4 or not {frame[0], frame[2]} <= set(around):
        return None
    return max(
        (a for a in around if a not in frame),
        key=lambda a: (molecule.symbols[a] not in HYDROGEN, len(adjacent[a]), -a),
    )


def _turns_left(positions: NDArray[np.float64], first: Row, second: int) -> bool:
    """Whether the second atom is at a negative phase to the first."""
    x = np.asarray(positions, dtype=np.float64)
    axis = x[first.parent] - x[first.grandparent]
    return bool(axis @ np.cross(x[first.atom] - x[first.parent], x[second] - x[first.parent]) < 0)
