"""Pair terms: Lennard-Jones and Coulomb without a cutoff, and the OBC implicit solvent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocg.energies.terms import Pairs, PairTerm

__all__ = ["GBSAOBC", "Nonbonded"]


@dataclass(frozen=True, eq=False)
class Nonbonded(PairTerm):
    r"""Pairs, :math:`4\epsilon ((\sigma/r)^{12} - (\sigma/r)^6) + q/r`, exceptions included.

    All fields are symmetric, (n_atoms, n_atoms), and zero on the diagonal.
    """

    charge: Tensor
    """:math:`q`, the charge product times Coulomb's constant, kJ/mol nm"""
    sigma: Tensor
    r""":math:`\sigma`, nm; 0 where :math:`\epsilon` is"""
    epsilon: Tensor
    r""":math:`\epsilon`, kJ/mol"""

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        inverse2 = pairs.inverse * pairs.inverse
        ratio2 = (self.sigma * self.sigma)[:, :, None] * inverse2
        ratio6 = ratio2 * ratio2 * ratio2
        dispersion = (4.0 * self.epsilon)[:, :, None] * ratio6
        coulomb = self.charge[:, :, None] * pairs.inverse
        energy = dispersion * (ratio6 - 1.0) + coulomb
        slope = -(dispersion * (12.0 * ratio6 - 6.0) + coulomb) * inverse2
        return 0.5 * energy.sum((0, 1)), slope


@dataclass(frozen=True, eq=False)
class GBSAOBC(PairTerm):
    r"""Generalised Born energy with radii by Onufriev, Bashford and Case, and a surface term.

    .. math::
        U = \sum_{i \le j} \frac{q_{ij}}{f_{ij}} + \sum_i s_i \left(\frac{R_i}{B_i}\right)^6,
        \qquad f_{ij}^2 = r_{ij}^2 + B_i B_j e^{-r_{ij}^2 / 4 B_i B_j}, \\
        \frac{1}{B_i} = \frac{1}{\rho_i} - \frac{\tanh(\psi - 0.8 \psi^2 + 4.85 \psi^3)}{R_i},
        \qquad \psi_i = \tfrac{1}{2} \rho_i \sum_{j \ne i} H(r_{ij}; \rho_i, s_j \rho_j)

    with Born radii B and the pairwise descreening H of Hawkins, Cramer and Truhlar: OBC II of
    Proteins 55, 383 (2004), as OpenMM's GBSAOBCForce computes it.
    """

    radius: Tensor
    """:math:`R_i`, (n_atoms,), nm"""
    offset_radius: Tensor
    r""":math:`\rho_i = R_i - 0.009`, (n_atoms,), nm"""
    inner: Tensor
    r""":math:`\rho_i` of pair (i, j), (n_atoms, n_atoms), nm; on the diagonal so large that no
    atom descreens itself"""
    outer: Tensor
    r""":math:`s_j \rho_j` of pair (i, j), (n_atoms, n_atoms), nm"""
    charge: Tensor
    """:math:`q_{ij}`, (n_atoms, n_atoms), kJ/mol nm, zero on the diagonal"""
    self_charge: Tensor
    """:math:`q_{ii}`, half the diagonal of the charge products, (n_atoms,), kJ/mol nm"""
    surface: Tensor
    r""":math:`s_i = 4 \pi \gamma (R_i + 0.14)^2`, (n_atoms,), kJ/mol"""

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        descreening, bend = self._descreening(pairs)
        inverse_born, sensitivity = self._inverse_born_radii(descreening.sum(1))
        born = 1.0 / inverse_born
        product = born[:, None] * born[None, :]
        exponent = (0.25 * pairs.squared) * (inverse_born[:, None] * inverse_born[None, :])
        decay = torch.exp(-exponent)
        inverse_f = torch.rsqrt(pairs.squared + product * decay)
        polar = self.charge[:, :, None] * inverse_f
        polar_f2 = polar * (inverse_f * inverse_f)
        by_radius = (polar_f2 * decay * (1.0 + exponent) * born[None, :]).sum(1)
        ratio = self.radius[:, None] * inverse_born
        ratio3 = ratio * ratio * ratio
        surface = self.surface[:, None] * ratio3 * ratio3
        own = self.self_charge[:, None] * inverse_born
        energy = 0.5 * polar.sum((0, 1)) + (surface + own).sum(0)
        # dU/dB, then dB/d(sum of H), then dH/dr
        chain = -(0.5 * by_radius * born + 6.0 * surface + own) * born * sensitivity
        slope = (
            polar_f2 * (0.25 * decay - 1.0)
            + chain[:, None] * bend
            + (chain[None, :] * bend.transpose(0, 1))
        )
        return energy, slope

    def _descreening(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """H and (dH/dr)/r of every ordered pair; dH/dr has no part from the integration limits."""
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
        engulfed = inner < outer - pairs.distance
        value = value + torch.where(engulfed, 2.0 * (1.0 / inner - per_lower), 0.0)
        bend = -(0.25 * (1.0 + ratio) * squares + logarithm * pairs.inverse) * pairs.inverse
        reached = inner < upper
        return torch.where(reached, value, 0.0), torch.where(reached, bend, 0.0)

    def _inverse_born_radii(self, descreening: Tensor) -> tuple[Tensor, Tensor]:
        """1/B and -d(1/B)/d(sum of H), (n_atoms, batch) each."""
        rho, radius = self.offset_radius[:, None], self.radius[:, None]
        psi = 0.5 * rho * descreening
        screened = torch.tanh(psi * (1.0 + psi * (-0.8 + 4.85 * psi)))
        polynomial = 1.0 + psi * (-1.6 + 14.55 * psi)
        sensitivity = polynomial * (1.0 - screened * screened) * (0.5 * rho / radius)
        return 1.0 / rho - screened / radius, sensitivity
