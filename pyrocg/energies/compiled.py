"""The energy of an OpenMM System compiled to one batched torch program, checked against OpenMM."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.energies.abstract import Energy, names_of_atoms
from pyrocg.energies.contexts import BatchContext, ContextSetup
from pyrocg.energies.conversion import UnsupportedForceError, terms_of
from pyrocg.energies.program import Program, weighted
from pyrocg.energies.terms import Potential

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = ["CompiledEnergy", "molecular_energy"]

Array: TypeAlias = NDArray[np.float64]

_TOLERANCE = 1e-9
_CHECKED_NOISE = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08)
"""nm; perturbations of the reference structure in the self-check, thermal to overlapping."""


class CompiledEnergy(Energy):
    r"""The potential energy of a molecule's OpenMM System, many configurations at a time.

    Every force of the System becomes a :class:`~pyrocg.energies.terms.Term`; the sum of their
    energies and gradients, both from one pass, is compiled by ``torch.compile`` at the first call
    for each dtype and device (10 to 90 s with an empty cache, which torch keeps on disk). Without
    a working C++ compiler it says so once and runs the same program uncompiled.

    Energies come in kJ/mol of positions ``(..., n_atoms, 3)`` in nm, with the dtype and on the
    device of the positions. Second derivatives are refused. A large batch is evaluated in chunks.

    At construction energies and forces are compared with OpenMM's Reference platform on perturbed
    copies of the molecule's structure.

    Args:
        molecule: what to evaluate; its ``system`` and ``topology`` are read once.
        dtype: precision to compute in, ``torch.float32`` or ``torch.float64``; None takes that of
            the positions (float32 for lower ones).
        compile: whether to compile; without, a call costs 5 to 10 times as much.

    Raises:
        UnsupportedForceError: a force, named by class and index, has no compiled form; use
            :class:`~pyrocg.energies.openmm.OpenMMEnergy`, or let :func:`molecular_energy` choose.
        RuntimeError: the compiled energy disagrees with OpenMM.

    Example:
        >>> import torch
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> energy = CompiledEnergy(molecule, compile=False)
        >>> x = torch.tensor(molecule.positions, requires_grad=True)
        >>> (force,) = torch.autograd.grad(-energy(x), x)
        >>> force.shape, energy.calls
        (torch.Size([22, 3]), 1)
    """

    def __init__(
        self, molecule: Molecule, dtype: torch.dtype | None = None, *, compile: bool = True
    ) -> None:
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"expected dtype float32, float64 or None, got {dtype}")
        super().__init__((molecule.system.getNumParticles(), 3), names_of_atoms(molecule))
        self.dtype = dtype
        self.compile = bool(compile)
        self._potential = Potential.of(terms_of(molecule.system), self.n_atoms)
        self._programs: dict[tuple[torch.dtype, torch.device], Program] = {}
        check_against_reference(self._potential, molecule)

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.event_shape[0]

    def _energy(self, x: Tensor) -> Tensor:
        return _EnergyFunction.apply(x, self._evaluate)

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) and gradients (batch, n_atoms, 3) in the precision computed in."""
        dtype = self.dtype or (x.dtype if x.dtype == torch.float64 else torch.float32)
        key = dtype, x.device
        if key not in self._programs:
            self._programs[key] = Program(self._potential, *key, self.compile)
        return self._programs[key](x)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": {}}  # compiled code does not travel; it is made anew

    def extra_repr(self) -> str:
        terms = ", ".join(type(term).__name__ for term in self._potential.terms)
        return (
            f"n_atoms={self.n_atoms}, terms=({terms}), dtype={self.dtype}, compile={self.compile}"
        )


class _EnergyFunction(torch.autograd.Function):
    """Energies forward, gradients backward, both of one evaluation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        energy, gradient = evaluate(x)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, gradient)
        return energy.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        x, gradient = ctx.saved_tensors
        return _GradientFunction.apply(grad_output, gradient, x), None


class _GradientFunction(torch.autograd.Function):
    """The gradient, as a node of its own so that a second derivative is refused, not zero."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
        return weighted(gradient, grad_output, x.dtype)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "expected first derivatives of a compiled energy, got a request for second ones, which "
            "it does not have; drop create_graph=True or detach the forces"
        )


