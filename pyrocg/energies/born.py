"""Implicit solvents of generalised Born kind: HCT, OBC and neck models, with or without salt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrocg.energies.terms import Pairs, PairTerm, Record, by_rows

__all__ = [
    "BornRadii",
    "Descreening",
    "DirectRadii",
    "GeneralizedBorn",
    "NeckDescreening",
    "Polarization",
    "RescaledRadii",
    "SaltPolarization",
    "SphereDescreening",
    "UnburiedDescreening",
    "both_ways",
]

_UNREACHED = 1e3
"""nm; nothing comes as close to an atom as such a radius."""


class Descreening(Record, ABC):
    """How much of the solvent around each atom the others displace."""

    @abstractmethod
    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        r""":math:`H`, 1/nm, and :math:`(\partial H / \partial r) / r` of every pair, by the second
        atom of the first or the other way round, (n_rows, n_atoms, batch)."""


class BornRadii(Record, ABC):
    """Born radii from the descreening of each atom."""

    @abstractmethod
    def inverse(self, descreening: Tensor) -> tuple[Tensor, Tensor]:
        """1/B, 1/nm, and -d(1/B)/d(sum of H), (n_atoms, batch) each."""


@dataclass(frozen=True, eq=False)
class Polarization(Record):
    r"""Charges in water, :math:`W(f) = q / f`."""

    charge: Tensor
    """:math:`q_{ij}`, (n_rows, n_atoms), kJ/mol nm, zero where a row is empty"""
    self_charge: Tensor
    """:math:`q_{ii}`, (n_atoms,), kJ/mol nm"""

    def of_pairs(self, inverse_f: Tensor) -> tuple[Tensor, Tensor]:
        """W and -W'(f)/f, (n_rows, n_atoms, batch) each."""
        energy = self.charge[:, :, None] * inverse_f
        return energy, energy * (inverse_f * inverse_f)

    def of_atoms(self, inverse_born: Tensor) -> tuple[Tensor, Tensor]:
        """W and -W'(f) f, at f = B, (n_atoms, batch) each."""
        energy = self.self_charge[:, None] * inverse_born
        return energy, energy


@dataclass(frozen=True, eq=False)
class SaltPolarization(Polarization):
    r"""Charges in salt water, :math:`W(f) = (q - p e^{-\kappa f}) / f`."""

    salt_charge: Tensor
    """:math:`p_{ij}`, (n_rows, n_atoms), kJ/mol nm, zero where a row is empty"""
    salt_self_charge: Tensor
    """:math:`p_{ii}`, (n_atoms,), kJ/mol nm"""
    kappa: Tensor
    r""":math:`\kappa`, (), 1/nm"""

    def of_pairs(self, inverse_f: Tensor) -> tuple[Tensor, Tensor]:
        salt = self.salt_charge[:, :, None] * torch.exp(-self.kappa / inverse_f)
        energy = (self.charge[:, :, None] - salt) * inverse_f
        return energy, (energy - self.kappa * salt) * (inverse_f * inverse_f)

    def of_atoms(self, inverse_born: Tensor) -> tuple[Tensor, Tensor]:
        salt = self.salt_self_charge[:, None] * torch.exp(-self.kappa / inverse_born)
        energy = (self.self_charge[:, None] - salt) * inverse_born
        return energy, energy - self.kappa * salt


