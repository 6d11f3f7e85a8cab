"""Symmetries of a molecule's energy that reduced coordinates rely on, checked by OpenMM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # importing OpenMM takes a second and only the type is needed
    from pyrocg.molecules import Molecule

__all__ = ["check_rigid_motion", "told_apart"]

Array: TypeAlias = NDArray[np.float64]

_DISPLACEMENT = 0.003  # nm, from the reference, where symmetric atoms may be in symmetric places
_TOLERANCE = 1e-4  # kJ/mol, and 1e-9 of the energy


def check_rigid_motion(molecule: Molecule) -> None:
    """Refuse a molecule whose energy depends on where it is and how it is turned.

    Args:
        molecule: its System is evaluated on the Reference platform near the reference positions.

    Raises:
        ValueError: the energy changes.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> check_rigid_motion(alanine_dipeptide())
    """
    x = _displaced(molecule)
    turn = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
    energies = _energies(molecule, [x, x @ turn.T + [0.31, -0.17, 0.23]])
    if bool(_differ(energies)[0]):
        raise ValueError(
            "expected an energy that does not change when the whole molecule moves, got one that "
            f"changes by {abs(energies[1] - energies[0]):.3g} kJ/mol: reduced coordinates leave "
            "rigid motion out; remove external fields and restraints to places "
            "(CustomExternalForce), or restrain distances within the molecule"
        )


def told_apart(molecule: Molecule, groups: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return those groups of atoms whose relabelling in a circle changes the energy.

    Args:
        molecule: as for :func:`check_rigid_motion`.
        groups: 0-based indices of atoms, such as the three hydrogens of a methyl.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()  # a methyl, and two of its hydrogens with its carbon
        >>> told_apart(molecule, [(0, 2, 3), (0, 1, 2)])
        [(0, 1, 2)]
    """
    if not groups:
        return []
    x = _displaced(molecule)
    together = x.copy()
    for group in groups:
        together = _relabelled(together, group)
    if not _differ(_energies(molecule, [x, together])).any():
        return []
    images = [_relabelled(x, group) for group in groups]
    differ = _differ(_energies(molecule, [x, *images]))
    return [group for group, apart in zip(groups, differ, strict=True) if apart]


def _displaced(molecule: Molecule) -> Array:
    noise = np.random.default_rng(0).standard_normal(molecule.positions.shape)
    return molecule.positions + _DISPLACEMENT * noise


def _relabelled(x: Array, group: Sequence[int]) -> Array:
    image = x.copy()
    image[list(group)] = x[np.roll(group, 1)]
    return image


def _differ(energies: Array) -> NDArray[np.bool_]:
    """Which energies after the first are not the first; those that are not finite tell nothing."""
    change = np.abs(energies[1:] - energies[0])
    return change > _TOLERANCE + 1e-9 * np.abs(energies[0])


def _energies(molecule: Molecule, configurations: Sequence[Array]) -> Array:
    """Energies in kJ/mol on the Reference platform, in double precision."""
    from openmm import Context, Platform, VerletIntegrator

    platform = Platform.getPlatformByName("Reference")
    context = Context(molecule.system, VerletIntegrator(0.001), platform)
    values = []
    for x in configurations:
        context.setPositions(x)
        values.append(context.getState(energy=True).getPotentialEnergy()._value)
    return np.array(values)