def check_against_reference(potential: Potential, molecule: Molecule) -> None:
    """Compare a potential with OpenMM's Reference platform on perturbed structures.

    Raises:
        RuntimeError: energies or forces disagree.
    """
    import openmm

    noise = np.random.default_rng(0).standard_normal(
        (len(_CHECKED_NOISE), *molecule.positions.shape)
    )
    x = molecule.positions + np.array(_CHECKED_NOISE)[:, None, None] * noise
    setup = ContextSetup(openmm.XmlSerializer.serialize(molecule.system), "Reference", {})
    expected, forces = BatchContext(setup).evaluate(x, forces=True)
    assert forces is not None
    with torch.no_grad():
        energy, gradient = potential.energy_and_gradient(torch.from_numpy(x))
    worst = _largest_error((energy.numpy(), -gradient.numpy()), (expected, forces))
    if not worst <= _TOLERANCE:
        raise RuntimeError(
            f"expected the compiled energy of {molecule.name} to agree with OpenMM's Reference "
            f"platform to {_TOLERANCE:g}, got a relative difference of {worst:.3g}; use "
            "pyrocg.energies.openmm.OpenMMEnergy for this molecule and report this as a bug"
        )


def _largest_error(found: tuple[Array, Array], expected: tuple[Array, Array]) -> float:
    """Of energies (batch,) and forces (batch, n_atoms, 3), relative, where there are some.

    An expression without a value somewhere has none on either side. Where OpenMM's forces are NaN,
    as those of a torsion of atoms in a line, its energy is one of many.
    """
    (energy, force), (energies, forces) = found, expected
    singular = ~np.isfinite(forces).all(axis=(1, 2))
    defined = (np.isfinite(energies) | np.isfinite(energy)) & ~(singular & np.isnan(energy))
    smooth = np.isfinite(forces) & defined[:, None, None]
    scale = np.abs(np.where(smooth, forces, 0.0)).max(axis=(1, 2))
    with np.errstate(invalid="ignore"):  # infinite on both sides
        of_energy = np.abs(energy - energies) / (np.abs(energies) + 0.1 * scale + 1.0)
        of_force = np.abs(force - forces) / (scale + 1.0)[:, None, None]
    errors = np.concatenate([of_energy[defined], of_force[smooth]])
    return float(errors.max(initial=0.0))


def molecular_energy(molecule: Molecule, engine: str = "auto") -> Energy:
    """Return the energy of a molecule on the fastest engine that covers its System.

    The result says which engine it is by its class, and why in ``engine_reason``.

    Args:
        molecule: what to evaluate.
        engine: ``"compiled"``, ``"openmm"``, ``"copies"``
            (:class:`~pyrocg.energies.copies.CopiesEnergy`), or ``"auto"``: compiled if every force
            of the System has a compiled form, else copies on a GPU where they are exact, else
            OpenMM.

    Raises:
        UnsupportedForceError: an engine was asked for that does not cover a force.
        ValueError: the engine is unknown.
    """
    from pyrocg.energies.copies import CopiesEnergy
    from pyrocg.energies.openmm import OpenMMEnergy, gpu_platform

    if engine == "compiled":
        return _with_reason(CompiledEnergy(molecule), "asked for")
    if engine == "openmm":
        return _with_reason(OpenMMEnergy(molecule), "asked for")
    if engine not in ("auto", "copies"):
        expected = "'auto', 'compiled', 'openmm' or 'copies'"
        raise ValueError(f"expected engine {expected}, got {engine!r}")
    try:
        whole = CompiledEnergy(molecule)
    except UnsupportedForceError as error:
        if engine == "auto":
            return _uncompiled(molecule, str(error))
        return _with_reason(CopiesEnergy(molecule, gpu_platform()), "asked for")
    if engine == "auto":
        return _with_reason(whole, "every force has a compiled form")
    return _with_reason(CopiesEnergy(molecule, gpu_platform(), energies=whole), "asked for")


def _uncompiled(molecule: Molecule, reason: str) -> Energy:
    """Copies on a GPU where there is one and they are exact, else one molecule at a time."""
    from openmm import OpenMMException

    from pyrocg.energies.copies import CopiesEnergy
    from pyrocg.energies.openmm import OpenMMEnergy, gpu_platform

    if platform := gpu_platform():
        try:
            alone = OpenMMEnergy(molecule)
            return _with_reason(CopiesEnergy(molecule, platform, energies=alone), reason)
        except (UnsupportedForceError, RuntimeError, OpenMMException) as error:
            reason = f"{reason}; no copies on {platform}: {error}"
    return _with_reason(OpenMMEnergy(molecule), reason)


def _with_reason(energy: Energy, reason: str) -> Energy:
    energy.engine_reason = reason
    return energy
