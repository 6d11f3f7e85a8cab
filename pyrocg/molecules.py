"""Molecules: a topology, the OpenMM System that gives its energy, and reference positions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyrocg.peptides import peptide_structure
from pyrocg.units import in_units

if TYPE_CHECKING:
    import mdtraj
    from openmm import System
    from openmm.app import Topology

__all__ = ["Molecule", "alanine_dipeptide", "peptide"]

T = TypeVar("T")
PathLike = str | Path
DEFAULT_FORCEFIELD = ("amber14-all.xml", "implicit/obc2.xml")
IMPLICIT_SOLVENTS = ("HCT", "OBC1", "OBC2", "GBn", "GBn2")
ALANINE_DIPEPTIDE_FORCEFIELDS = {
    "amber96-obc": ("amber96.xml", "amber96_obc.xml"),
    "ff96-obc1": ("amber96.xml", "implicit/obc1.xml"),
}


@dataclass(frozen=True, eq=False)
class Molecule:
    """One isolated molecule: the physics (an OpenMM System) and a structure to start from.

    The potential energy must be a smooth function of all positions and nothing else, so a
    constrained, periodic or thermostatted System, virtual sites and separate fragments are
    refused.

    Args:
        name: a label.
        topology: atoms, residues and bonds.
        system: forces of the isolated molecule, without constraints and cutoff.
        positions: a reference structure, shape ``(n_atoms, 3)``, nm; kept as a read-only
            float64 copy.

    Raises:
        ValueError: the three disagree in the number of atoms, positions are not finite, or the
            System or the topology is unsuitable, with the reason and the remedy.

    Example:
        >>> molecule = alanine_dipeptide()
        >>> molecule.n_atoms, molecule.symbols[:3], molecule.bonds[:2]
        (22, ('H', 'C', 'H'), ((0, 1), (1, 2)))
    """

    name: str
    topology: Topology
    system: System
    positions: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", _positions_in_nm(self.positions))
        self.positions.setflags(write=False)
        _check_atom_counts(self)
        _check_finite(self)
        _check_system(self.system)
        _check_connected(self)

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.positions)

    @cached_property
    def masses(self) -> NDArray[np.float64]:
        """Masses in amu, shape ``(n_atoms,)``."""
        return np.array([self.system.getParticleMass(i)._value for i in range(self.n_atoms)])

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Element symbol of every atom; ``"X"`` where the topology names none."""
        return tuple(a.element.symbol if a.element else "X" for a in self.topology.atoms())

    @cached_property
    def bonds(self) -> tuple[tuple[int, int], ...]:
        """Sorted pairs ``(i, j)``, i < j, of 0-based atom indices."""
        pairs = {(bond[0].index, bond[1].index) for bond in self.topology.bonds()}
        return tuple(sorted((min(pair), max(pair)) for pair in pairs))

    @cached_property
    def mdtraj_topology(self) -> mdtraj.Topology:
        """The topology as MDTraj's."""
        import mdtraj

        return mdtraj.Topology.from_openmm(self.topology)

    @classmethod
    def from_openmm(
        cls, topology: Topology, system: System, positions: Any, name: str = "molecule"
    ) -> Molecule:
        """Wrap a ready System; a CMMotionRemover, which has no energy, is left out of the copy.

        Args:
            topology: OpenMM topology with bonds.
            system: System of the isolated molecule.
            positions: shape ``(n_atoms, 3)``, an OpenMM quantity or numbers in nm.
            name: a label.
        """
        from openmm import CMMotionRemover

        system = copy.deepcopy(system)
        for index in reversed(range(system.getNumForces())):
            if isinstance(system.getForce(index), CMMotionRemover):
                system.removeForce(index)
        return cls(name, topology, system, positions)

    @classmethod
    def from_pdb(
        cls,
        path: PathLike,
        forcefield: Sequence[str] = DEFAULT_FORCEFIELD,
        name: str | None = None,
    ) -> Molecule:
        """Read a PDB or mmCIF file (by its suffix) with all its hydrogens; first model only.

        A unit cell in the file is ignored: the molecule is isolated.

        Args:
            path: ``.pdb``, ``.ent``, ``.cif`` or ``.mmcif`` file.
            forcefield: OpenMM force-field files, OpenMM's own or paths.
            name: a label; default the file's stem.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: the file is no structure, a force-field file is unknown, or a residue
                matches no template.
        """
        from openmm.app import PDBFile, PDBxFile

        path = _existing(path)
        reader = PDBxFile if path.suffix.lower() in (".cif", ".mmcif") else PDBFile
        structure = _read(reader, path)
        positions = structure.getPositions(asNumpy=True)
        system = _parametrised(structure.topology, forcefield, str(path))
        return cls.from_openmm(structure.topology, system, positions, name or path.stem)

    @classmethod
    def from_amber(
        cls,
        prmtop: PathLike,
        inpcrd: PathLike,
        implicit_solvent: str | None = None,
        name: str | None = None,
    ) -> Molecule:
        """Read Amber topology and coordinates.

        Args:
            prmtop: topology and parameters; implicit-solvent radii are taken from it.
            inpcrd: coordinates or restart file.
            implicit_solvent: ``"HCT"``, ``"OBC1"``, ``"OBC2"``, ``"GBn"``, ``"GBn2"`` or None.
            name: a label; default the topology file's stem.
        """
        from openmm.app import AmberInpcrdFile, AmberPrmtopFile

        solvent = _implicit_solvent(implicit_solvent)
        top_path, crd_path = _existing(prmtop), _existing(inpcrd)
        top, crd = _read(AmberPrmtopFile, top_path), _read(AmberInpcrdFile, crd_path)
        system = _created(top_path, top.createSystem, implicitSolvent=solvent)
        positions = crd.getPositions(asNumpy=True)
        return cls.from_openmm(top.topology, system, positions, name or top_path.stem)

    @classmethod
    def from_gromacs(
        cls,
        top: PathLike,
        gro: PathLike,
        include_dir: PathLike | None = None,
        name: str | None = None,
    ) -> Molecule:
        """Read a Gromacs topology and coordinates; the box of the coordinates is ignored.

        Args:
            top: topology file.
            gro: coordinate file.
            include_dir: where included force-field files lie; default Gromacs' own folder.
            name: a label; default the topology file's stem.
        """
        from openmm.app import GromacsGroFile, GromacsTopFile

        top_path, gro_path = _existing(top), _existing(gro)
        options = {} if include_dir is None else {"includeDir": str(include_dir)}
        topology = _read(GromacsTopFile, top_path, **options)
        positions = _read(GromacsGroFile, gro_path).getPositions(asNumpy=True)
        system = _created(top_path, topology.createSystem)
        return cls.from_openmm(topology.topology, system, positions, name or top_path.stem)

    @classmethod
    def from_charmm(
        cls,
        psf: PathLike,
        coordinates: PathLike,
        parameters: Sequence[PathLike],
        implicit_solvent: str | None = None,
        name: str | None = None,
    ) -> Molecule:
        """Read a CHARMM or XPLOR psf with parameter files.

        Args:
            psf: topology.
            coordinates: ``.crd`` (CHARMM card) or ``.pdb`` file.
            parameters: parameter files (``.prm``, ``.rtf``, ``.str``).
            implicit_solvent: as in :meth:`from_amber`.
            name: a label; default the psf's stem.
        """
        from openmm.app import CharmmCrdFile, CharmmParameterSet, CharmmPsfFile, PDBFile

        solvent = _implicit_solvent(implicit_solvent)
        if not parameters:
            raise ValueError(
                "expected at least one CHARMM parameter file, got none; pass .prm files"
            )
        psf_path, crd_path = _existing(psf), _existing(coordinates)
        files = [str(_existing(path)) for path in parameters]
        structure = _read(CharmmPsfFile, psf_path)
        reader = PDBFile if crd_path.suffix.lower() in (".pdb", ".ent") else CharmmCrdFile
        positions = _read(reader, crd_path).positions
        parameter_set = _explained(
            lambda: CharmmParameterSet(*files),
            f"CHARMM parameters in {', '.join(files)}",
            "check their format and suffixes (.prm, .rtf, .str)",
        )
        source = f"{psf_path} with {', '.join(files)}"
        system = _created(
            source, structure.createSystem, params=parameter_set, implicitSolvent=solvent
        )
        return cls.from_openmm(structure.topology, system, positions, name or psf_path.stem)


