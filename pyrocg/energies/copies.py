"""Whole batches in one launch: an OpenMM Context that holds many copies of a molecule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.energies.abstract import Energy, names_of_atoms
from pyrocg.energies.contexts import ContextSetup
from pyrocg.energies.openmm import (
    GPU_PLATFORMS,
    EnergyFunction,
    OpenMMEnergy,
    choose_platform,
    platform_properties,
)
from pyrocg.energies.replicas import replicated

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = ["CopiesEnergy"]

Array: TypeAlias = NDArray[np.float64]

_CHECKED_NOISE = (0.0, 0.01, 0.03)
"""nm; perturbations of the molecule's structure in the self-check."""
_TOLERANCE = 1e-5
"""Of forces in double precision, relative to the largest."""
_SINGLE_TOLERANCE = 1e-2
"""Of the CPU platform."""


class CopiesEnergy(Energy):
    r"""The potential energy of a molecule, with forces of many copies in one OpenMM Context.

    A GPU takes as long for one small molecule as for a thousand. A Context reports only the total
    energy of its copies, so energies come from another engine, ``energies``. :meth:`forces` needs
    no energies.

    The copies are placed on a grid, farther apart than any two atoms act on each other. A
    configuration larger than ``reach`` is left to the other engine.

    GPUs compute in double precision here, because positions far from the origin need the digits.
    They add forces up as integers, though: components beyond 2e9 kJ/mol/nm, of overlapping atoms,
    are wrong there.
    The CPU platform has only single precision: forces are good to 1e-3 of the largest or so there,
    and copies are slower than one molecule at a time.

    Args:
        molecule: what to evaluate; its ``system`` and ``topology`` are read once.
        platform: name of an OpenMM platform; chosen by
            :func:`~pyrocg.energies.openmm.choose_platform` if None.
        copies: how many configurations are evaluated at once; None takes about 20 000 atoms on a
            GPU and 16 copies elsewhere.
        reach: largest diagonal of a configuration's bounding box, nm; 1.5 times that of the
            molecule's structure if None.
        energies: the other engine; :class:`~pyrocg.energies.openmm.OpenMMEnergy` on the platform
            if None.

    Raises:
        UnsupportedForceError: a force, named by class and index, is not the same on copies.
        RuntimeError: forces on copies disagree with those of OpenMM's Reference platform.
        ValueError: ``copies`` is not positive, ``reach`` is not or is smaller than the molecule's
            structure, or the platform is unusable here.

    Example:
        >>> import torch
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> energy = CopiesEnergy(molecule, "Reference", copies=8)
        >>> energy.forces(torch.tensor(molecule.positions).expand(20, -1, -1).numpy()).shape
        (20, 22, 3)
    """

    def __init__(
        self,
        molecule: Molecule,
        platform: str | None = None,
        copies: int | None = None,
        reach: float | None = None,
        energies: Energy | None = None,
    ) -> None:
        structure = molecule.positions[None]
        super().__init__(structure.shape[1:], names_of_atoms(molecule))
        self.platform = choose_platform(molecule.system, platform)
        self.copies = (
            _default_copies(self.platform, self.n_atoms) if copies is None else int(copies)
        )
        self.reach = 1.5 * float(_diagonals(structure)[0]) if reach is None else float(reach)
        if self.copies < 1 or not self.reach > 0:
            raise ValueError(
                f"expected copies >= 1 and reach > 0 nm, got {self.copies} and {self.reach}"
            )
        if self.reach < (smallest := float(_diagonals(structure)[0])):
            raise ValueError(
                f"expected a reach of at least {smallest:.3g} nm, the size of the molecule's "
                f"structure, got {self.reach:.3g}"
            )
        xml, spacing = replicated(molecule.system, self.copies, self.reach)
        properties = platform_properties(self.platform, precision="double")
        self._setup = ContextSetup(xml, self.platform, properties)
        self._grid = spacing * _grid(self.copies)
        self._context: Any = None
        self._energies = OpenMMEnergy(molecule, platform) if energies is None else energies
        self._spare = _centred(structure)
        self._check(structure, OpenMMEnergy(molecule, "Reference", workers=1))

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.event_shape[0]

    def forces(self, x: Array) -> Array:
        """Forces (batch, n_atoms, 3) in kJ/mol/nm of positions (batch, n_atoms, 3) in nm.

        NaN for a configuration with a NaN or infinite position.
        """
        forces = np.full(x.shape, np.nan)
        finite = np.isfinite(x).all(axis=(1, 2))
        small = finite & (_diagonals(np.where(finite[:, None, None], x, 0.0)) <= self.reach)
        together = np.flatnonzero(small)
        for start in range(0, len(together), self.copies):
            chunk = together[start : start + self.copies]
            forces[chunk] = self._launch(x[chunk])
        if (alone := finite & ~small).any():
            forces[alone] = _forces_of(self._energies, x[alone])
        return forces

    def _launch(self, x: Array) -> Array:
        """Forces of as many configurations as there are copies, or fewer."""
        if self._context is None:
            self._context = _context(self._setup)
        placed = np.repeat(self._spare, self.copies, axis=0)
        placed[: len(x)] = _centred(x)
        placed += self._grid[:, None]
        self._context.setPositions(placed.reshape(-1, 3))
        forces = self._context.getState(forces=True).getForces(asNumpy=True)._value
        return forces.reshape(placed.shape)[: len(x)]

    def _energy(self, x: Tensor) -> Tensor:
        with_forces = torch.is_grad_enabled() and x.requires_grad
        return EnergyFunction.apply(x, self._evaluate, with_forces)

    def _evaluate(self, x: Array, forces: bool) -> tuple[Array, Array | None]:
        with torch.no_grad():
            energies = self._energies(torch.from_numpy(x)).numpy()
        return energies, self.forces(x) if forces else None

    def _check(self, structure: Array, alone: Energy) -> None:
        """Compare every copy with one molecule alone, on perturbed structures."""
        scale = np.array(_CHECKED_NOISE)[:, None, None]
        noise = np.random.default_rng(0).standard_normal((len(scale), *structure.shape[1:]))
        x = structure + scale * noise
        x = x[_diagonals(x) <= self.reach]
        which = np.arange(self.copies) % len(x)
        expected = _forces_of(alone, x)[which]
        error = np.abs(self._launch(x[which]) - expected).max() / (np.abs(expected).max() + 1.0)
        tolerance = _SINGLE_TOLERANCE if self.platform == "CPU" else _TOLERANCE
        if not error <= tolerance:
            raise RuntimeError(
                f"expected forces on copies to agree with those on one molecule to {tolerance:g}, "
                f"got a relative difference of {error:.3g}; use "
                "pyrocg.energies.openmm.OpenMMEnergy for this molecule and report this as a bug"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_context": None}  # it does not travel, and is made anew

    def extra_repr(self) -> str:
        return (
            f"n_atoms={self.n_atoms}, platform={self.platform!r}, copies={self.copies}, "
            f"reach={self.reach:.3g}"
        )


def _default_copies(platform: str, n_atoms: int) -> int:
    return max(16, 20_000 // n_atoms) if platform in GPU_PLATFORMS else 16


def _context(setup: ContextSetup) -> Any:
    import openmm

    system = openmm.XmlSerializer.deserialize(setup.system_xml)
    platform = openmm.Platform.getPlatformByName(setup.platform)
    return openmm.Context(system, openmm.VerletIntegrator(0.001), platform, setup.properties)


def _forces_of(energy: Energy, x: Array) -> Array:
    positions = torch.from_numpy(x).clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(energy(positions).sum(), positions)
    return -gradient.numpy()


def _diagonals(x: Array) -> Array:
    """Of the bounding boxes of configurations, (batch,), nm."""
    return np.linalg.norm(np.ptp(x, axis=1), axis=-1)


def _centred(x: Array) -> Array:
    """Configurations with the middles of their bounding boxes at the origin."""
    return x - 0.5 * (x.min(axis=1, keepdims=True) + x.max(axis=1, keepdims=True))


def _grid(count: int) -> Array:
    """Points of the cubic grid of distance 1 around the origin, (count, 3)."""
    side = int(np.ceil(np.cbrt(count)))
    points = np.indices((side, side, side)).reshape(3, -1).T[:count]
    return points - 0.5 * (side - 1)
