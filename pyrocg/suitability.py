"""What a molecule must be, so that a density of all its positions exists; else a clear refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrocg.graphs import distances, neighbours
from pyrocg.units import in_units

if TYPE_CHECKING:  # importing OpenMM takes a second and only the types are needed
    from openmm import System
    from openmm.app import Topology

__all__ = [
    "check_atom_counts",
    "check_connected",
    "check_finite",
    "check_system",
    "positions_in_nm",
]


def positions_in_nm(positions: Any) -> NDArray[np.float64]:
    """Return a copy of positions as an array in nm.

    Args:
        positions: shape ``(n_atoms, 3)``, an OpenMM quantity or numbers in nm.

    Raises:
        ValueError: another shape.

    Example:
        >>> from openmm.unit import angstrom
        >>> positions_in_nm([[1.0, 2.0, 3.0]] * angstrom).round(3).tolist()
        [[0.1, 0.2, 0.3]]
    """
    from openmm import unit

    array = np.array(in_units(positions, unit.nanometer), dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(
            f"expected positions of shape (n_atoms, 3) in nm, got {array.shape}; "
            "pass one structure, an OpenMM quantity or an array"
        )
    return array


def check_atom_counts(topology: Topology, system: System, positions: NDArray[np.float64]) -> None:
    """Refuse parts of different molecules, and a single atom."""
    counts = (topology.getNumAtoms(), system.getNumParticles(), len(positions))
    if len(set(counts)) > 1 or counts[0] < 2:
        raise ValueError(
            "expected the same number of atoms (2 or more) in topology, system and positions, "
            "got {}, {} and {}; take all three from the same molecule".format(*counts)
        )


def check_finite(positions: NDArray[np.float64]) -> None:
    """Refuse NaN and infinite positions."""
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise ValueError(
            f"expected finite positions, got NaN or inf at atoms {_first(bad.tolist())}; "
            "correct the structure file or the array"
        )


def check_system(system: System) -> None:
    """Refuse what makes the energy more, or less, than a function of all positions."""
    n = system.getNumParticles()
    if system.getNumConstraints():
        raise ValueError(
            f"expected a System without constraints, got {system.getNumConstraints()}: on a "
            "constrained surface the density of positions does not exist; create the System with "
            "constraints=None and rigidWater=False"
        )
    if system.usesPeriodicBoundaryConditions():
        raise ValueError(
            "expected an isolated molecule, got a System with periodic boundary conditions: its "
            "energy has images and no bounded coordinates; create it with nonbondedMethod=NoCutoff "
            "and implicit solvent"
        )
    virtual = [i for i in range(n) if system.isVirtualSite(i)]
    fixed = [i for i in range(n) if system.getParticleMass(i)._value == 0 and i not in virtual]
    if virtual or fixed:
        what = "virtual sites" if virtual else "massless (frozen) particles"
        raise ValueError(
            f"expected every particle to move, got {what} at {_first(virtual or fixed)}: they are "
            "no degrees of freedom; use a model without them and give every atom its mass"
        )
    _check_forces(system)


def _check_forces(system: System) -> None:
    for index in range(system.getNumForces()):
        kind = type(system.getForce(index)).__name__
        if kind.startswith(("MonteCarlo", "Andersen", "CMMotion", "RPMD", "DrudeNose")):
            raise ValueError(
                f"expected forces that are energies, got {kind} (force {index}), which belongs to "
                "a simulation; remove it with system.removeForce, temperature is set elsewhere"
            )


def check_connected(topology: Topology) -> None:
    """Refuse several fragments: rigid motion between them is unbounded."""
    atoms = list(topology.atoms())
    bonds = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
    reached = distances(neighbours(len(atoms), bonds), 0)
    apart = [a for a in atoms if a.index not in reached]
    if apart:
        labels = [f"{a.index} ({a.residue.name} {a.name})" for a in apart]
        raise ValueError(
            f"expected one connected molecule, got {len(apart)} atoms not bonded to the first "
            f"fragment: {_first(labels)}; remove solvent and ions, or add missing bonds with "
            "topology.createStandardBonds(), topology.addBond or CONECT records"
        )


def _first(items: Sequence[object], limit: int = 5) -> str:
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
