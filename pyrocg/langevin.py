"""Langevin dynamics of many replicas at several temperatures at once, and their exchanges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.energies.abstract import Energy

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = [
    "Baoab",
    "Bias",
    "Replicas",
    "TorsionBias",
    "exchange",
    "repartitioned_masses",
    "temperature_ladder",
]

Bias: TypeAlias = Callable[[Tensor], Tensor]
"""A bias potential, from configurations ``(n, *event_shape)`` to ``(n,)`` in kJ/mol."""


@dataclass(frozen=True)
class TorsionBias:
    r"""A bias potential that favours one value of a torsion,

    .. math:: V(x) = -\tfrac{d}{2} (1 + \cos(\phi(x) - \phi_0)).

    Args:
        atoms: the four atoms of :math:`\phi`, 0-based.
        centre: :math:`\phi_0`, rad.
        depth: d, kJ/mol.

    Example:
        >>> import torch
        >>> square = torch.tensor([[[0.0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1]]])
        >>> bias = TorsionBias((0, 1, 2, 3), centre=math.pi / 2, depth=10.0)
        >>> bias(square)
        tensor([-10.])
    """

    atoms: tuple[int, int, int, int]
    centre: float
    depth: float

    def __call__(self, x: Tensor) -> Tensor:
        first, second, third = x[:, self.atoms[1:]].sub(x[:, self.atoms[:3]]).unbind(1)
        normal, other = torch.linalg.cross(first, second), torch.linalg.cross(second, third)
        cosine = (normal * other).sum(-1)
        sine = second.norm(dim=-1) * (first * other).sum(-1)
        turned = cosine * math.cos(self.centre) + sine * math.sin(self.centre)
        return -0.5 * self.depth * (1.0 + turned / (normal.norm(dim=-1) * other.norm(dim=-1)))


@dataclass(frozen=True)
class Replicas:
    """The state of all replicas. Rung k of every ladder is at temperature k.

    Attributes:
        x: positions, shape ``(n_ladders, n_rungs, *event_shape)``.
        v: velocities, of the same shape; nm/ps for molecules.
        force: of energy and bias, of the same shape.
        energy: U, without the bias, shape ``(n_ladders, n_rungs)``.
        bias: the bias potential, of the same shape.
    """

    x: Tensor
    v: Tensor
    force: Tensor
    energy: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Baoab:
    r"""Langevin dynamics by the BAOAB splitting, all replicas as one batch.

    .. math:: \dot x = v, \quad m \dot v = -\nabla(U + V) - \gamma m v
              + \sqrt{2 \gamma m k_B T}\, \dot W

    A step of length h is half a kick (B), half a drift (A), the exact Ornstein-Uhlenbeck process of
    the velocities (O), half a drift and half a kick. Averages over positions are exact for
    harmonic potentials at every stable h; elsewhere the error is of order :math:`h^2`, and
    :math:`h^4` for high friction. With h in ps, masses in amu and energies in kJ/mol, positions
    are in nm (1 kJ/mol = 1 amu nm²/ps²). Source: Leimkuhler and Matthews (2013), "Robust and
    efficient configurational molecular sampling via Langevin dynamics", J. Chem. Phys. 138, 174102.

    Args:
        energy: U, in kJ/mol.
        kt: thermal energy of each rung, shape ``(n_rungs,)``, kJ/mol.
        masses: in amu, to be broadcast with ``event_shape``.
        time_step: h.
        friction: :math:`\gamma`, the inverse of a time.
        bias: the bias potential V.

    Example:
        >>> import torch
        >>> from pyrocg.energies.toy import Harmonic
        >>> one = torch.ones(1)
        >>> dynamics = Baoab(Harmonic(dim=1), kt=one, masses=one, time_step=0.5, friction=1.0)
        >>> generator = torch.Generator().manual_seed(0)
        >>> replicas = dynamics.start(torch.zeros(1000, 1, 1), generator)
        >>> for _ in range(50):
        ...     replicas = dynamics.step(replicas, generator)
        >>> round(replicas.x.square().mean().item(), 1)
        1.0
    """

    energy: Energy
    kt: Tensor
    masses: Tensor
    time_step: float
    friction: float
    bias: Bias | None = None

    def start(self, x: Tensor, generator: torch.Generator) -> Replicas:
        """Draw thermal velocities for positions ``(n_ladders, n_rungs, *event_shape)``."""
        v = self._thermal(x) * _noise(x, generator)
        return Replicas(x, v, *self._evaluate(x))

    def step(self, replicas: Replicas, generator: torch.Generator) -> Replicas:
        """Advance every replica by one time step; one energy call for each."""
        half = 0.5 * self.time_step
        kept = math.exp(-self.friction * self.time_step)
        v = replicas.v + (half / self.masses) * replicas.force
        x = replicas.x + half * v
        noise = _noise(x, generator).mul_(self._thermal(x) * math.sqrt(1.0 - kept * kept))
        v = noise.add_(v, alpha=kept)
        x.add_(v, alpha=half)
        force, energy, bias = self._evaluate(x)
        v.addcmul_(half / self.masses, force)
        return Replicas(x, v, force, energy, bias)

    def _thermal(self, x: Tensor) -> Tensor:
        """Standard deviation of the velocities, to be broadcast with x."""
        kt = self.kt.reshape(-1, *(1 for _ in self.energy.event_shape))
        return (kt / self.masses).sqrt().to(x)

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Force, energy and bias."""
        flat = x.detach().flatten(0, 1).requires_grad_()
        with torch.enable_grad():
            energy = self.energy(flat)
            bias = torch.zeros_like(energy) if self.bias is None else self.bias(flat)
            (gradient,) = torch.autograd.grad((energy + bias).sum(), flat)
        shape = x.shape[:2]
        return (
            -gradient.reshape(x.shape),
            energy.detach().reshape(shape),
            bias.detach().reshape(shape),
        )