def alanine_dipeptide(forcefield: str = "amber96-obc") -> Molecule:
    """Alanine dipeptide, ACE-ALA-NME, L, 22 atoms, energy-minimised.

    The order of the atoms is that of the ACE-ALA-NME PDB files:
    ``H1 CH3 H2 H3 C O | N H CA HA CB HB1 HB2 HB3 C O | N H C H1 H2 H3``.

    Args:
        forcefield: ``"amber96-obc"``, OpenMM's amber96.xml with amber96_obc.xml (OBC2
            parameters in a GBSAOBCForce, ACE surface term), or ``"ff96-obc1"``, the benchmarks'
            variant, amber96.xml with implicit/obc1.xml (OBC1 parameters in a CustomGBForce,
            mbondi2 radii, ACE surface term). On 128 structures the latter agrees within 1e-4
            kJ/mol with the prmtop of openmmtools 0.27 under OBC1 without cutoff and constraints.

    Example:
        >>> alanine_dipeptide().masses.sum().round(2).item()
        144.17
    """
    if forcefield not in ALANINE_DIPEPTIDE_FORCEFIELDS:
        raise ValueError(
            f"expected forcefield to be one of {', '.join(ALANINE_DIPEPTIDE_FORCEFIELDS)}, "
            f"got {forcefield!r}; for other force fields use peptide('A', forcefield=(...))"
        )
    files = ALANINE_DIPEPTIDE_FORCEFIELDS[forcefield]
    return _built("A", files, caps=True, name="alanine-dipeptide")