@dataclass(frozen=True, eq=False)
class GeneralizedBorn(PairTerm):
    r"""Generalised Born energy and a surface term.

    .. math::
        U = \sum_{i < j} W_{ij}(f_{ij}) + \sum_i W_{ii}(B_i)
            + \sum_i s_i \left(\frac{R_i}{B_i}\right)^6,
        \qquad f_{ij}^2 = r_{ij}^2 + B_i B_j e^{-r_{ij}^2 / 4 B_i B_j}

    with Born radii :math:`B_i`, a function of :math:`\sum_{j \ne i} H_{ij}(r_{ij})`.
    """

    reaches_all: ClassVar[bool] = True

    descreening: Descreening
    """:math:`H_{ij}`, of the first atom of a pair by the second"""
    reverse: Descreening
    """:math:`H_{ji}`, of the second by the first"""
    radii: BornRadii
    """:math:`B`"""
    polarization: Polarization
    """:math:`W`"""
    radius: Tensor
    """:math:`R_i`, (n_atoms,), nm"""
    surface: Tensor
    r""":math:`s_i`, usually :math:`4 \pi \gamma (R_i + 0.14)^2`, (n_atoms,), kJ/mol"""

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        collect, seconds = pairs.rows.collect, pairs.rows.seconds
        of_first, bend = self.descreening.pairwise(pairs)
        of_second, reverse_bend = self.reverse.pairwise(pairs)
        inverse_born, sensitivity = self.radii.inverse(collect(of_first, of_second))
        born = 1.0 / inverse_born
        other, inverse_other = seconds(born), seconds(inverse_born)
        exponent = (0.25 * pairs.squared) * (inverse_born * inverse_other)
        decay = torch.exp(-exponent)
        inverse_f = torch.rsqrt(pairs.squared + born * other * decay)
        polar, polar_slope = self.polarization.of_pairs(inverse_f)
        by_product = polar_slope * decay * (1.0 + exponent)
        by_radius = collect(by_product * other, by_product * born)
        ratio = self.radius[:, None] * inverse_born
        ratio3 = ratio * ratio * ratio
        surface = self.surface[:, None] * ratio3 * ratio3
        own, own_slope = self.polarization.of_atoms(inverse_born)
        energy = polar.sum(0).sum(0) + (surface + own).sum(0)
        # dU/dB, then dB/d(sum of H), then dH/dr
        chain = -(0.5 * by_radius * born + 6.0 * surface + own_slope) * born * sensitivity
        slope = polar_slope * (0.25 * decay - 1.0) + chain * bend + seconds(chain) * reverse_bend
        return energy, slope


@dataclass(frozen=True, eq=False)
class SphereDescreening(Descreening):
    r"""The integral over a sphere by Hawkins, Cramer and Truhlar, J. Phys. Chem. 100, 19824 (1996).

    Complete for spheres that bury the atom, as in OpenMM's GBSAOBCForce.
    """

    inner: Tensor
    r""":math:`\rho_i` of pair (i, j), (n_rows, n_atoms), nm; where a row is empty, so large that
    nothing reaches there"""
    outer: Tensor
    r""":math:`s_j \rho_j` of pair (i, j), (n_rows, n_atoms), nm"""

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        inner, outer = self.inner[:, :, None], self.outer[:, :, None]
        upper = pairs.distance + outer
        lower = torch.maximum(inner, (pairs.distance - outer).abs())
        both = 1.0 / (upper * lower)
        per_upper, per_lower = lower * both, upper * both
        squares = per_lower * per_lower - per_upper * per_upper
        ratio = outer * outer * (pairs.inverse * pairs.inverse)
        logarithm = 0.5 * torch.log(lower * per_upper) * pairs.inverse
        value = per_lower - per_upper + logarithm
        value = value + 0.25 * pairs.distance * (ratio - 1.0) * squares
        bend = -(0.25 * (1.0 + ratio) * squares + logarithm * pairs.inverse)
        buried = inner < outer - pairs.distance
        value, bend = self._buried(buried, value, bend, per_lower)
        reached = inner < upper
        return torch.where(reached, value, 0.0), torch.where(reached, bend * pairs.inverse, 0.0)

    def _buried(
        self, buried: Tensor, value: Tensor, bend: Tensor, per_lower: Tensor
    ) -> tuple[Tensor, Tensor]:
        """With the part within the atom's own radius; then dH/dr has none from the limits."""
        inside = 2.0 * (1.0 / self.inner[:, :, None] - per_lower)
        return value + torch.where(buried, inside, 0.0), bend


@dataclass(frozen=True, eq=False)
class UnburiedDescreening(SphereDescreening):
    """The same integral without the part of spheres that bury the atom, as in CustomGBForce."""

    def _buried(
        self, buried: Tensor, value: Tensor, bend: Tensor, per_lower: Tensor
    ) -> tuple[Tensor, Tensor]:
        return value, bend + torch.where(buried, 2.0 * per_lower * per_lower, 0.0)


