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
_TOLERANCE = 1e-2  # kJ/mol, and 1e-6 of the energy: a force may be in single precision


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
    turn = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
    pairs = [(x, x @ turn.T + [3.1, -1.7, 2.3]) for x in _probes(molecule)]
    energies = _energies(molecule, [x for pair in pairs for x in pair]).reshape(-1, 2).T
    if (differ := _differ(*energies)).any():
        change = np.abs(energies[1] - energies[0])[differ].max()
        raise ValueError(
            "expected an energy that does not change when the whole molecule moves, got one that "
            f"changes by {change:.3g} kJ/mol: reduced coordinates leave "
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
    probes = _probes(molecule)
    together = probes
    for group in groups:
        together = [_relabelled(x, group) for x in together]
    n = len(probes)
    energies = _energies(molecule, [*probes, *together])
    if not _differ(energies[:n], energies[n:]).any():
        return []
    images = [_relabelled(x, group) for group in groups for x in probes]
    differ = _differ(energies[:n], _energies(molecule, images).reshape(-1, n)).any(1)
    return [group for group, apart in zip(groups, differ, strict=True) if apart]


def _probes(molecule: Molecule) -> list[Array]:
    """Near the reference, and with atoms three times as far apart: restraints can be flat near."""
    noise = np.random.default_rng(0).standard_normal(molecule.positions.shape)
    near = molecule.positions + _DISPLACEMENT * noise
    return [near, 3.0 * near]


def _relabelled(x: Array, group: Sequence[int]) -> Array:
    image = x.copy()
    image[list(group)] = x[np.roll(group, 1)]
    return image


def _differ(energies: Array, others: Array) -> NDArray[np.bool_]:
    """Which others are not the energies; those that are not finite tell nothing."""
    with np.errstate(invalid="ignore"):
        change = np.abs(others - energies)
    return np.isfinite(change) & (change > _TOLERANCE + 1e-6 * np.abs(energies))


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
