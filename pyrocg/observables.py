"""Observables: functions of configurations whose equilibrium averages are predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import mdtraj

    from pyrocg.molecules import Molecule

__all__ = [
    "Observable",
    "basin_populations",
    "coordinate",
    "dihedral",
    "distance",
    "double_well_observables",
    "end_to_end",
    "omega",
    "phi",
    "population",
    "population_above",
    "psi",
    "radius_of_gyration",
    "rmsd",
    "standard_observables",
]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Observable:
    """A named function of configurations.

    Args:
        name: key of the observable in every result.
        unit: unit of the values; ``"rad"`` for angles, ``""`` for populations.
        function: maps configurations ``(n, *event_shape)``, in nm for a molecule, to ``(n,)``.
        circular: whether values are angles in rad, equal modulo 2 pi.

    Example:
        >>> import numpy as np
        >>> height = Observable("height", "nm", lambda x: x[:, :, 2].max(axis=1))
        >>> height(np.zeros((2, 5, 3)))
        array([0., 0.])
    """

    name: str
    unit: str
    function: Callable[[Any], Any]
    circular: bool = False

    def __post_init__(self) -> None:
        if not self.name or not callable(self.function):
            raise TypeError(
                "expected a name and a function of configurations, "
                f"got {self.name!r} and {type(self.function).__name__}; "
                "write Observable('name', 'unit', function)"
            )

    def __call__(self, positions: ArrayLike) -> Array:
        """Values ``(n,)``, float64, of configurations ``(n, *event_shape)``.

        Raises:
            TypeError: the configurations are not floating-point numbers.
            ValueError: there are none, or the function does not return one value for each.
        """
        x = np.asarray(positions)
        if not np.issubdtype(x.dtype, np.floating):
            raise TypeError(
                f"expected floating-point configurations, got {x.dtype}; "
                "convert them, for instance with x.astype(float)"
            )
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(
                "expected configurations of shape (n, *event_shape) with n of 1 or more, "
                f"got {x.shape}; pass one configuration as x[None]"
            )
        values = np.asarray(self.function(x), dtype=np.float64)
        if values.shape != (len(x),):
            raise ValueError(
                f"expected observable {self.name!r} to return shape ({len(x)},), "
                f"got {values.shape}; return one number for each configuration"
            )
        return values


# Geometry of molecules, by MDTraj.


def dihedral(molecule: Molecule, atoms: Sequence[int], name: str | None = None) -> Observable:
    """Dihedral angle of four atoms, in (-pi, pi] rad, IUPAC sign (trans is pi).

    Args:
        molecule: the molecule.
        atoms: four 0-based indices, in order.
        name: default ``dihedral_i_j_k_l``.
    """
    import mdtraj

    quad = _indices(molecule, atoms, 4)
    name = name or "dihedral_" + "_".join(map(str, quad))

    def values(x: Array) -> Array:
        return mdtraj.compute_dihedrals(_trajectory(molecule, x), [quad], periodic=False)[:, 0]

    return Observable(name, "rad", values, circular=True)


def phi(molecule: Molecule, residue: int = 0, name: str | None = None) -> Observable:
    """Backbone torsion C-N-CA-C of the ``residue``-th residue that has both phi and psi.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> bool(phi(molecule)(molecule.positions[None])[0] < 0)
        True
    """
    found = _backbone(molecule, residue)
    return dihedral(molecule, found.phi, name or "phi" + found.suffix)


def psi(molecule: Molecule, residue: int = 0, name: str | None = None) -> Observable:
    """Backbone torsion N-CA-C-N of the ``residue``-th residue that has both phi and psi."""
    found = _backbone(molecule, residue)
    return dihedral(molecule, found.psi, name or "psi" + found.suffix)


def omega(molecule: Molecule, bond: int = 0, name: str | None = None) -> Observable:
    """Torsion CA-C-N-CA of the ``bond``-th peptide bond from the N terminus, caps included.

    Named after the residue that follows the bond, ``omega_ALA2``.
    """
    bonds = _peptide_bonds(molecule)
    _check_position(molecule, bond, len(bonds), "peptide bonds")
    c, n = bonds[bond]
    quad = (_alpha_carbon(molecule, c), c, n, _alpha_carbon(molecule, n))
    return dihedral(molecule, quad, name or "omega_" + _residue_label(molecule, n))


def distance(molecule: Molecule, atoms: Sequence[int], name: str | None = None) -> Observable:
    """Distance of two atoms in nm; ``atoms`` are their 0-based indices."""
    import mdtraj

    pair = _indices(molecule, atoms, 2)
    name = name or "distance_" + "_".join(map(str, pair))

    def values(x: Array) -> Array:
        return mdtraj.compute_distances(_trajectory(molecule, x), [pair], periodic=False)[:, 0]

    return Observable(name, "nm", values)


def end_to_end(molecule: Molecule, name: str = "end_to_end") -> Observable:
    """Distance in nm from the first heavy atom to the last backbone carbon.

    In a capped peptide these are the methyl carbons of ACE and NME; in a molecule whose last
    residue has no atom C or CH3, the first and the last heavy atom.

    Raises:
        ValueError: the molecule has fewer than two heavy atoms.
    """
    heavy = _heavy(molecule)
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
    """
    raw = molecule.masses if mass_weighted else np.ones(molecule.n_atoms)
    weights = raw / raw.sum()

    def values(x: Array) -> Array:
        _check_shape(molecule, x)
        centered = x - np.einsum("a,nad->nd", weights, x)[:, None]
        return np.sqrt(np.einsum("a,nad,nad->n", weights, centered, centered))

    return Observable(name, "nm", values)


