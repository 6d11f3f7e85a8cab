"""OpenMM's CustomGBForce as a term, whatever its expressions are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrocg.energies.customforces import Source, parsed, per_particle
from pyrocg.energies.custompairs import pairs_beside, parameters_of_pairs
from pyrocg.energies.formulas import Formula
from pyrocg.energies.terms import Pairs, PairTerm, Record, UnsupportedForceError, by_rows

__all__ = ["CustomGB", "PairFormula", "general_gb"]

_COORDINATES = {"x", "y", "z"}


@dataclass(frozen=True, eq=False)
class PairFormula(Record):
    """An expression of pairs of atoms, and which of them count."""

    formula: Formula
    """Rows are pairs, (n_rows, n_atoms)."""
    included: Tensor
    """(n_rows, n_atoms)"""

    def __call__(
        self, pairs: Pairs, values: Mapping[str, Tensor], cutoff: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Energies of pairs (n_rows, n_atoms, batch), and their derivatives by r and the values."""
        energy, slopes = self.formula({"r": pairs.distance, **values})
        within = self.included[:, :, None] & ~(pairs.distance >= cutoff)
        limited = {name: torch.where(within, slope, 0.0) for name, slope in slopes.items()}
        return torch.where(within, energy, 0.0), limited


@dataclass(frozen=True, eq=False)
class CustomGB(PairTerm):
    r"""Energies of atoms and pairs that depend on values of the atoms.

    The first value is a sum over all other atoms, :math:`v_i = \sum_{j \ne i} f(r_{ij})`, and each
    later one is an expression of those before it.
    """

    names: tuple[str, ...]
    """What the expressions call the values."""
    summed: tuple[PairFormula, PairFormula]
    """What the first value of the first atom of a pair gets from the second, and the reverse."""
    values: tuple[Formula, ...]
    """The other values, of those before them; rows are atoms."""
    atom_energies: tuple[Formula, ...]
    """Of the values; rows are atoms."""
    pair_energies: tuple[PairFormula, ...]
    """Of the distance ``r`` and both atoms' values, their names followed by 1 and 2; 1 is the atom
    of the lower index, as in OpenMM."""
    falling: Tensor
    """Whether the first atom of a pair has the higher index, (n_rows, n_atoms)."""
    cutoff: float
    """nm"""

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        values, bends, history = self._values(pairs)
        slope = torch.zeros_like(pairs.distance)
        energy = torch.zeros_like(next(iter(values.values()))[0])
        by_value = {name: torch.zeros_like(v) for name, v in values.items()}
        for formula in self.atom_energies:
            part, slopes = formula(values)
            energy = energy + part.sum(0)
            by_value = {name: by + slopes[name] for name, by in by_value.items()}
        for pair_energy in self.pair_energies:
            part, slopes = pair_energy(pairs, self._of_both(pairs, values), self.cutoff)
            energy = energy + part.sum(0).sum(0)
            slope = slope + slopes["r"] * pairs.inverse
            for name in self.names:
                of_both = self._ordered(slopes[f"{name}1"], slopes[f"{name}2"])
                by_value[name] = by_value[name] + pairs.rows.collect(*of_both)
        for name, slopes in reversed(history):
            for earlier, factor in slopes.items():
                by_value[earlier] = by_value[earlier] + by_value[name] * factor
        chain = by_value[self.names[0]]
        return energy, slope + chain * bends[0] + pairs.rows.seconds(chain) * bends[1]

    def _values(
        self, pairs: Pairs
    ) -> tuple[dict[str, Tensor], list[Tensor], list[tuple[str, dict[str, Tensor]]]]:
        """Values (n_atoms, batch), slopes of the summed one, derivatives of the others."""
        parts, slopes = zip(*(f(pairs, {}, self.cutoff) for f in self.summed), strict=True)
        values = {self.names[0]: pairs.rows.collect(*parts)}
        history: list[tuple[str, dict[str, Tensor]]] = []
        for name, formula in zip(self.names[1:], self.values, strict=True):
            value, by_earlier = formula(values)
            history.append((name, by_earlier))
            values[name] = value
        return values, [slope["r"] * pairs.inverse for slope in slopes], history

    def _of_both(self, pairs: Pairs, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the lower and the higher atom of every pair, names with 1 and 2."""
        found: dict[str, Tensor] = {}
        for name, value in values.items():
            first = value.expand_as(pairs.distance)
            low, high = self._ordered(first, pairs.rows.seconds(value))
            found |= {f"{name}1": low, f"{name}2": high}
        return found

    def _ordered(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """From first and second atoms to lower and higher ones, or back."""
        falling = self.falling[:, :, None]
        return torch.where(falling, second, first), torch.where(falling, first, second)


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
    return CustomGB(names, summed, values, atoms, pairs, builder.falling, cutoff)


@dataclass(frozen=True)
class _Builder:
    """The expressions of a force, compiled."""

    force: Any
    source: Source
    particles: dict[str, Tensor]

    def values(
        self,
    ) -> tuple[tuple[str, ...], tuple[PairFormula, PairFormula], tuple[Formula, ...]]:
        """Names of the values, the formulas of the summed one, and those of the others."""
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
        first, second = self._indices()
        summed = self._of_pairs(expression, kind, [], first, second)
        reverse = self._of_pairs(expression, kind, [], second, first)
        return tuple(names), (summed, reverse), tuple(others)

    def energies(
        self, names: tuple[str, ...]
    ) -> tuple[tuple[Formula, ...], tuple[PairFormula, ...]]:
        """Formulas of the energies of atoms, and of pairs."""
        force, atoms, pairs = self.force, [], []
        first, second = self._indices()
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        of_both = [f"{name}{side}" for name in names for side in (1, 2)]
        for k in range(force.getNumEnergyTerms()):
            expression, kind = force.getEnergyTermParameters(k)
            if kind == force.SingleParticle:
                atoms.append(self._of_atoms(expression, names))
            else:
                pairs.append(self._of_pairs(expression, kind, of_both, low, high))
        return tuple(atoms), tuple(pairs)

    def _of_atoms(self, expression: str, names: Any) -> Formula:
        rows = {name: v for name, v in self.particles.items() if name not in _COORDINATES}
        return self.source.without(_COORDINATES).formula(parsed(expression), names, rows)

    @property
    def falling(self) -> Tensor:
        """Whether the first atom of a pair has the higher index, (n_rows, n_atoms)."""
        first, second = self._indices()
        return by_rows(first > second)

    def _indices(self) -> tuple[Tensor, Tensor]:
        """Of the atoms of ordered pairs, (n_atoms, n_atoms) each."""
        atoms = torch.arange(self.force.getNumParticles())
        first, second = torch.meshgrid(atoms, atoms, indexing="ij")
        return first, second

    def _of_pairs(
        self, expression: str, kind: int, names: list[str], first: Tensor, second: Tensor
    ) -> PairFormula:
        """An expression of ordered pairs, with the parameters of the atoms that they are of."""
        force, excluded = self.force, []
        if kind == force.ParticlePair:
            excluded = [force.getExclusionParticles(k) for k in range(force.getNumExclusions())]
        rows = parameters_of_pairs(self.particles, first, second)
        formula = self.source.formula(parsed(expression), ["r", *names], rows)
        return PairFormula(formula, pairs_beside(force.getNumParticles(), excluded))
