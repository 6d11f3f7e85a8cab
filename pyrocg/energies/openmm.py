"""The energy of an OpenMM System: whole batches in, energies and forces of one evaluation out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrocg.energies.abstract import Energy, names_of_atoms
from pyrocg.energies.contexts import ContextPool, ContextSetup

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = [
    "GPU_PLATFORMS",
    "OpenMMEnergy",
    "choose_platform",
    "gpu_platform",
    "platform_properties",
]

_INHERITED: list[ContextPool] = []
"""Pools from before a fork: a Context's threads are gone in the child, and freeing it aborts."""

Evaluate = Callable[[np.ndarray, bool], tuple[np.ndarray, "np.ndarray | None"]]

GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")

_REFERENCE_ATOMS = 80
"""Up to here Reference, in double precision, is as fast as any platform that takes one
configuration at a time: with GBSA-OBC on one core 35 us against 116 us (CPU) and 130 us (CUDA,
H100) for 22 atoms, 255 us against 222 us (CPU) for 66, 1010 us against 540 us for 132."""


class OpenMMEnergy(Energy):
    r"""The potential energy of a molecule's OpenMM System, with its forces as gradient.

    Energies come in kJ/mol of positions ``(..., n_atoms, 3)`` in nm, with the dtype and on the
    device of the positions; the Reference platform computes in double precision, the others in
    single. Forces are asked for only where the positions require a gradient, in the same
    evaluation. Second derivatives are refused. A configuration with a NaN position has the energy
    NaN; see :meth:`report`.

    Args:
        molecule: what to evaluate; its ``system`` and ``topology`` are read once.
        platform: name of an OpenMM platform; chosen by :func:`choose_platform` if None.
        workers: how many processes share a batch, this one included; None takes every core on the
            Reference and CPU platforms and one on a GPU. They start with the first large batch and
            end with this process.

    Raises:
        ValueError: the platform is unknown or unusable here, ``workers`` is below 1, or the System
            has virtual sites, whose forces OpenMM moves to other atoms.

    Example:
        >>> import torch
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> energy = OpenMMEnergy(molecule, workers=1)
        >>> x = torch.tensor(molecule.positions, requires_grad=True)
        >>> (force,) = torch.autograd.grad(-energy(x), x)
        >>> force.shape, energy.calls
        (torch.Size([22, 3]), 1)
    """

    def __init__(
        self, molecule: Molecule, platform: str | None = None, workers: int | None = None
    ) -> None:
        import openmm

        system = molecule.system
        n_atoms = system.getNumParticles()
        super().__init__((n_atoms, 3), names_of_atoms(molecule))
        if any(system.isVirtualSite(i) for i in range(n_atoms)):
            raise ValueError("expected a System without virtual sites, got some; use real atoms")
        if workers is not None and workers < 1:
            raise ValueError(f"expected workers >= 1, got {workers}")
        self.platform = choose_platform(system, platform)
        self.workers = _default_workers(self.platform) if workers is None else int(workers)
        self._setup = ContextSetup(
            openmm.XmlSerializer.serialize(system),
            self.platform,
            platform_properties(self.platform),
        )
        self._pool: ContextPool | None = None

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.event_shape[0]

    def _energy(self, x: Tensor) -> Tensor:
        with_forces = torch.is_grad_enabled() and x.requires_grad
        return EnergyFunction.apply(x, self._evaluate, with_forces)

    def energy_and_forces(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return energies ``(...)`` and forces ``(..., n_atoms, 3)`` of positions, without torch.

        Raises:
            ValueError: the trailing dimensions are not ``(n_atoms, 3)``, or the batch is empty.
        """
        positions = torch.tensor(np.asarray(x, dtype=np.float64)).requires_grad_()
        with torch.enable_grad():
            energies = self(positions)
        (gradient,) = torch.autograd.grad(energies.sum(), positions)
        return energies.detach().numpy(), -gradient.numpy()

    def _evaluate(self, x: np.ndarray, forces: bool) -> tuple[np.ndarray, np.ndarray | None]:
        if self._pool is not None and self._pool.owner != os.getpid():
            _INHERITED.append(self._pool)
            self._pool = None
        if self._pool is None:
            self._pool = ContextPool(self._setup, self.workers)
        return self._pool.evaluate(x, forces)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}  # Contexts and processes are made anew

    def extra_repr(self) -> str:
        return f"n_atoms={self.n_atoms}, platform={self.platform!r}, workers={self.workers}"


class EnergyFunction(torch.autograd.Function):
    """Energies forward, forces backward, both of one evaluation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, evaluate: Evaluate, with_forces: bool) -> Tensor:
        positions = x.detach().to("cpu", torch.float64).contiguous().numpy()
        energies, forces = evaluate(positions, with_forces)
        if forces is not None:
            ctx.save_for_backward(x, torch.from_numpy(forces).to(x))
        return torch.from_numpy(energies).to(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        x, forces = ctx.saved_tensors
        return _GradientFunction.apply(grad_output, forces, x), None, None


class _GradientFunction(torch.autograd.Function):
    """The gradient, as a node of its own so that a second derivative is refused, not zero."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, forces: Tensor, x: Tensor) -> Tensor:
        weight = grad_output.reshape(-1, 1, 1)
        # an infinite force times a zero weight is NaN, but a capped energy means 0
        return torch.where(weight == 0, torch.zeros_like(forces), -weight * forces)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "expected first derivatives of an OpenMM energy, got a request for second ones, which "
            "OpenMM does not have; drop create_graph=True or detach the forces"
        )


def choose_platform(system: Any, name: str | None = None) -> str:
    """Return the name of the OpenMM platform to evaluate a System on.

    Small molecules go to Reference, unless a CustomGBForce (of ``implicit/*.xml``), which Reference
    interprets term by term, makes it 7 times slower than CPU; all others go to the first that works
    of CUDA, HIP, OpenCL and CPU. The choice depends on the System alone and on what is installed,
    never on a timing, so that a run can be repeated.

    Raises:
        ValueError: the named platform is not installed, or finds no device.
    """
    import openmm

    platforms = [openmm.Platform.getPlatform(i) for i in range(openmm.Platform.getNumPlatforms())]
    available = [platform.getName() for platform in platforms]
    if name is not None:
        if name not in available:
            raise ValueError(
                f"expected one of the OpenMM platforms {', '.join(available)}, got {name!r}; "
                "choose one of these, or none for the fastest"
            )
        if error := _failure(name):
            raise ValueError(f"expected a usable platform, but {name} fails here: {error}")
        return name
    parsed = any(type(force).__name__.startswith("CustomGB") for force in system.getForces())
    if system.getNumParticles() <= _REFERENCE_ATOMS and not parsed:
        return "Reference"
    return _first_usable(*GPU_PLATFORMS, "CPU") or "Reference"


def gpu_platform() -> str | None:
    """Return the first of OpenMM's GPU platforms that works here, if any."""
    return _first_usable(*GPU_PLATFORMS)


def _first_usable(*names: str) -> str | None:
    import openmm

    count = openmm.Platform.getNumPlatforms()
    available = {openmm.Platform.getPlatform(i).getName() for i in range(count)}
    return next((name for name in names if name in available and not _failure(name)), None)


def _failure(platform: str) -> str:
    """Why a one-particle Context cannot be made on a platform; empty if it can."""
    import openmm

    system = openmm.System()
    system.addParticle(1.0)
    try:
        openmm.Context(
            system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform)
        )
    except openmm.OpenMMException as error:
        return str(error)
    return ""


def _default_workers(platform: str) -> int:
    """All cores, also on the CPU platform, whose own threads gain nothing on small molecules."""
    return _n_cores() if platform in ("Reference", "CPU") and sys.executable else 1


def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def platform_properties(platform: str, precision: str = "mixed") -> dict[str, str]:
    """Return platform properties for reproducible sums, the same for any number of workers.

    Cores are shared out by configuration, not within one, which measures faster up to hundreds of
    atoms: hence one thread.

    Args:
        platform: name of an OpenMM platform.
        precision: of a GPU, ``"single"``, ``"mixed"`` or ``"double"``.
    """
    import openmm

    known = openmm.Platform.getPlatformByName(platform).getPropertyNames()
    wanted = {"DeterministicForces": "true", "Precision": precision, "Threads": "1"}
    return {name: value for name, value in wanted.items() if name in known}
