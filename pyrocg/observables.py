"""Observables: functions of configurations whose equilibrium averages are predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

if TYPE_CHECKING:
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
    "standard_observables",
    "window",
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


# Populations.


def population(name: str, predicate: Callable[[Any], Any]) -> Observable:
    """The indicator of a set of configurations; its mean is the probability of the set.

    Args:
        name: key in the results.
        predicate: maps configurations ``(n, *event_shape)`` to ``(n,)`` bool.

    Raises:
        TypeError: when called, the predicate returns no bool.
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


def window(name: str, *ranges: tuple[Observable, float, float]) -> Observable:
    """The population of the configurations whose observables all lie in open intervals.

    Args:
        name: key in the results.
        ranges: one or more of (observable, low, high), in the observable's unit. The interval of an
            angle goes upwards from low to high, also across pi.

    Raises:
        ValueError: there are no ranges, or an interval is empty or more than a turn.

    Example:
        >>> import numpy as np
        >>> angle = Observable("angle", "rad", lambda x: x[:, 0], circular=True)
        >>> window("trans", (angle, 3.0, 3.3))(np.array([[3.1], [-3.1], [0.0]]))
        array([1., 1., 0.])
    """
    for observable, low, high in ranges:
        if not low < high or (observable.circular and high - low > 2 * np.pi):
            raise ValueError(
                f"expected an interval of {observable.name} with low below high, of an angle at "
                f"most a turn, got {low} to {high}"
            )
    if not ranges:
        raise ValueError(f"expected one or more ranges for {name!r}, got none")

    def inside(x: Array) -> Any:
        found = []
        for observable, low, high in ranges:
            above = observable(x) - low
            above = above % (2 * np.pi) if observable.circular else above
            found.append((above > 0) & (above < high - low))
        return np.all(found, axis=0)

    return population(name, inside)


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


def population_above(
    threshold: float, index: int = 0, name: str = "population_right"
) -> Observable:
    """Probability that coordinate ``index`` of a toy system lies above ``threshold``.

    Raises:
        ValueError: when called, configurations without such a coordinate.

    Example:
        >>> import numpy as np
        >>> population_above(0.167)(np.array([[1.0, 0.0], [-2.0, 0.0]]))
        array([1., 0.])
    """
    component = coordinate(index)
    return population(name, lambda x: component(x) > threshold)


# Toy systems, and sets for a whole system.


def coordinate(index: int, name: str | None = None, unit: str = "") -> Observable:
    """Coordinate ``index`` (0-based) of configurations ``(n, dim)``; named x1, x2, ...

    Raises:
        ValueError: when called, configurations without such a coordinate.
    """

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
