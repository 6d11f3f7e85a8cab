"""Observables of a molecule's geometry: torsions, distances, size, and basins of torsions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyrocg.atoms import (
    alpha_carbon,
    atom_indices,
    backbone,
    backbones,
    check_position,
    check_shape,
    heavy_atoms,
    heavy_torsions,
    peptide_bonds,
    residue_label,
    trajectory,
)
from pyrocg.observables import Observable, population

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = [
    "basin_populations",
    "dihedral",
    "distance",
    "end_to_end",
    "omega",
    "phi",
    "psi",
    "radius_of_gyration",
    "standard_observables",
]

Array: TypeAlias = NDArray[np.float64]


def dihedral(molecule: Molecule, atoms: Sequence[int], name: str | None = None) -> Observable:
    """Dihedral angle of four atoms, in (-pi, pi] rad, IUPAC sign (trans is pi).

    Args:
        molecule: the molecule.
        atoms: four 0-based indices, in order.
        name: default ``dihedral_i_j_k_l``.

    Raises:
        ValueError: these are not four different atoms of the molecule.
    """
    import mdtraj

    quad = atom_indices(molecule, atoms, 4)
    name = name or "dihedral_" + "_".join(map(str, quad))

    def values(x: Array) -> Array:
        return mdtraj.compute_dihedrals(trajectory(molecule, x), [quad], periodic=False)[:, 0]

    return Observable(name, "rad", values, circular=True)


def phi(molecule: Molecule, residue: int = 0, name: str | None = None) -> Observable:
    """Backbone torsion C-N-CA-C of the ``residue``-th residue that has both phi and psi.

    Raises:
        ValueError: there is no such residue.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> bool(phi(molecule)(molecule.positions[None])[0] < 0)
        True
    """
    found = backbone(molecule, residue)
    return dihedral(molecule, found.phi, name or "phi" + found.suffix)


def psi(molecule: Molecule, residue: int = 0, name: str | None = None) -> Observable:
    """Backbone torsion N-CA-C-N of the ``residue``-th residue that has both phi and psi.

    Raises:
        ValueError: there is no such residue.
    """
    found = backbone(molecule, residue)
    return dihedral(molecule, found.psi, name or "psi" + found.suffix)


def omega(molecule: Molecule, bond: int = 0, name: str | None = None) -> Observable:
    """Torsion CA-C-N-CA of the ``bond``-th peptide bond from the N terminus, caps included.

    Named after the residue that follows the bond, ``omega_ALA2``.

    Raises:
        ValueError: there is no such bond.
    """
    bonds = peptide_bonds(molecule)
    check_position(molecule, bond, len(bonds), "peptide bonds")
    c, n = bonds[bond]
    quad = (alpha_carbon(molecule, c), c, n, alpha_carbon(molecule, n))
    return dihedral(molecule, quad, name or "omega_" + residue_label(molecule, n))


def distance(molecule: Molecule, atoms: Sequence[int], name: str | None = None) -> Observable:
    """Distance of two atoms in nm; ``atoms`` are their 0-based indices.

    Raises:
        ValueError: these are not two different atoms of the molecule.
    """
    import mdtraj

    pair = atom_indices(molecule, atoms, 2)
    name = name or "distance_" + "_".join(map(str, pair))

    def values(x: Array) -> Array:
        return mdtraj.compute_distances(trajectory(molecule, x), [pair], periodic=False)[:, 0]

    return Observable(name, "nm", values)


def end_to_end(molecule: Molecule, name: str = "end_to_end") -> Observable:
    """Distance in nm from the first heavy atom to the last backbone carbon.

    In a capped peptide these are the methyl carbons of ACE and NME; in a molecule whose last
    residue has no atom C or CH3, the first and the last heavy atom.

    Raises:
        ValueError: the molecule has fewer than two heavy atoms.
    """
    heavy = heavy_atoms(molecule)
    if len(heavy) < 2:
        raise ValueError(
            f"expected a molecule with at least 2 heavy atoms, got {len(heavy)} in "
            f"{molecule.name}; use distance(molecule, atoms)"
        )
    last = list(molecule.topology.residues())[-1]
    carbons = {atom.name: atom.index for atom in last.atoms()}
    end = carbons.get("CH3", carbons.get("C", heavy[-1]))
    return distance(molecule, (heavy[0], end if end != heavy[0] else heavy[-1]), name)


def radius_of_gyration(
    molecule: Molecule, mass_weighted: bool = False, name: str = "radius_of_gyration"
) -> Observable:
    r"""Radius of gyration :math:`(\sum_i w_i |x_i - \bar x|^2)^{1/2}` in nm.

    Args:
        molecule: the molecule.
        mass_weighted: weights :math:`w_i` in proportion to the masses, and :math:`\bar x` the
            centre of mass; the default is MDTraj's, equal weights for all atoms, hydrogens
            included. (MDTraj with masses takes them about the unweighted centre.)
        name: key in the results.

    Raises:
        ValueError: when called, configurations of another number of atoms.
    """
    raw = molecule.masses if mass_weighted else np.ones(molecule.n_atoms)
    weights = raw / raw.sum()

    def values(x: Array) -> Array:
        check_shape(molecule, x)
        centered = x - np.einsum("a,nad->nd", weights, x)[:, None]
        return np.sqrt(np.einsum("a,nad,nad->n", weights, centered, centered))

    return Observable(name, "nm", values)


def basin_populations(
    molecule: Molecule, residue: int = 0
) -> tuple[Observable, Observable, Observable]:
    """Populations of the left-handed, alpha and beta basins of one residue.

    ``population_left``: 0 < phi < 120 degrees; ``population_alpha``: not left and
    -120 < psi < 60 degrees; ``population_beta``: the rest. They add up to one.

    Args:
        molecule: a peptide.
        residue: which of the residues that have phi and psi.

    Raises:
        ValueError: there is no such residue.
    """
    first, second = phi(molecule, residue), psi(molecule, residue)
    suffix = backbone(molecule, residue).suffix

    def left(x: Array) -> Any:
        angle = first(x)
        return (angle > 0) & (angle < np.deg2rad(120.0))

    def helical(x: Array) -> Any:
        angle = second(x)
        return (angle > np.deg2rad(-120.0)) & (angle < np.deg2rad(60.0))

    return (
        population("population_left" + suffix, left),
        population("population_alpha" + suffix, lambda x: ~left(x) & helical(x)),
        population("population_beta" + suffix, lambda x: ~left(x) & ~helical(x)),
    )


def standard_observables(molecule: Molecule) -> tuple[Observable, ...]:
    """What is worth predicting for a molecule.

    A peptide: the basin populations, phi and psi of every residue, radius of gyration and
    end-to-end distance. Other molecules: radius of gyration, end-to-end distance and the
    dihedral around every bond between two heavy atoms that have further heavy neighbours.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> [o.name for o in standard_observables(alanine_dipeptide())][:4]
        ['population_left', 'population_alpha', 'population_beta', 'radius_of_gyration']
    """
    residues = range(len(backbones(molecule)))
    basins = [basin for r in residues for basin in basin_populations(molecule, r)]
    size = [radius_of_gyration(molecule)]
    if len(heavy_atoms(molecule)) > 1:
        size.append(end_to_end(molecule))
    if residues:
        torsions = [angle(molecule, r) for r in residues for angle in (phi, psi)]
    else:
        torsions = [dihedral(molecule, quad) for quad in heavy_torsions(molecule)]
    return (*basins, *size, *torsions)