def exchange(
    replicas: Replicas, kt: Tensor, odd: bool, generator: torch.Generator
) -> tuple[Replicas, Tensor]:
    r"""Try to exchange the replicas of neighbouring rungs, disjoint pairs of every ladder.

    Rungs i and j = i + 1 are exchanged with probability

    .. math:: \min\big(1, e^{(\beta_i - \beta_j)(W_i - W_j)}\big), \quad W = U + V,

    and velocities are scaled by :math:`\sqrt{T_\mathrm{new} / T_\mathrm{old}}`, so that kinetic
    energies drop out. Source: Sugita and Okamoto (1999), "Replica-exchange molecular dynamics
    method for protein folding", Chem. Phys. Lett. 314, 141.

    Args:
        replicas: the state.
        kt: thermal energy of each rung, shape ``(n_rungs,)``.
        odd: try the pairs (1, 2), (3, 4), ... in place of (0, 1), (2, 3), ...
        generator: of the random numbers.

    Returns:
        The new state, and for every ladder the rung that each rung's replica came from, shape
        ``(n_ladders, n_rungs)``.
    """
    n_ladders, n_rungs = replicas.energy.shape
    lower = torch.arange(int(odd), n_rungs - 1, 2, device=kt.device)
    total, beta = (replicas.energy + replicas.bias).double(), 1.0 / kt.double()
    gain = (beta[lower] - beta[lower + 1]) * (total[:, lower] - total[:, lower + 1])
    uniform = torch.rand(
        n_ladders, len(lower), generator=generator, dtype=torch.float64, device=kt.device
    )
    swapped = (uniform.log() < gain).long()
    source = torch.arange(n_rungs, device=kt.device).repeat(n_ladders, 1)
    source[:, lower] += swapped
    source[:, lower + 1] -= swapped
    scale = (kt / kt[source]).sqrt().reshape(*source.shape, *(1 for _ in replicas.x.shape[2:]))
    ladder = torch.arange(n_ladders, device=kt.device).unsqueeze(1)
    moved = {name: value[ladder, source] for name, value in vars(replicas).items()}
    moved["v"] = moved["v"] * scale.to(moved["v"])
    return replace(replicas, **moved), source


def temperature_ladder(n_rungs: int, hottest: float) -> tuple[float, ...]:
    """Return a geometric ladder of temperatures relative to the target's, from 1 to ``hottest``.

    Args:
        n_rungs: number of temperatures.
        hottest: the highest, over the target's temperature.

    Raises:
        ValueError: fewer than 2 rungs, or ``hottest`` is not above 1.

    Example:
        >>> temperature_ladder(3, 4.0)
        (1.0, 2.0, 4.0)
    """
    if n_rungs < 2 or not 1 < hottest < math.inf:
        raise ValueError(
            f"expected at least 2 rungs and a hottest temperature above 1 times the target's, got "
            f"{n_rungs} and {hottest}; one temperature is the ladder (1.0,)"
        )
    return tuple(hottest ** (k / (n_rungs - 1)) for k in range(n_rungs))


def repartitioned_masses(molecule: Molecule, hydrogen_mass: float = 3.024) -> NDArray[np.float64]:
    """Return masses with hydrogens made heavier at the expense of the atoms they are bonded to.

    The fastest vibrations become slower, so that a longer time step is stable. Masses change the
    dynamics but no average over configurations. Source: Hopkins, Le Grand, Walker and Roitberg
    (2015), "Long-time-step molecular dynamics through hydrogen mass repartitioning".

    Args:
        molecule: whose atoms and bonds.
        hydrogen_mass: of every hydrogen, amu.

    Returns:
        Shape ``(n_atoms,)``, amu, of the same sum as the molecule's.

    Raises:
        ValueError: an atom would become lighter than a hydrogen.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> repartitioned_masses(alanine_dipeptide(), 3.0)[:3].round(2).tolist()
        [3.0, 6.03, 3.0]
    """
    masses = molecule.masses.copy()
    for i, j in molecule.bonds:
        hydrogens = [molecule.symbols[k] == "H" for k in (i, j)]
        if hydrogens.count(True) == 1:
            light, heavy = (i, j) if hydrogens[0] else (j, i)
            masses[heavy] -= hydrogen_mass - masses[light]
            masses[light] = hydrogen_mass
    heavy_atoms = np.array([symbol != "H" for symbol in molecule.symbols])
    if not hydrogen_mass > 0 or (masses[heavy_atoms] < hydrogen_mass).any():
        raise ValueError(
            f"expected a hydrogen mass that leaves every other atom heavier, got {hydrogen_mass} "
            f"amu; at most {_heaviest_hydrogen(molecule):.2f} for {molecule.name}"
        )
    return masses


def _heaviest_hydrogen(molecule: Molecule) -> float:
    """The hydrogen mass at which a hydrogen and its neighbour weigh the same."""
    groups = {i: [molecule.masses[i]] for i, s in enumerate(molecule.symbols) if s != "H"}
    for i, j in molecule.bonds:
        for light, heavy in ((i, j), (j, i)):
            if molecule.symbols[light] == "H" and heavy in groups:
                groups[heavy].append(molecule.masses[light])
    return min(sum(group) / len(group) for group in groups.values())


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
