"""OpenMM's CustomNonbondedForce as a term, and what expressions of pairs of atoms refer to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from pyrocg.energies.custom import CustomBonds, CustomPairs, Cutoff, Reach, SwitchedCutoff
from pyrocg.energies.customforces import Source, parsed, per_particle
from pyrocg.energies.formulas import Formula, evaluate
from pyrocg.energies.terms import Term, UnsupportedForceError, by_rows

__all__ = ["custom_pairs", "pairs_beside", "parameters_of_pairs"]

_DISTANCES = (0.07, 0.13, 0.31, 0.59, 1.3)
"""nm; where an energy of pairs is asked whether it depends on their order."""


def custom_pairs(force: Any) -> Term | None:
    """The term of a CustomNonbondedForce; None if no pair is left.

    Raises:
        UnsupportedForceError: the energy of a pair depends on the order of its atoms.
    """
    source, tree = Source.of(force), parsed(force.getEnergyFunction())
    particles = _particles(force, source)
    excluded = {frozenset(force.getExclusionParticles(k)) for k in range(force.getNumExclusions())}
    if force.getNumInteractionGroups():
        pairs = _pairs_of_groups(force, excluded)
        if not pairs:
            return None
        atoms = torch.tensor(pairs)
        first, second = atoms.unbind(1)
        rows = {f"{name}1": v[first] for name, v in particles.items()}
        rows |= {f"{name}2": v[second] for name, v in particles.items()}
        return CustomBonds(atoms, source.formula(tree, ["r"], rows), _reach(force))
    included = pairs_beside(force.getNumParticles(), excluded)
    if not included.any():
        return None
    atoms = torch.arange(force.getNumParticles())
    first, second = torch.meshgrid(atoms, atoms, indexing="ij")
    low, high = torch.minimum(first, second), torch.maximum(first, second)  # as OpenMM has them
    formula, reverse = (
        source.formula(tree, ["r"], parameters_of_pairs(particles, *order))
        for order in ((low, high), (high, low))
    )
    _check_symmetry(formula, reverse, included)
    return CustomPairs(formula, included, _reach(force))


def pairs_beside(n_atoms: int, excluded: Iterable[Collection[int]]) -> Tensor:
    """Which pairs of atoms count, (n_rows, n_atoms)."""
    included = torch.ones(n_atoms, n_atoms, dtype=torch.bool)
    for pair in excluded:  # one atom where OpenMM was told to exclude it from itself
        i, j = min(pair), max(pair)
        included[i, j] = included[j, i] = False
    return by_rows(included)


def parameters_of_pairs(
    particles: dict[str, Tensor], first: Tensor, second: Tensor
) -> dict[str, Tensor]:
    """Parameters of both atoms of pairs, (n_rows, n_atoms), names with 1 and 2.

    Args:
        particles: parameters by name, (n_atoms,).
        first: the atoms that ordered pairs take as their first, (n_atoms, n_atoms), integers.
        second: those that they take as their second.
    """
    sides = {1: first, 2: second}
    return {
        f"{name}{side}": by_rows(v[atoms], empty=None)
        for name, v in particles.items()
        for side, atoms in sides.items()
    }


def _particles(force: Any, source: Source) -> dict[str, Tensor]:
    """Parameters and computed values of the particles, (n_particles,)."""
    given, n = per_particle(force), force.getNumParticles()
    known, computed = source.scalars | given, {}
    for k in range(force.getNumComputedValues()):
        name, expression = force.getComputedValueParameters(k)
        try:
            value = evaluate(parsed(expression), known, source.functions)
        except ValueError as error:
            raise UnsupportedForceError(str(error)) from None
        computed[name] = value.expand(n)
    return given | computed


def _pairs_of_groups(force: Any, excluded: set[frozenset[int]]) -> list[tuple[int, int]]:
    """Pairs between the sets of each group; those within both sets of a group count once."""
    pairs = []
    for k in range(force.getNumInteractionGroups()):
        first, second = (set(s) for s in force.getInteractionGroupParameters(k))
        for i in sorted(first):
            for j in sorted(second - {i}):
                twice = i > j and j in first and i in second
                if not twice and frozenset((i, j)) not in excluded:
                    pairs.append((i, j))
    return pairs


def _reach(force: Any) -> Reach:
    if force.getNonbondedMethod() == force.NoCutoff:
        return Reach()
    cutoff = float(force.getCutoffDistance()._value)
    if not force.getUseSwitchingFunction():
        return Cutoff(cutoff)
    return SwitchedCutoff(cutoff, float(force.getSwitchingDistance()._value))


def _check_symmetry(formula: Formula, reverse: Formula, included: Tensor) -> None:
    r = torch.tensor(_DISTANCES, dtype=torch.float64).expand(*included.shape, -1).contiguous()
    a, b = (f({"r": r})[0][included] for f in (formula, reverse))
    if not torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise UnsupportedForceError("its energy of a pair depends on the order of the two atoms")
