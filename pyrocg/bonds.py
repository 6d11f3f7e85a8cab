"""Bonds that a molecule turns about, and bonds that it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrocg.graphs import neighbours, ring_size

if TYPE_CHECKING:  # importing OpenMM takes a second and only the type is needed
    from pyrocg.molecules import Molecule

__all__ = ["turns"]

_LARGEST_STIFF_RING = 7  # atoms; larger rings turn about their single bonds
# shorter bonds between flat atoms are double, or nearly (amides, guanidinium); nm
_SINGLE_BOND = {("C", "C"): 0.140, ("C", "N"): 0.1385, ("N", "N"): 0.130}


def turns(molecule: Molecule, i: int, j: int) -> bool:
    """Whether a molecule turns about a bond at ordinary temperatures.

    It does not where both atoms have at most three neighbours and the bond is in a ring of at most
    seven atoms (aromatic rings, double bonds and amides in rings; a ring with a tetrahedral atom
    still turns about that one's bonds), or is as short as a double bond or an amide in the
    reference structure: C-C below 0.14 nm, C-N below 0.1385 nm, N-N below 0.13 nm.

    Args:
        molecule: bonds, symbols and reference positions (nm).
        i: an atom.
        j: another that it is bonded to.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()  # N is 6, CA is 8, and 4 the carbonyl before
        >>> turns(molecule, 6, 8), turns(molecule, 4, 6)
        (True, False)
    """
    adjacent = neighbours(len(molecule.symbols), molecule.bonds)
    if max(len(adjacent[i]), len(adjacent[j])) > 3:
        return True
    size = ring_size(adjacent, i, j)
    if size is not None and size <= _LARGEST_STIFF_RING:
        return False
    first, second = sorted((molecule.symbols[i], molecule.symbols[j]))
    length = float(np.linalg.norm(molecule.positions[i] - molecule.positions[j]))
    return length >= _SINGLE_BOND.get((first, second), 0.0)
