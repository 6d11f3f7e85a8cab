"""The peptide backbone of a molecule, found by atom names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrocg.graphs import neighbours

if TYPE_CHECKING:  # importing OpenMM takes a second and only the type is needed
    from pyrocg.molecules import Molecule

__all__ = ["Backbone", "find_backbone"]


@dataclass(frozen=True)
class Backbone:
    """The peptide backbone.

    Attributes:
        atoms: 0-based indices of all its atoms, which lead the torsions.
        residues: N, CA and C of each residue.
        torsions: four atoms of each named torsion, see :func:`find_backbone`.
    """

    atoms: frozenset[int]
    residues: tuple[tuple[int, int, int], ...]
    torsions: dict[str, tuple[int, int, int, int]]


def find_backbone(molecule: Molecule) -> Backbone:
    """Find the peptide backbone by atom names; empty for a molecule without one.

    ``phi_k`` and ``psi_k`` belong to the k-th residue with N, CA and C (caps are not counted),
    ``omega_k`` to the k-th peptide bond; a name that occurs once is also known without its number.

    Args:
        molecule: its topology is read.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> backbone = find_backbone(alanine_dipeptide())
        >>> backbone.residues, backbone.torsions["phi"]
        (((6, 8, 14),), (4, 6, 8, 14))
    """
    atoms = list(molecule.topology.atoms())
    names = [a.name for a in atoms]
    residue = [a.residue.index for a in atoms]
    adjacent = neighbours(len(atoms), molecule.bonds)

    def bonded(atom: int, allowed: Sequence[str], same: bool = True) -> int | None:
        found = [
            b
            for b in adjacent[atom]
            if names[b] in allowed and (residue[b] == residue[atom]) == same
        ]
        return found[0] if found else None

    torsions: dict[str, tuple[int, int, int, int]] = {}
    residues: list[tuple[int, int, int]] = []
    peptide_bonds: list[tuple[int, int]] = []
    for alpha in (i for i, name in enumerate(names) if name == "CA"):
        amine, carbonyl = bonded(alpha, ["N"]), bonded(alpha, ["C"])
        if amine is None or carbonyl is None:
            continue
        residues.append((amine, alpha, carbonyl))
        k = len(residues)
        before, after = bonded(amine, ["C"], same=False), bonded(carbonyl, ["N"], same=False)
        if before is not None:
            torsions[f"phi_{k}"] = (before, amine, alpha, carbonyl)
            peptide_bonds.append((before, amine))
        if after is not None:
            torsions[f"psi_{k}"] = (amine, alpha, carbonyl, after)
            peptide_bonds.append((carbonyl, after))
    for k, (carbonyl, amine) in enumerate(dict.fromkeys(peptide_bonds), start=1):
        left, right = bonded(carbonyl, ["CA", "CH3"]), bonded(amine, ["CA", "CH3", "C"])
        if left is not None and right is not None:
            torsions[f"omega_{k}"] = (left, carbonyl, amine, right)
    for kind in ("phi", "psi", "omega"):
        numbered = [name for name in torsions if name.startswith(f"{kind}_")]
        if len(numbered) == 1:
            torsions[kind] = torsions[numbered[0]]
    members = {a for t in torsions.values() for a in t} | {a for r in residues for a in r}
    return Backbone(frozenset(members), tuple(residues), torsions)