def peptide(
    sequence: str, forcefield: Sequence[str] = DEFAULT_FORCEFIELD, caps: bool = True
) -> Molecule:
    """A peptide of L amino acids from its sequence, energy-minimised from an extended strand.

    Args:
        sequence: one-letter codes of the 20 amino acids, ``"AAA"``. Acids and bases are charged,
            H is neutral with its proton on NE2, C is reduced (no disulfides).
        forcefield: OpenMM force-field files; they must hold the caps. Amber's do; in
            charmm36_2024.xml caps belong to the terminal residues, so that only ``"A"`` and
            uncapped peptides match.
        caps: ACE and NME at the ends; otherwise charged ends.

    Raises:
        ValueError: an unknown code, force-field file or residue.

    Example:
        >>> peptide("G", forcefield=("amber96.xml", "amber96_obc.xml")).n_atoms
        19
    """
    return _built(sequence, forcefield, caps, name=f"peptide-{sequence}")


def _built(sequence: str, forcefield: Sequence[str], caps: bool, name: str) -> Molecule:
    topology, start = peptide_structure(sequence, caps)
    system = _parametrised(topology, forcefield, f"the peptide {sequence}")
    return Molecule(name, topology, system, _minimised(system, start))


def _minimised(system: System, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions of a local minimum, the same bits every time.

    Up to 60 atoms on the Reference platform in double precision; on one CPU thread above, where
    Reference needs 20 times as long.
    """
    from openmm import Context, LocalEnergyMinimizer, Platform, VerletIntegrator

    large = len(positions) > 60
    platform = Platform.getPlatformByName("CPU" if large else "Reference")
    properties = {"Threads": "1", "DeterministicForces": "true"} if large else {}
    context = Context(system, VerletIntegrator(0.001), platform, properties)
    context.setPositions(positions)
    LocalEnergyMinimizer.minimize(context, tolerance=10.0 if large else 1.0)
    return np.asarray(context.getState(positions=True).getPositions(asNumpy=True)._value)


# Readers, with OpenMM's many error types turned into one clear line.


def _existing(path: PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file at {path}, got nothing there; check the path")
    return path


def _explained(action: Callable[[], T], expected: str, remedy: str) -> T:
    """Run ``action``; whatever OpenMM raises becomes a one-line ValueError."""
    try:
        return action()
    except Exception as error:
        text = " ".join(str(error).split()).split(" For more information")[0].rstrip(".")
        reason = (
            text if isinstance(error, ValueError) and text else f"{type(error).__name__} {text}"
        )
        raise ValueError(f"expected {expected}, got: {reason}; {remedy}") from error


def _read(reader: Callable[..., T], path: Path, **options: Any) -> T:
    return _explained(
        lambda: reader(str(path), **options),
        f"{path} to be a file for {reader.__name__}",
        "check that it is complete and of that format",
    )


def _created(source: object, create: Callable[..., System], **options: Any) -> System:
    """The System of an Amber, Gromacs or CHARMM topology."""
    return _explained(
        lambda: create(**_isolated(), **options),
        f"a complete parametrisation in {source}",
        "correct the files, or build the System yourself and use Molecule.from_openmm",
    )


def _isolated() -> dict[str, Any]:
    """Options of every createSystem for one unconstrained molecule."""
    from openmm.app import NoCutoff

    isolated = {"nonbondedMethod": NoCutoff, "constraints": None}
    return isolated | {"rigidWater": False, "removeCMMotion": False}


def _implicit_solvent(name: str | None) -> Any:
    from openmm import app

    if name is not None and name not in IMPLICIT_SOLVENTS:
        raise ValueError(
            f"expected implicit_solvent to be None or one of {', '.join(IMPLICIT_SOLVENTS)}, "
            f"got {name!r}; mind the capitals"
        )
    return None if name is None else getattr(app, name)


def _parametrised(topology: Topology, forcefield: Sequence[str], source: str) -> System:
    """The System of a topology under OpenMM force-field files."""
    from openmm.app import ForceField

    files = (forcefield,) if isinstance(forcefield, str) else tuple(map(str, forcefield))
    if not files:
        raise ValueError("expected at least one force-field file, got none; try 'amber14-all.xml'")
    field = _explained(
        lambda: ForceField(*files),
        f"OpenMM force-field files in {', '.join(files)}",
        "name files that OpenMM ships, such as 'amber14-all.xml', or give paths to valid ones",
    )
    return _explained(
        lambda: field.createSystem(topology, **_isolated()),
        f"every residue of {source} to match a template of {', '.join(files)}",
        "add missing hydrogens with openmm.app.Modeller, remove solvent and ions, or choose a "
        "force field that knows the residue",
    )


# Validation.


def _positions_in_nm(positions: Any) -> NDArray[np.float64]:
    from openmm import unit

    array = np.array(in_units(positions, unit.nanometer), dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(
            f"expected positions of shape (n_atoms, 3) in nm, got {array.shape}; "
            "pass one structure, an OpenMM quantity or an array"
        )
    return array


def _check_atom_counts(molecule: Molecule) -> None:
    counts = (
        molecule.topology.getNumAtoms(),
        molecule.system.getNumParticles(),
        len(molecule.positions),
    )
    if len(set(counts)) > 1 or counts[0] < 2:
        raise ValueError(
            "expected the same number of atoms (2 or more) in topology, system and positions, "
            "got {}, {} and {}; take all three from the same molecule".format(*counts)
        )


def _check_finite(molecule: Molecule) -> None:
    bad = np.flatnonzero(~np.isfinite(molecule.positions).all(axis=1))
    if len(bad):
        raise ValueError(
            f"expected finite positions, got NaN or inf at atoms {_first(bad.tolist())}; "
            "correct the structure file or the array"
        )


def _check_system(system: System) -> None:
    """Refuse what makes the energy more, or less, than a function of all positions."""
    n = system.getNumParticles()
    if system.getNumConstraints():
        raise ValueError(
            f"expected a System without constraints, got {system.getNumConstraints()}: on a "
            "constrained surface the density of positions does not exist; create the System with "
            "constraints=None and rigidWater=False"
        )
    if system.usesPeriodicBoundaryConditions():
        raise ValueError(
            "expected an isolated molecule, got a System with periodic boundary conditions: its "
            "energy has images and no bounded coordinates; create it with nonbondedMethod=NoCutoff "
            "and implicit solvent"
        )
    virtual = [i for i in range(n) if system.isVirtualSite(i)]
    fixed = [i for i in range(n) if system.getParticleMass(i)._value == 0 and i not in virtual]
    if virtual or fixed:
        what = "virtual sites" if virtual else "massless (frozen) particles"
        raise ValueError(
            f"expected every particle to move, got {what} at {_first(virtual or fixed)}: they are "
            "no degrees of freedom; use a model without them and give every atom its mass"
        )
    _check_forces(system)


def _check_forces(system: System) -> None:
    for index in range(system.getNumForces()):
        kind = type(system.getForce(index)).__name__
        if kind.startswith(("MonteCarlo", "Andersen", "CMMotion", "RPMD", "DrudeNose")):
            raise ValueError(
                f"expected forces that are energies, got {kind} (force {index}), which belongs to "
                "a simulation; remove it with system.removeForce, temperature is set elsewhere"
            )


def _check_connected(molecule: Molecule) -> None:
    """Refuse several fragments: rigid motion between them is unbounded."""
    neighbours: list[list[int]] = [[] for _ in range(molecule.n_atoms)]
    for i, j in molecule.bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    seen, stack = {0}, [0]
    while stack:
        new = [j for j in neighbours[stack.pop()] if j not in seen]
        seen.update(new)
        stack.extend(new)
    apart = [i for i in range(molecule.n_atoms) if i not in seen]
    if apart:
        names = list(molecule.topology.atoms())
        labels = [f"{i} ({names[i].residue.name} {names[i].name})" for i in apart]
        raise ValueError(
            f"expected one connected molecule, got {len(apart)} atoms not bonded to the first "
            f"fragment: {_first(labels)}; remove solvent and ions, or add missing bonds with "
            "topology.createStandardBonds(), topology.addBond or CONECT records"
        )


def _first(items: Sequence[object], limit: int = 5) -> str:
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