def rmsd(
    molecule: Molecule,
    reference: ArrayLike | None = None,
    atoms: str | Sequence[int] = "heavy",
    name: str = "rmsd",
) -> Observable:
    """Root-mean-square deviation in nm from a structure, after optimal superposition.

    Args:
        molecule: the molecule.
        reference: shape ``(n_atoms, 3)``, nm; default the molecule's positions.
        atoms: ``"heavy"``, ``"all"``, or at least three 0-based indices.
        name: key in the results.
    """
    import mdtraj

    if isinstance(atoms, str):
        if atoms not in ("heavy", "all"):
            raise ValueError(f"expected atoms to be 'heavy', 'all' or indices, got {atoms!r}")
        chosen = _heavy(molecule) if atoms == "heavy" else list(range(molecule.n_atoms))
    else:
        chosen = list(_indices(molecule, atoms))
    if len(chosen) < 3:
        raise ValueError(f"expected at least 3 atoms to superpose, got {len(chosen)}; choose more")
    start = molecule.positions if reference is None else np.asarray(reference, dtype=np.float64)
    target = _trajectory(molecule, start[None])
    return Observable(
        name, "nm", lambda x: mdtraj.rmsd(_trajectory(molecule, x), target, atom_indices=chosen)
    )


# Populations.


def population(name: str, predicate: Callable[[Any], Any]) -> Observable:
    """The indicator of a set of configurations; its mean is the probability of the set.

    Args:
        name: key in the results.
        predicate: maps configurations ``(n, *event_shape)`` to ``(n,)`` bool.
    """

    def values(x: Array) -> Array:
        inside = np.asarray(predicate(x))
        if inside.dtype != np.bool_:
            raise TypeError(
                f"expected the predicate of {name!r} to return bool, got {inside.dtype}; "
                "compare the value with a threshold"
            )
        return inside.astype(np.float64)

    return Observable(name, "", values)


def basin_populations(
    molecule: Molecule, residue: int = 0
) -> tuple[Observable, Observable, Observable]:
    """Populations of the left-handed, alpha and beta basins of one residue.

    ``population_left``: 0 < phi < 120 degrees; ``population_alpha``: not left and
    -120 < psi < 60 degrees; ``population_beta``: the rest. They add up to one.

    Args:
        molecule: a peptide.
        residue: which of the residues that have phi and psi.
    """
    first, second = phi(molecule, residue), psi(molecule, residue)
    suffix = _backbone(molecule, residue).suffix

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


def population_above(
    threshold: float, index: int = 0, name: str = "population_right"
) -> Observable:
    """Probability that coordinate ``index`` of a toy system lies above ``threshold``.

    Example:
        >>> import numpy as np
        >>> population_above(0.167)(np.array([[1.0, 0.0], [-2.0, 0.0]]))
        array([1., 0.])
    """
    component = coordinate(index)
    return population(name, lambda x: component(x) > threshold)


# Toy systems, and sets for a whole system.


def coordinate(index: int, name: str | None = None, unit: str = "") -> Observable:
    """Coordinate ``index`` (0-based) of configurations ``(n, dim)``; named x1, x2, ..."""

    def values(x: Array) -> Array:
        if x.ndim != 2 or not 0 <= index < x.shape[1]:
            raise ValueError(
                f"expected configurations of shape (n, dim) with dim above {index}, "
                f"got {x.shape}; an index counts from 0"
            )
        return x[:, index]

    return Observable(name or f"x{index + 1}", unit, values)


def double_well_observables(threshold: float = 0.167) -> tuple[Observable, ...]:
    """x1, x2 and P(x1 > threshold), the barrier of the paper's double well."""
    return coordinate(0), coordinate(1), population_above(threshold)


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
    residues = range(len(_backbones(molecule)))
    basins = [basin for r in residues for basin in basin_populations(molecule, r)]
    size = [radius_of_gyration(molecule)]
    if len(_heavy(molecule)) > 1:
        size.append(end_to_end(molecule))
    if residues:
        torsions = [angle(molecule, r) for r in residues for angle in (phi, psi)]
    else:
        torsions = [dihedral(molecule, quad) for quad in _heavy_torsions(molecule)]
    return (*basins, *size, *torsions)


