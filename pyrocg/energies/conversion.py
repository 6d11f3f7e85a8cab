"""Terms of an OpenMM System: every force with an energy becomes one term, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.energies.bonded import HarmonicAngles, HarmonicBonds, PeriodicTorsions, RBTorsions
from pyrocg.energies.born import (
    GeneralizedBorn,
    Polarization,
    RescaledRadii,
    SphereDescreening,
    both_ways,
)
from pyrocg.energies.cmap import cmap_torsions
from pyrocg.energies.customforces import (
    custom_angles,
    custom_bonds,
    custom_compounds,
    custom_externals,
    custom_torsions,
)
from pyrocg.energies.customgb import general_gb
from pyrocg.energies.custompairs import custom_pairs
from pyrocg.energies.implicit import custom_gb
from pyrocg.energies.nonbonded import CutoffNonbonded, Nonbonded, SwitchedNonbonded
from pyrocg.energies.terms import Term, UnsupportedForceError, by_rows

__all__ = ["UnsupportedForceError", "terms_of"]

COULOMB = 138.93545764438198
"""Coulomb's constant as OpenMM has it, kJ/mol nm per squared elementary charge."""
_DIELECTRIC_OFFSET = 0.009
_PROBE_RADIUS = 0.14
_OBC2 = (1.0, 0.8, 4.85)


def terms_of(system: Any) -> tuple[Term, ...]:
    """Return one term for every force of an OpenMM System that has an energy and is not empty.

    Raises:
        UnsupportedForceError: a force, named by its class and index, is not covered.
    """
    if any(system.isVirtualSite(i) for i in range(system.getNumParticles())):
        raise UnsupportedForceError(
            "expected a System without virtual sites, got some; use the OpenMM engine"
        )
    converted = (_convert(force, index) for index, force in enumerate(system.getForces()))
    return tuple(term for term in converted if term is not None)


def _convert(force: Any, index: int) -> Term | None:
    name = type(force).__name__
    if name == "CMMotionRemover":
        return None
    convert = _CONVERTERS.get(name)
    reason = "it has no compiled form" if convert is None else _periodicity(force)
    if convert is not None and not reason:
        try:
            return convert(force)
        except UnsupportedForceError as error:
            reason = str(error)
    raise UnsupportedForceError(
        f"expected forces that can be compiled, got {name} (force {index}): {reason}; "
        "use the OpenMM engine, pyrocg.energies.openmm.OpenMMEnergy"
    )


def _periodicity(force: Any) -> str:
    return "it uses periodic boundary conditions" if force.usesPeriodicBoundaryConditions() else ""


def _table(n: int, row: Callable[[int], Any]) -> tuple[Tensor, Tensor] | None:
    """Rows of ``force.getXParameters``, split into atoms (n, k) and numbers (n, p)."""
    if n == 0:
        return None
    rows = [[_number(v) for v in row(i)] for i in range(n)]
    atoms = [[v for v in r if isinstance(v, int)] for r in rows]
    numbers = [[v for v in r if isinstance(v, float)] for r in rows]
    return torch.tensor(atoms), torch.tensor(numbers, dtype=torch.float64)


def _number(value: Any) -> int | float:
    """OpenMM's unit system is ours (nm, kJ/mol, rad, e), so a quantity's number is its value."""
    return float(value._value) if hasattr(value, "_value") else value


def _harmonic_bonds(force: Any) -> Term | None:
    table = _table(force.getNumBonds(), force.getBondParameters)
    if table is None:
        return None
    atoms, (length, stiffness) = table[0], table[1].unbind(1)
    return HarmonicBonds(atoms, length, stiffness)


def _harmonic_angles(force: Any) -> Term | None:
    table = _table(force.getNumAngles(), force.getAngleParameters)
    if table is None:
        return None
    atoms, (angle, stiffness) = table[0], table[1].unbind(1)
    return HarmonicAngles(atoms, angle, stiffness)


def _rb_torsions(force: Any) -> Term | None:
    table = _table(force.getNumTorsions(), force.getTorsionParameters)
    return None if table is None else RBTorsions(*table)


def _periodic_torsions(force: Any) -> Term | None:
    if force.getNumTorsions() == 0:
        return None
    torsions = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
    groups = list(dict.fromkeys(tuple(torsion[:4]) for torsion in torsions))
    row_of = {atoms: row for row, atoms in enumerate(groups)}
    shape = len(groups), 1 + max(torsion[4] for torsion in torsions)
    constant, cosines, sines = np.zeros(shape[0]), np.zeros(shape), np.zeros(shape)
    for *atoms, n, phase, k in torsions:
        row, delta, barrier = row_of[tuple(atoms)], _number(phase), _number(k)
        constant[row] += barrier
        cosines[row, n] += barrier * np.cos(delta)
        sines[row, n] += barrier * np.sin(delta)
    return PeriodicTorsions(
        torch.tensor(groups),
        torch.from_numpy(constant + cosines[:, 0]),
        torch.from_numpy(np.ascontiguousarray(cosines[:, 1:])),
        torch.from_numpy(np.ascontiguousarray(sines[:, 1:])),
    )


def _nonbonded(force: Any) -> Term:
    particles, exceptions = _with_offsets(force)
    charge, sigma, epsilon = particles.T
    products = np.outer(charge, charge)
    sigmas = 0.5 * (sigma[:, None] + sigma[None, :])
    epsilons = np.sqrt(epsilon[:, None]) * np.sqrt(epsilon[None, :])
    ordinary = np.ones_like(products, dtype=bool)
    for i, j, *values in exceptions:
        ordinary[i, j] = ordinary[j, i] = False
        for table, value in zip((products, sigmas, epsilons), values, strict=True):
            table[i, j] = table[j, i] = value
    sigmas[epsilons == 0] = 0.0  # 0 * inf at an overlap would be NaN
    tables = COULOMB * products, sigmas, epsilons
    if force.getNonbondedMethod() == force.NoCutoff:
        return Nonbonded(*_rows(*tables))
    return _cut_off(force, ordinary, tables)  # periodic methods have been refused


