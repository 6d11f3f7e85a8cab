"""Molecules: a topology, the OpenMM System that gives its energy, and reference positions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrocg.peptides import peptide_structure
from pyrocg.readers import (
    PathLike,
    created,
    existing,
    explained,
    implicit_solvent_model,
    parametrised,
    read,
)
from pyrocg.suitability import (
    check_atom_counts,
    check_connected,
    check_finite,
    check_system,
    positions_in_nm,
)

if TYPE_CHECKING:
    import mdtraj
    from openmm import System
    from openmm.app import Topology

__all__ = ["Molecule", "alanine_dipeptide", "peptide"]

DEFAULT_FORCEFIELD = ("amber14-all.xml", "implicit/obc2.xml")
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
        object.__setattr__(self, "positions", positions_in_nm(self.positions))
        self.positions.setflags(write=False)
        check_atom_counts(self.topology, self.system, self.positions)
        check_finite(self.positions)
        check_system(self.system)
        check_connected(self.topology)

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

        Raises:
            ValueError: as :class:`Molecule`.
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

        path = existing(path)
        reader = PDBxFile if path.suffix.lower() in (".cif", ".mmcif") else PDBFile
        structure = read(reader, path)
        positions = structure.getPositions(asNumpy=True)
        system = parametrised(structure.topology, forcefield, str(path))
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

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is not of its format, or the solvent is unknown.
        """
        from openmm.app import AmberInpcrdFile, AmberPrmtopFile

        solvent = implicit_solvent_model(implicit_solvent)
        top_path, crd_path = existing(prmtop), existing(inpcrd)
        top, crd = read(AmberPrmtopFile, top_path), read(AmberInpcrdFile, crd_path)
        system = created(top_path, top.createSystem, implicitSolvent=solvent)
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

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is not of its format, or parameters are missing.
        """
        from openmm.app import GromacsGroFile, GromacsTopFile

        top_path, gro_path = existing(top), existing(gro)
        options = {} if include_dir is None else {"includeDir": str(include_dir)}
        topology = read(GromacsTopFile, top_path, **options)
        positions = read(GromacsGroFile, gro_path).getPositions(asNumpy=True)
        system = created(top_path, topology.createSystem)
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

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: there is no parameter file, a file is not of its format, parameters are
                missing, or the solvent is unknown.
        """
        from openmm.app import CharmmCrdFile, CharmmParameterSet, CharmmPsfFile, PDBFile

        solvent = implicit_solvent_model(implicit_solvent)
        if not parameters:
            raise ValueError(
                "expected at least one CHARMM parameter file, got none; pass .prm files"
            )
        psf_path, crd_path = existing(psf), existing(coordinates)
        files = [str(existing(path)) for path in parameters]
        structure = read(CharmmPsfFile, psf_path)
        reader = PDBFile if crd_path.suffix.lower() in (".pdb", ".ent") else CharmmCrdFile
        positions = read(reader, crd_path).positions
        parameter_set = explained(
            lambda: CharmmParameterSet(*files),
            f"CHARMM parameters in {', '.join(files)}",
            "check their format and suffixes (.prm, .rtf, .str)",
        )
        source = f"{psf_path} with {', '.join(files)}"
        system = created(
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

    Raises:
        ValueError: another force field.

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
    system = parametrised(topology, forcefield, f"the peptide {sequence}")
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