# Where the atoms are.


class _Backbone(NamedTuple):
    phi: tuple[int, int, int, int]
    psi: tuple[int, int, int, int]
    suffix: str
    """Empty in a molecule with one such residue, else ``_ALA2``."""


def _trajectory(molecule: Molecule, x: Array) -> mdtraj.Trajectory:
    import mdtraj

    _check_shape(molecule, x)
    return mdtraj.Trajectory(x, molecule.mdtraj_topology)


def _check_shape(molecule: Molecule, x: Array) -> None:
    if x.shape[1:] != (molecule.n_atoms, 3):
        raise ValueError(
            f"expected configurations of shape (n, {molecule.n_atoms}, 3) for {molecule.name}, "
            f"got {x.shape}; check the number of atoms and the order of dimensions"
        )


def _indices(molecule: Molecule, atoms: Sequence[int], count: int | None = None) -> list[int]:
    found = [int(i) for i in atoms]
    valid = len(set(found)) == len(found) and all(0 <= i < molecule.n_atoms for i in found)
    if not valid or (count is not None and len(found) != count):
        raise ValueError(
            f"expected {count or 'a list of'} different atom indices from 0 to "
            f"{molecule.n_atoms - 1}, got {tuple(atoms)}"
        )
    return found


def _check_position(molecule: Molecule, index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise ValueError(
            f"expected an index below {count}, the number of {what} in {molecule.name}, "
            f"got {index}; use dihedral(molecule, atoms) for other torsions"
        )


def _heavy(molecule: Molecule) -> list[int]:
    return [i for i, symbol in enumerate(molecule.symbols) if symbol != "H"]


def _neighbours(molecule: Molecule) -> list[list[int]]:
    """Heavy neighbours of every atom, in the order of their indices."""
    found: list[list[int]] = [[] for _ in range(molecule.n_atoms)]
    for i, j in molecule.bonds:
        found[i].append(j)
        found[j].append(i)
    heavy = set(_heavy(molecule))
    return [sorted(heavy.intersection(group)) for group in found]


def _heavy_torsions(molecule: Molecule) -> list[tuple[int, int, int, int]]:
    around = _neighbours(molecule)
    heavy = set(_heavy(molecule))
    quads = []
    for b, c in molecule.bonds:
        before = [a for a in around[b] if a != c]
        after = [d for d in around[c] if d != b and d != (before[0] if before else -1)]
        if before and after and {b, c} <= heavy:
            quads.append((before[0], b, c, after[0]))
    return quads


def _peptide_bonds(molecule: Molecule) -> list[tuple[int, int]]:
    """Bonds (C, N) between residues, in the order of the chain."""
    atoms = list(molecule.topology.atoms())
    found = []
    for bond in molecule.bonds:
        names = {atoms[i].name: i for i in bond}
        if set(names) == {"C", "N"} and atoms[bond[0]].residue != atoms[bond[1]].residue:
            found.append((names["C"], names["N"]))
    return sorted(found)


def _alpha_carbon(molecule: Molecule, atom: int) -> int:
    """CA of the residue of a backbone C or N; the methyl carbon of a cap."""
    atoms = list(molecule.topology.atoms())
    near = {atoms[i].name: i for i in _neighbours(molecule)[atom]}
    own = {k: i for k, i in near.items() if atoms[i].residue == atoms[atom].residue}
    carbons = [i for i in own.values() if molecule.symbols[i] == "C"]
    return own.get("CA", carbons[0])


def _residue_label(molecule: Molecule, atom: int) -> str:
    residue = list(molecule.topology.atoms())[atom].residue
    return f"{residue.name}{residue.id}"


def _backbones(molecule: Molecule) -> list[_Backbone]:
    """The torsions of every residue between two peptide bonds."""
    atoms = list(molecule.topology.atoms())
    bonds = _peptide_bonds(molecule)
    leaving = {atoms[c].residue.index: (c, n) for c, n in bonds}
    found = []
    for before, n in bonds:
        residue = atoms[n].residue
        alpha = {atom.name: atom.index for atom in residue.atoms()}.get("CA")
        if alpha is not None and residue.index in leaving:
            c, after = leaving[residue.index]
            label = "_" + _residue_label(molecule, n)
            found.append(_Backbone((before, n, alpha, c), (n, alpha, c, after), label))
    return [found[0]._replace(suffix="")] if len(found) == 1 else found


def _backbone(molecule: Molecule, residue: int) -> _Backbone:
    found = _backbones(molecule)
    _check_position(molecule, residue, len(found), "residues with phi and psi")
    return found[residue]
