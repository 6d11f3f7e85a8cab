"""Bonded terms: harmonic bonds and angles, Fourier and Ryckaert-Bellemans torsions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocg.energies.terms import BondedTerm, Vector, cross, dot, scale, subtract

__all__ = ["HarmonicAngles", "HarmonicBonds", "PeriodicTorsions", "RBTorsions"]

_SMALLEST_NORMAL = 1e-6
"""nm^2; OpenMM bounds the normal of an angle from below by this, so that straight angles pull
finitely."""


@dataclass(frozen=True, eq=False)
class HarmonicBonds(BondedTerm):
    r"""Bonds, :math:`\tfrac{k}{2} (r - r_0)^2`."""

    pattern = ((0, 0, 1), (1, 0, -1))
    atoms: Tensor
    """(n_bonds, 2)"""
    length: Tensor
    """:math:`r_0`, (n_bonds,), nm"""
    stiffness: Tensor
    """:math:`k`, (n_bonds,), kJ/mol/nm^2"""

    def local(self, members: Sequence[Vector]) -> tuple[Tensor, tuple[Vector, ...]]:
        a, b = members
        bond = subtract(a, b)
        distance = torch.sqrt(dot(bond, bond))
        stretch = distance - self.length[:, None]
        force = self.stiffness[:, None] * stretch
        return 0.5 * force * stretch, (scale(force / distance, bond),)


@dataclass(frozen=True, eq=False)
class HarmonicAngles(BondedTerm):
    r"""Bond angles, :math:`\tfrac{k}{2} (\theta - \theta_0)^2`, the second atom at the vertex."""

    pattern = ((0, 0, 1), (1, 0, -1), (1, 1, -1), (2, 1, 1))
    atoms: Tensor
    """(n_angles, 3)"""
    angle: Tensor
    r""":math:`\theta_0`, (n_angles,), rad"""
    stiffness: Tensor
    """:math:`k`, (n_angles,), kJ/mol/rad^2"""

    def local(self, members: Sequence[Vector]) -> tuple[Tensor, tuple[Vector, ...]]:
        a, vertex, c = members
        u, w = subtract(a, vertex), subtract(c, vertex)
        normal = cross(u, w)
        sine = torch.sqrt(dot(normal, normal))
        # the arc tangent keeps its precision at 0 and pi, where the arc cosine has none
        bend = torch.atan2(sine, dot(u, w)) - self.angle[:, None]
        torque = self.stiffness[:, None] * bend
        per_sine = torque / sine.clamp(min=_SMALLEST_NORMAL)
        arm_a = scale(per_sine / dot(u, u), cross(u, normal))
        arm_c = scale(per_sine / dot(w, w), cross(normal, w))
        return 0.5 * torque * bend, (arm_a, arm_c)


class Torsions(BondedTerm):
    r"""Functions of a torsion, through its cosine and sine: no inverse function, no branch.

    With :math:`f = x_1 - x_2, g = x_2 - x_3, h = x_4 - x_3` the normals are :math:`a = f \times g`
    and :math:`b = h \times g` (Blondel and Karplus, doi:10.1002/(SICI)1096-987X(19960715)17:9).
    """

    pattern = ((0, 0, 1), (1, 0, -1), (1, 2, 1), (2, 2, -1), (2, 1, -1), (3, 1, 1))

    @abstractmethod
    def profile(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and derivatives by the torsion, (n_torsions, batch) each."""

    def local(self, members: Sequence[Vector]) -> tuple[Tensor, tuple[Vector, ...]]:
        first, second, third, fourth = members
        f, g, h = subtract(first, second), subtract(second, third), subtract(fourth, third)
        a, b = cross(f, g), cross(h, g)
        aa, bb, gg = dot(a, a), dot(b, b), dot(g, g)
        axis = torch.sqrt(gg)
        scaled = torch.rsqrt(aa) * torch.rsqrt(bb)
        energy, torque = self.profile(dot(a, b) * scaled, axis * dot(a, h) * scaled)
        pull = torque * axis
        arm_first = scale(-pull / aa, a)
        arm_fourth = scale(pull / bb, b)
        lean_f, lean_h = -dot(f, g) / gg, -dot(h, g) / gg
        shift = tuple(lean_f * p + lean_h * q for p, q in zip(arm_first, arm_fourth, strict=True))
        return energy, (arm_first, arm_fourth, (shift[0], shift[1], shift[2]))


@dataclass(frozen=True, eq=False)
class PeriodicTorsions(Torsions):
    r"""Torsions, :math:`c_0 + \sum_{n \ge 1} (a_n \cos n\phi + b_n \sin n\phi)`.

    A torsion :math:`k (1 + \cos(n\phi - \delta))` has :math:`c_0 = k, a_n = k \cos\delta,
    b_n = k \sin\delta`; all those of the same four atoms are one row.
    """

    atoms: Tensor
    """(n_torsions, 4)"""
    constant: Tensor
    """:math:`c_0`, (n_torsions,), kJ/mol"""
    cosines: Tensor
    """:math:`a_n`, (n_torsions, max_n), kJ/mol"""
    sines: Tensor
    """:math:`b_n`, (n_torsions, max_n), kJ/mol"""

    def profile(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        energy, torque = self.constant[:, None], torch.zeros_like(cosine)
        cosine_n, sine_n = cosine, sine
        for n in range(1, self.cosines.shape[1] + 1):
            a, b = self.cosines[:, n - 1, None], self.sines[:, n - 1, None]
            energy = energy + a * cosine_n + b * sine_n
            torque = torque + n * (b * cosine_n - a * sine_n)
            cosine_n, sine_n = (
                cosine_n * cosine - sine_n * sine,
                sine_n * cosine + cosine_n * sine,
            )
        return energy, torque


@dataclass(frozen=True, eq=False)
class RBTorsions(Torsions):
    r"""Ryckaert-Bellemans torsions, :math:`\sum_{n=0}^{5} c_n (-\cos\phi)^n`."""

    atoms: Tensor
    """(n_torsions, 4)"""
    coefficients: Tensor
    """:math:`c_n`, (n_torsions, 6), kJ/mol"""

    def profile(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        energy = torch.zeros_like(cosine)
        derivative = torch.zeros_like(cosine)
        for c in reversed(self.coefficients.unbind(1)):  # Horner's rule
            derivative = energy - derivative * cosine
            energy = c[:, None] - energy * cosine
        return energy, derivative * sine