def _with_offsets(force: Any) -> tuple[NDArray[np.float64], list[list[Any]]]:
    """Particles' parameters and rows of exceptions, global parameters at their defaults."""
    default = {
        force.getGlobalParameterName(k): force.getGlobalParameterDefaultValue(k)
        for k in range(force.getNumGlobalParameters())
    }
    n = force.getNumParticles()
    particles = np.array([[_number(v) for v in force.getParticleParameters(i)] for i in range(n)])
    for k in range(force.getNumParticleParameterOffsets()):
        name, i, *scales = force.getParticleParameterOffset(k)
        particles[i] += default[name] * np.array(scales)
    exceptions = [
        [_number(v) for v in force.getExceptionParameters(k)]
        for k in range(force.getNumExceptions())
    ]
    for k in range(force.getNumExceptionParameterOffsets()):
        name, which, *scales = force.getExceptionParameterOffset(k)
        i, j, *values = exceptions[which]
        moved = [v + default[name] * scale for v, scale in zip(values, scales, strict=True)]
        exceptions[which] = [i, j, *moved]
    return particles, exceptions


def _cut_off(
    force: Any, ordinary: NDArray[np.bool_], tables: tuple[NDArray[np.float64], ...]
) -> Term:
    """Pairs within a cutoff; only ordinary ones are cut off, in a reaction field and switched."""
    cutoff, dielectric = _number(force.getCutoffDistance()), force.getReactionFieldDielectric()
    field = (dielectric - 1.0) / (2.0 * dielectric + 1.0) / cutoff**3
    shift = 3.0 * dielectric / (2.0 * dielectric + 1.0) / cutoff
    tables += np.where(ordinary, cutoff, np.inf), field * ordinary, shift * ordinary
    if not force.getUseSwitchingFunction():
        return CutoffNonbonded(*_rows(*tables))
    start = _number(force.getSwitchingDistance())
    switch = np.where(ordinary, start, np.inf)
    return SwitchedNonbonded(*_rows(*tables, switch), *_tensors(1.0 / (cutoff - start)))


def _gbsa_obc(force: Any) -> Term:
    if force.getNonbondedMethod() != force.NoCutoff:
        raise UnsupportedForceError("its nonbonded method is not NoCutoff")
    n = force.getNumParticles()
    particles = np.array([[_number(v) for v in force.getParticleParameters(i)] for i in range(n)])
    charge, radius, factor = particles.T
    if (radius <= _DIELECTRIC_OFFSET).any():
        atom = int(np.argmin(radius))
        raise UnsupportedForceError(f"atom {atom} has a radius of {radius[atom]} nm, below 0.009")
    rho = radius - _DIELECTRIC_OFFSET
    inner = np.repeat(rho[:, None], n, axis=1)
    outer = np.repeat((factor * rho)[None, :], n, axis=0)
    solute, solvent = force.getSoluteDielectric(), force.getSolventDielectric()
    products = _screening(solute, solvent) * np.outer(charge, charge)
    own = 0.5 * np.diag(products)
    area = 4.0 * np.pi * (radius + _PROBE_RADIUS) ** 2
    surface = _number(force.getSurfaceAreaEnergy()) * area
    obc2 = (np.full(n, value) for value in _OBC2)
    return GeneralizedBorn(
        *both_ways(SphereDescreening, *_tensors(inner, outer)),
        RescaledRadii(*_tensors(1.0 / rho, rho, radius, *obc2)),
        Polarization(*_rows(products), *_tensors(own)),
        *_tensors(radius, surface),
    )


def _tensors(*arrays: Any) -> Iterator[Tensor]:
    return (torch.from_numpy(np.array(a, dtype=np.float64)) for a in arrays)


def _rows(*tables: NDArray[np.float64]) -> Iterator[Tensor]:
    return map(by_rows, _tensors(*tables))


def _screening(solute: float, solvent: float) -> float:
    """-(1/solute - 1/solvent) times Coulomb's constant; OpenMM takes a zero as "no solvent"."""
    if solute == 0 or solvent == 0:
        return 0.0
    return -COULOMB * (1.0 / solute - 1.0 / solvent)


def _custom_gb(force: Any) -> Term | None:
    """A known solvent as written out by hand, which is faster, or else any expressions."""
    try:
        return custom_gb(force)
    except UnsupportedForceError:
        return general_gb(force)


_CONVERTERS: dict[str, Callable[[Any], Term | None]] = {
    "HarmonicBondForce": _harmonic_bonds,
    "HarmonicAngleForce": _harmonic_angles,
    "PeriodicTorsionForce": _periodic_torsions,
    "RBTorsionForce": _rb_torsions,
    "CMAPTorsionForce": cmap_torsions,
    "NonbondedForce": _nonbonded,
    "GBSAOBCForce": _gbsa_obc,
    "CustomGBForce": _custom_gb,
    "CustomBondForce": custom_bonds,
    "CustomAngleForce": custom_angles,
    "CustomTorsionForce": custom_torsions,
    "CustomExternalForce": custom_externals,
    "CustomNonbondedForce": custom_pairs,
    "CustomCompoundBondForce": custom_compounds,
}
