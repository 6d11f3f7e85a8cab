"""Readers of structure and topology files, with OpenMM's many errors turned into one clear line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # importing OpenMM takes a second and only the types are needed
    from openmm import System
    from openmm.app import Topology

__all__ = [
    "IMPLICIT_SOLVENTS",
    "PathLike",
    "created",
    "existing",
    "explained",
    "implicit_solvent_model",
    "parametrised",
    "read",
]

T = TypeVar("T")
PathLike = str | Path
IMPLICIT_SOLVENTS = ("HCT", "OBC1", "OBC2", "GBn", "GBn2")


def existing(path: PathLike) -> Path:
    """Return the path of a file, or raise FileNotFoundError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file at {path}, got nothing there; check the path")
    return path


def explained(action: Callable[[], T], expected: str, remedy: str) -> T:
    """Run ``action``; whatever OpenMM raises becomes a one-line ValueError.

    Args:
        action: without arguments.
        expected: what the error says was expected.
        remedy: what it says to do.

    Example:
        >>> explained(lambda: int("x"), "a number", "use digits")
        Traceback (most recent call last):
        ValueError: expected a number, got: invalid literal for int() with base 10: 'x'; use digits
    """
    try:
        return action()
    except Exception as error:
        text = " ".join(str(error).split()).split(" For more information")[0].rstrip(".")
        reason = (
            text if isinstance(error, ValueError) and text else f"{type(error).__name__} {text}"
        )
        raise ValueError(f"expected {expected}, got: {reason}; {remedy}") from error


def read(reader: Callable[..., T], path: Path, **options: Any) -> T:
    """Return what one of OpenMM's readers makes of a file, or raise ValueError."""
    return explained(
        lambda: reader(str(path), **options),
        f"{path} to be a file for {reader.__name__}",
        "check that it is complete and of that format",
    )


def created(source: object, create: Callable[..., System], **options: Any) -> System:
    """The System of an Amber, Gromacs or CHARMM topology, isolated and without constraints.

    Args:
        source: the topology's name, for the error.
        create: its ``createSystem``.
        options: more of its arguments.

    Raises:
        ValueError: it cannot be made.
    """
    return explained(
        lambda: create(**_isolated(), **options),
        f"a complete parametrisation in {source}",
        "correct the files, or build the System yourself and use Molecule.from_openmm",
    )


def _isolated() -> dict[str, Any]:
    """Options of every createSystem for one unconstrained molecule."""
    from openmm.app import NoCutoff

    isolated = {"nonbondedMethod": NoCutoff, "constraints": None}
    return isolated | {"rigidWater": False, "removeCMMotion": False}


def implicit_solvent_model(name: str | None) -> Any:
    """Return OpenMM's constant of an implicit solvent by its name, or raise ValueError."""
    from openmm import app

    if name is not None and name not in IMPLICIT_SOLVENTS:
        raise ValueError(
            f"expected implicit_solvent to be None or one of {', '.join(IMPLICIT_SOLVENTS)}, "
            f"got {name!r}; mind the capitals"
        )
    return None if name is None else getattr(app, name)


def parametrised(topology: Topology, forcefield: Sequence[str], source: str) -> System:
    """The System of a topology under OpenMM force-field files, without constraints.

    Args:
        topology: with all hydrogens.
        forcefield: names of OpenMM's files, or paths.
        source: the topology's name, for the error.

    Raises:
        ValueError: a file is unknown, or a residue matches no template.
    """
    from openmm.app import ForceField

    files = (forcefield,) if isinstance(forcefield, str) else tuple(map(str, forcefield))
    if not files:
        raise ValueError("expected at least one force-field file, got none; try 'amber14-all.xml'")
    field = explained(
        lambda: ForceField(*files),
        f"OpenMM force-field files in {', '.join(files)}",
        "name files that OpenMM ships, such as 'amber14-all.xml', or give paths to valid ones",
    )
    return explained(
        lambda: field.createSystem(topology, **_isolated()),
        f"every residue of {source} to match a template of {', '.join(files)}",
        "add missing hydrogens with openmm.app.Modeller, remove solvent and ions, or choose a "
        "force field that knows the residue",
    )
