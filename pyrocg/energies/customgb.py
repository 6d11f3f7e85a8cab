"""OpenMM's CustomGBForce as a term, whatever its expressions are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrocg.energies.customforces import Source, parsed, per_particle
from pyrocg.energies.formulas import Formula
from pyrocg.energies.terms import Pairs, PairTerm, Record, UnsupportedForceError

__all__ = ["CustomGB", "PairFormula", "general_gb"]

_COORDINATES = {"x", "y", "z"}


@dataclass(frozen=True, eq=False)
class PairFormula(Record):
    """An expression of pairs of atoms, and which of them count."""

    formula: Formula
    """Rows are pairs, (n_atoms, n_atoms)."""
    included: Tensor
    """(n_atoms, n_atoms)"""


@dataclass(frozen=True, eq=False)
class CustomGB(PairTerm):
    r"""Energies of atoms and pairs that depend on values of the atoms.

    The first value is a sum over all other atoms, :math:`v_i = \sum_{j \ne i} f(r_{ij})`, and each
    later one is an expression of those before it.
    """

    names: tuple[str, ...]
    """What the expressions call the values."""
    summed: PairFormula
    """The first value."""
    values: tuple[Formula, ...]
    """The other values, of those before them; rows are atoms."""
    atom_energies: tuple[Formula, ...]
    """Of the values; rows are atoms."""
    pair_energies: tuple[PairFormula, ...]
    """Of the distance ``r`` and both atoms' values, their names followed by 1 and 2."""
    cutoff: float
    """nm"""

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        values, bend, history = self._values(pairs)
        slope = torch.zeros_like(pairs.distance)
        energy = torch.zeros_like(slope[0, 0])
        by_value = {name: torch.zeros_like(v) for name, v in values.items()}
        for formula in self.atom_energies:
            part, slopes = formula(values)
            energy = energy + part.sum(0)
            by_value = {name: by + slopes[name] for name, by in by_value.items()}
        for pair_energy in self.pair_energies:
            part, slopes, within = self._of_pairs(pair_energy, pairs, values)
            energy = energy + part.sum((0, 1))
            by_distance = torch.where(within, slopes["r"] * pairs.inverse, 0.0)
            slope = slope + by_distance + by_distance.transpose(0, 1)
            for name in self.names:
                first, second = (torch.where(within, slopes[f"{name}{k}"], 0.0) for k in (1, 2))
                by_value[name] = by_value[name] + first.sum(1) + second.sum(0)
        for name, slopes in reversed(history):
            for earlier, factor in slopes.items():
                by_value[earlier] = by_value[earlier] + by_value[name] * factor
        chain = by_value[self.names[0]]
        slope = slope + chain[:, None] * bend + chain[None, :] * bend.transpose(0, 1)
        return energy, slope

    def _values(
        self, pairs: Pairs
    ) -> tuple[dict[str, Tensor], Tensor, list[tuple[str, dict[str, Tensor]]]]:
        """Values (n_atoms, batch), slopes of the summed one, derivatives of the others."""
        parts, slopes, within = self._of_pairs(self.summed, pairs, {})
        values = {self.names[0]: parts.sum(1)}
        bend = torch.where(within, slopes["r"] * pairs.inverse, 0.0)
        history: list[tuple[str, dict[str, Tensor]]] = []
        for name, formula in zip(self.names[1:], self.values, strict=True):
            value, by_earlier = formula(values)
            history.append((name, by_earlier))
            values[name] = value
        return values, bend, history

    def _of_pairs(
        self, energy: PairFormula, pairs: Pairs, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """What each pair gives, the derivatives, and which pairs count."""
        r = pairs.distance
        variables = {"r": r}
        variables |= {f"{name}1": v[:, None].expand_as(r) for name, v in values.items()}
        variables |= {f"{name}2": v[None, :].expand_as(r) for name, v in values.items()}
        part, slopes = energy.formula(variables)
        within = energy.included[:, :, None] & ~(r >= self.cutoff)
        return torch.where(within, part, 0.0), slopes, within


def general_gb(force: Any) -> CustomGB | None:
    """The term of a CustomGBForce; None if it has no particles or no energy.

    Raises:
        UnsupportedForceError: its first computed value is no sum over pairs, or an expression
            depends on positions other than through distances.
    """
    if not (force.getNumParticles() and force.getNumEnergyTerms()):
        return None
    source = Source.of(force)
    builder = _Builder(force, source, per_particle(force))
    names, summed, values = builder.values()
    atoms, pairs = builder.energies(names)
    cutoff = math.inf
    if force.getNonbondedMethod() != force.NoCutoff:
        cutoff = float(force.getCutoffDistance()._value)
    return CustomGB(names, summed, values, atoms, pairs, cutoff)


@dataclass(frozen=True)
class _Builder:
    """The expressions of a force, compiled."""

    force: Any
    source: Source
    particles: dict[str, Tensor]

    def values(self) -> tuple[tuple[str, ...], PairFormula, tuple[Formula, ...]]:
        """Names of the values, the formula of the summed one, and those of the others."""
        force = self.force
        computed = [
            force.getComputedValueParameters(k) for k in range(force.getNumComputedValues())
        ]
        kinds = [kind for _, _, kind in computed]
        single = force.SingleParticle
        if not kinds or kinds[0] == single or any(kind != single for kind in kinds[1:]):
            raise UnsupportedForceError("its first computed value alone is not a sum over pairs")
        names = [name for name, _, _ in computed]
        _, expression, kind = computed[0]
        others = (self._of_atoms(e, names[:k]) for k, (_, e, _) in enumerate(computed) if k)
        return tuple(names), self._of_pairs(expression, kind, []), tuple(others)

    def energies(
        self, names: tuple[str, ...]
    ) -> tuple[tuple[Formula, ...], tuple[PairFormula, ...]]:
        """Formulas of the energies of atoms, and of pairs."""
        force, atoms, pairs = self.force, [], []
        for k in range(force.getNumEnergyTerms()):
            expression, kind = force.getEnergyTermParameters(k)
            if kind == force.SingleParticle:
                atoms.append(self._of_atoms(expression, names))
            else:
                pair = self._of_pairs(
                    expression, kind, [f"{n}{side}" for n in names for side in (1, 2)]
                )
                # each pair once, the lower index first, as OpenMM does
                pairs.append(PairFormula(pair.formula, pair.included.triu()))
        return tuple(atoms), tuple(pairs)

    def _of_atoms(self, expression: str, names: Any) -> Formula:
        return self.source.without(_COORDINATES).formula(parsed(expression), names, self.particles)

    def _of_pairs(self, expression: str, kind: int, names: list[str]) -> PairFormula:
        force, n = self.force, self.force.getNumParticles()
        rows = {f"{name}1": v[:, None] for name, v in self.particles.items()}
        rows |= {f"{name}2": v[None, :] for name, v in self.particles.items()}
        included = ~torch.eye(n, dtype=torch.bool)
        for k in range(force.getNumExclusions() if kind == force.ParticlePair else 0):
            i, j = force.getExclusionParticles(k)
            included[i, j] = included[j, i] = False
        return PairFormula(self.source.formula(parsed(expression), ["r", *names], rows), included)
