"""Bonded terms: harmonic bonds and angles, Fourier and Ryckaert-Bellemans torsions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocg.energies.geometry import Bend, Stretch, Twist
from pyrocg.energies.terms import BondedTerm, Vector

__all__ = [
    "Angles",
    "Bonds",
    "HarmonicAngles",
    "HarmonicBonds",
    "PeriodicTorsions",
    "RBTorsions",
    "Torsions",
]


class Bonds(BondedTerm):
    """Functions of a distance."""

    pattern = Stretch.pattern

    @abstractmethod
    def profile(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and derivatives by the distance, (n_bonds, batch) each."""

    def local(self, members: Sequence[Vector]) -> tuple[Tensor, tuple[Vector, ...]]:
        bond = Stretch.of(members)
        energy, slope = self.profile(bond.distance)
        return energy, bond.arms(slope)


@dataclass(frozen=True, eq=False)
class HarmonicBonds(Bonds):
    r"""Bonds, :math:`\tfrac{k}{2} (r - r_0)^2`."""

    atoms: Tensor
    """(n_bonds, 2)"""
    length: Tensor
    """:math:`r_0`, (n_bonds,), nm"""
    stiffness: Tensor
    """:math:`k`, (n_bonds,), kJ/mol/nm^2"""

    def profile(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        stretch = distance - self.length[:, None]
        slope = self.stiffness[:, None] * stretch
        return 0.5 * slope * stretch, slope


class Angles(BondedTerm):
    """Functions of an angle, the second atom at the vertex."""

    pattern = Bend.pattern

    @abstractmethod
    def profile(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and derivatives by the angle, (n_angles, batch) each."""

    def local(self, members: Sequence[Vector]) -> tuple[Tensor, tuple[Vector, ...]]:
        bend = Bend.of(members)
        energy, torque = self.profile(bend.angle)
        return energy, bend.arms(torque)


@dataclass(frozen=True, eq=False)
class HarmonicAngles(Angles):
    r"""Bond angles, :math:`\tfrac{k}{2} (\theta - \theta_0)^2`."""

    atoms: Tensor
    """(n_angles, 3)"""
    angle: Tensor
    r""":math:`\theta_0`, (n_angles,), rad"""
    stiffness: Tensor
    """:math:`k`, (n_angles,), kJ/mol/rad^2"""

    def profile(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        bend = angle - self.angle[:, None]
        torque = self.stiffness[:, None] * bend
        return 0.5 * torque * bend, torque


class Torsions(BondedTerm):
    """Functions of a torsion, through its cosine and sine."""

    pattern = Twist.pattern

    @abstractmethod
    def profile(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and derivatives by the torsion, (n_torsions, batch) each."""

    def local(self, members: Sequence[Vector]) -> tuple[Tensor, tuple[Vector, ...]]:
        twist = Twist.of(members)
        energy, torque = self.profile(twist.cosine, twist.sine)
        return energy, twist.arms(torque)


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
