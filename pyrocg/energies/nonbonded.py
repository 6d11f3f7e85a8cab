"""Lennard-Jones and Coulomb of all pairs, without a cutoff or with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrocg.energies.terms import Pairs, PairTerm

__all__ = ["CutoffNonbonded", "Nonbonded", "SwitchedNonbonded"]


def _inverses(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """1/r and its square, finite for atoms on top of each other: zero times infinity is NaN.

    Excluded pairs, which have no charge and no depth, then have no energy there either.
    """
    largest = torch.finfo(pairs.inverse.dtype).max
    inverse = pairs.inverse.clamp(max=largest)
    return inverse, (inverse * inverse).clamp(max=largest)


@dataclass(frozen=True, eq=False)
class Nonbonded(PairTerm):
    r"""Pairs, :math:`4\epsilon ((\sigma/r)^{12} - (\sigma/r)^6) + q/r`, exceptions included.

    All fields are (n_rows, n_atoms); charge and epsilon are zero where a row is empty.
    """

    reaches_all: ClassVar[bool] = True

    charge: Tensor
    """:math:`q`, the charge product times Coulomb's constant, kJ/mol nm"""
    sigma: Tensor
    r""":math:`\sigma`, nm; 0 where :math:`\epsilon` is"""
    epsilon: Tensor
    r""":math:`\epsilon`, kJ/mol"""

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        inverse, inverse2 = _inverses(pairs)
        ratio2 = (self.sigma * self.sigma)[:, :, None] * inverse2
        ratio6 = ratio2 * ratio2 * ratio2
        dispersion = (4.0 * self.epsilon)[:, :, None] * ratio6
        coulomb = self.charge[:, :, None] * inverse
        energy = dispersion * (ratio6 - 1.0) + coulomb
        slope = -(dispersion * (12.0 * ratio6 - 6.0) + coulomb) * inverse2
        return energy.sum(0).sum(0), slope


@dataclass(frozen=True, eq=False)
class CutoffNonbonded(PairTerm):
    r"""Pairs within a cutoff, Coulomb in a reaction field, exceptions at any distance and without.

    .. math::
        4\epsilon ((\sigma/r)^{12} - (\sigma/r)^6) + q (1/r + k r^2 - c)
        \quad\text{for } r \le r_c

    All fields are (n_rows, n_atoms); charge and epsilon are zero where a row is empty.
    """

    charge: Tensor
    """:math:`q`, the charge product times Coulomb's constant, kJ/mol nm"""
    sigma: Tensor
    r""":math:`\sigma`, nm; 0 where :math:`\epsilon` is"""
    epsilon: Tensor
    r""":math:`\epsilon`, kJ/mol"""
    cutoff: Tensor
    """:math:`r_c`, nm, infinite for exceptions"""
    field: Tensor
    """:math:`k`, 1/nm^3, zero for exceptions"""
    shift: Tensor
    """:math:`c`, 1/nm, zero for exceptions"""

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        inverse, inverse2 = _inverses(pairs)
        attraction, attraction_slope = self._dispersion(pairs, inverse, inverse2)
        charge, field = self.charge[:, :, None], self.field[:, :, None]
        squeezed = field * pairs.squared
        energy = attraction + charge * (inverse + squeezed - self.shift[:, :, None])
        slope = attraction_slope - charge * (inverse - 2.0 * squeezed) * inverse2
        beyond = pairs.distance > self.cutoff[:, :, None]  # NaN is not, and stays NaN
        energy = torch.where(beyond, 0.0, energy)
        return energy.sum(0).sum(0), torch.where(beyond, 0.0, slope)

    def _dispersion(self, pairs: Pairs, inverse: Tensor, inverse2: Tensor) -> tuple[Tensor, Tensor]:
        """The Lennard-Jones energy of every pair, and its slope."""
        ratio2 = (self.sigma * self.sigma)[:, :, None] * inverse2
        ratio6 = ratio2 * ratio2 * ratio2
        depth = (4.0 * self.epsilon)[:, :, None] * ratio6
        return depth * (ratio6 - 1.0), -depth * (12.0 * ratio6 - 6.0) * inverse2


@dataclass(frozen=True, eq=False)
class SwitchedNonbonded(CutoffNonbonded):
    r"""The same with Lennard-Jones multiplied by :math:`1 - 10 t^3 + 15 t^4 - 6 t^5`.

    :math:`t = (r - r_s) / (r_c - r_s)` within the switch, and 0 before it.
    """

    switch: Tensor
    """:math:`r_s`, nm, infinite for exceptions"""
    per_width: Tensor
    """:math:`1 / (r_c - r_s)`, (), 1/nm"""

    def _dispersion(self, pairs: Pairs, inverse: Tensor, inverse2: Tensor) -> tuple[Tensor, Tensor]:
        energy, slope = super()._dispersion(pairs, inverse, inverse2)
        t = ((pairs.distance - self.switch[:, :, None]) * self.per_width).clamp(min=0.0)
        factor = 1.0 + t * t * t * (-10.0 + t * (15.0 - 6.0 * t))
        fall = t * t * (-30.0 + t * (60.0 - 30.0 * t)) * self.per_width
        return energy * factor, slope * factor + energy * fall * inverse