@dataclass(frozen=True, eq=False)
class NeckDescreening(UnburiedDescreening):
    r"""Spheres, and the neck between them that no water fits into (Mongan and others, JCTC 3, 156).

    .. math:: H \mathrel{+}= \frac{m}{1 + a (r - d)^2 + b (r - d)^6} \quad\text{for } r \le c
    """

    depth: Tensor
    """:math:`m`, (n_rows, n_atoms), 1/nm, zero where a row is empty"""
    peak: Tensor
    """:math:`d`, (n_rows, n_atoms), nm"""
    reach: Tensor
    """:math:`c`, (n_rows, n_atoms), nm"""
    square: Tensor
    """:math:`a`, (), 1/nm^2"""
    sixth: Tensor
    """:math:`b`, (), 1/nm^6"""

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        value, bend = super().pairwise(pairs)
        x = pairs.distance - self.peak[:, :, None]
        x2 = x * x
        x4 = self.sixth * (x2 * x2)
        per = 1.0 / (1.0 + x2 * (self.square + x4))
        neck = torch.where(pairs.distance <= self.reach[:, :, None], self.depth[:, :, None], 0.0)
        neck = neck * per
        fall = neck * per * x * (2.0 * self.square + 6.0 * x4)
        return value + neck, bend - fall * pairs.inverse


def both_ways(
    make: Callable[..., Descreening], inner: Tensor, *tables: Tensor
) -> tuple[Descreening, Descreening]:
    """Descreening of first atoms by second ones, and the reverse.

    Args:
        make: makes either of ``inner`` and ``tables`` in rows.
        inner: see :class:`SphereDescreening`, of ordered pairs, (n_atoms, n_atoms), nm.
        tables: other parameters of ordered pairs, (n_atoms, n_atoms).
    """
    first, reverse = (
        make(by_rows(own, _UNREACHED), *map(by_rows, others))
        for own, others in ((inner, tables), (inner.T, [table.T for table in tables]))
    )
    return first, reverse


@dataclass(frozen=True, eq=False)
class DirectRadii(BornRadii):
    r""":math:`1/B = 1/\rho - \tfrac{1}{2} \sum H`, by Hawkins, Cramer and Truhlar."""

    inverse_radius: Tensor
    r""":math:`1/\rho_i`, (n_atoms,), 1/nm"""

    def inverse(self, descreening: Tensor) -> tuple[Tensor, Tensor]:
        half = torch.full_like(descreening, 0.5)
        return self.inverse_radius[:, None] - half * descreening, half


@dataclass(frozen=True, eq=False)
class RescaledRadii(BornRadii):
    r"""Born radii by Onufriev, Bashford and Case, Proteins 55, 383 (2004).

    .. math::
        \frac{1}{B} = \frac{1}{\rho} - \frac{\tanh(\alpha\psi - \beta\psi^2 + \gamma\psi^3)}{R},
        \qquad \psi = \tfrac{1}{2} \rho' \sum H
    """

    inverse_radius: Tensor
    r""":math:`1/\rho_i`, (n_atoms,), 1/nm"""
    scale: Tensor
    r""":math:`\rho'_i`, as a rule :math:`\rho_i`, (n_atoms,), nm"""
    radius: Tensor
    """:math:`R_i`, (n_atoms,), nm"""
    alpha: Tensor
    r""":math:`\alpha_i`, (n_atoms,)"""
    beta: Tensor
    r""":math:`\beta_i`, (n_atoms,)"""
    gamma: Tensor
    r""":math:`\gamma_i`, (n_atoms,)"""

    def inverse(self, descreening: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = self.alpha[:, None], self.beta[:, None], self.gamma[:, None]
        scale, radius = 0.5 * self.scale[:, None], self.radius[:, None]
        psi = scale * descreening
        screened = torch.tanh(psi * (a + psi * (-b + c * psi)))
        polynomial = a + psi * (-2.0 * b + 3.0 * c * psi)
        sensitivity = polynomial * (1.0 - screened * screened) * (scale / radius)
        return self.inverse_radius[:, None] - screened / radius, sensitivity
