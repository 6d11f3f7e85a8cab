"""Systems of many copies of a molecule that do not see each other."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from pyrocg.energies.expressions import names_in, parse
from pyrocg.energies.terms import UnsupportedForceError

__all__ = ["replicated"]

_ELSEWHERE = "it depends on where the molecule is"
_MARGIN = 1.001
"""So that no rounding puts a pair of a molecule beyond the cutoff."""
_OF_PAIRS = ("NonbondedForce", "CustomNonbondedForce", "GBSAOBCForce", "CustomGBForce")
_OF_GROUPS = (
    "HarmonicBondForce",
    "HarmonicAngleForce",
    "PeriodicTorsionForce",
    "RBTorsionForce",
    "CMAPTorsionForce",
    "CustomBondForce",
    "CustomAngleForce",
    "CustomTorsionForce",
    "CustomCompoundBondForce",
    "CustomCentroidBondForce",
)
_REPEATED = {
    "Angles",
    "Bonds",
    "ExceptionOffsets",
    "Exceptions",
    "Exclusions",
    "Groups",
    "InteractionGroups",
    "ParticleOffsets",
    "Particles",
    "Torsions",
}
"""Lists of a serialized force that every copy has; the others belong to all."""
_ATOM = re.compile(r"[pab]\d+|p|particle|index")
_GROUP = re.compile(r"g\d+")
_COORDINATE = re.compile(r"[xyz]\d*")


def replicated(system: Any, copies: int, reach: float) -> tuple[str, float]:
    r"""A System of many copies of a molecule, and how far apart to put them.

    Forces on copies of a molecule are those on the molecule alone if no copy sees another and
    nothing within a copy is cut off. Pairs without a cutoff get one, ``reach``, beyond which no
    pair of a molecule that is smaller is. Their forces stay the same; their *energies* do not:
    OpenMM's reaction field of dielectric 1 and its cut-off GBSAOBCForce add a constant to each.

    Args:
        system: the OpenMM System of one molecule.
        copies: how many.
        reach: largest diameter of the molecule, nm.

    Returns:
        The serialized System, atoms of one copy after those of another, and the distance in nm
        between the centres of boxes of that diameter at which the copies are alone.

    Raises:
        UnsupportedForceError: a force, named by class and index, is periodic, depends on where the
            molecule is, or is of a class that cannot be copied here; or there are virtual sites.
    """
    import openmm

    if any(system.isVirtualSite(i) for i in range(system.getNumParticles())):
        raise UnsupportedForceError("expected a System without virtual sites, got some")
    whole = openmm.System()
    for index in list(range(system.getNumParticles())) * copies:
        whole.addParticle(system.getParticleMass(index))
    root = ElementTree.fromstring(openmm.XmlSerializer.serialize(whole))
    forces, cutoff = root.find("Forces"), 0.0
    assert forces is not None
    for index, force in enumerate(system.getForces()):
        name = type(force).__name__
        if name == "CMMotionRemover":
            continue
        if reason := _why_not(force, name):
            raise UnsupportedForceError(
                f"expected forces that are the same on copies of a molecule, got {name} "
                f"(force {index}): {reason}; evaluate one molecule at a time, with OpenMMEnergy"
            )
        if name in _OF_PAIRS:
            force = _cut_off(force, _MARGIN * reach)
            cutoff = max(cutoff, float(force.getCutoffDistance()._value))
        single = ElementTree.fromstring(openmm.XmlSerializer.serialize(force))
        forces.append(_repeated(single, copies, system.getNumParticles()))
    return ElementTree.tostring(root, encoding="unicode"), cutoff + _MARGIN * reach


def _why_not(force: Any, name: str) -> str:
    """Why copies of a force are not like one; empty if they are."""
    if name == "CustomExternalForce":
        return _ELSEWHERE
    if name not in _OF_PAIRS + _OF_GROUPS:
        return "it cannot be copied"
    if force.usesPeriodicBoundaryConditions():
        return "it uses periodic boundary conditions"
    try:
        names = {v for e in _expressions(force, name) for v in names_in(parse(e))}
    except ValueError as error:
        return str(error)
    return _ELSEWHERE if any(map(_COORDINATE.fullmatch, names)) else ""


def _expressions(force: Any, name: str) -> Iterator[str]:
    """Expressions in which coordinates could occur."""
    if name in ("CustomCompoundBondForce", "CustomCentroidBondForce"):
        yield force.getEnergyFunction()
    if name == "CustomGBForce":
        values = map(force.getComputedValueParameters, range(force.getNumComputedValues()))
        energies = map(force.getEnergyTermParameters, range(force.getNumEnergyTerms()))
        yield from (expression for _, expression, _ in values)
        yield from (expression for expression, _ in energies)


def _cut_off(force: Any, reach: float) -> Any:
    """A force of pairs with a cutoff: its own, or one that a molecule of that size never meets."""
    force = copy.deepcopy(force)
    if force.getNonbondedMethod() == force.NoCutoff:
        force.setNonbondedMethod(force.CutoffNonPeriodic)
        force.setCutoffDistance(reach)
        if hasattr(force, "setUseSwitchingFunction"):
            force.setUseSwitchingFunction(False)
        if hasattr(force, "setReactionFieldDielectric"):
            force.setReactionFieldDielectric(1.0)
    return force


def _repeated(force: ElementTree.Element, copies: int, n_atoms: int) -> ElementTree.Element:
    """A serialized force whose lists hold what every copy has."""
    n_groups, n_exceptions = (len(force.findall(f"{name}/*")) for name in ("Groups", "Exceptions"))
    for part in force:
        own = list(part) if part.tag in _REPEATED else []
        for k in range(1, copies):
            for entry in own:
                moved = copy.deepcopy(entry)
                for element in moved.iter():
                    _move(element, k * n_atoms, k * n_groups, k * n_exceptions)
                part.append(moved)
    return force


def _move(element: ElementTree.Element, atoms: int, groups: int, exceptions: int) -> None:
    """Add to the indices that an element of a serialized force holds."""
    for name, value in element.attrib.items():
        if _ATOM.fullmatch(name):
            element.set(name, str(int(value) + atoms))
        elif _GROUP.fullmatch(name):
            element.set(name, str(int(value) + groups))
        elif name == "exception":
            element.set(name, str(int(value) + exceptions))
