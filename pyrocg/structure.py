"""Observables of structure: conformations, contacts, hydrogen bonds, RMSD, surface, couplings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrocg.atoms import (
    Backbone,
    atom_indices,
    backbone,
    heavy_atoms,
    residue_label,
    trajectory,
)
from pyrocg.geometry import phi, psi
from pyrocg.graphs import neighbours
from pyrocg.observables import Observable, population, window

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = [
    "conformations",
    "contact",
    "hydrogen_bond",
    "hydrogen_bonds",
    "j_coupling",
    "native_contacts",
    "rmsd",
    "solvent_accessible_surface",
]

Array: TypeAlias = NDArray[np.float64]

# phi and psi in degrees, Schöberl et al. (2020)
_CONFORMATIONS = {
    "alpha": ((-70.0, -50.0), (-60.0, -40.0)),
    "beta1": ((-180.0, -100.0), (105.0, 205.0)),
    "beta2": ((-100.0, -20.0), (90.0, 210.0)),
}
_KARPLUS = ("Bax2007", "Bax1997", "Ruterjans1999")  # of MDTraj
_BOND_LENGTH, _BOND_ANGLE = 0.25, np.deg2rad(120.0)  # Baker and Hubbard's


def conformations(molecule: Molecule, residue: int = 0) -> tuple[Observable, ...]:
    """Populations of three classes of secondary structure, windows of phi and psi.

    ``conformation_alpha``: phi in (-70, -50), psi in (-60, -40) degrees; ``conformation_beta1``:
    phi -140 ± 40, psi 155 ± 50; ``conformation_beta2``: phi -60 ± 40, psi 150 ± 60. They are parts
    of the basins of :func:`~pyrocg.geometry.basin_populations`, and leave gaps between them.

    Source: Schöberl, Zabaras and Koutsourelakis (2020), arXiv:2002.10148.

    Args:
        molecule: a peptide.
        residue: which of the residues that have phi and psi.

    Raises:
        ValueError: there is no such residue.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> [c.name for c in conformations(alanine_dipeptide())]
        ['conformation_alpha', 'conformation_beta1', 'conformation_beta2']
    """
    angles = phi(molecule, residue), psi(molecule, residue)
    suffix = backbone(molecule, residue).suffix

    def conformation(name: str) -> Observable:
        ranges = [
            (angle, np.deg2rad(low), np.deg2rad(high))
            for angle, (low, high) in zip(angles, _CONFORMATIONS[name], strict=True)
        ]
        return window(f"conformation_{name}{suffix}", *ranges)

    return tuple(conformation(name) for name in _CONFORMATIONS)


def contact(
    molecule: Molecule, residues: tuple[int, int], cutoff: float = 0.45, name: str | None = None
) -> Observable:
    """Whether the closest heavy atoms of two residues are nearer than ``cutoff`` in nm.

    For two atoms: ``window("contact", (distance(molecule, atoms), 0, cutoff))``.

    Args:
        molecule: the molecule.
        residues: their two 0-based indices, caps included.
        cutoff: in nm.
        name: default ``contact_i_j``.

    Raises:
        ValueError: there are no two such residues.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> bool(contact(molecule, (0, 2), cutoff=0.6)(molecule.positions[None])[0])
        True
    """
    import mdtraj

    count = molecule.mdtraj_topology.n_residues
    if len(set(residues)) != 2 or not all(0 <= r < count for r in residues):
        raise ValueError(
            f"expected two different residues from 0 to {count - 1}, got {tuple(residues)}"
        )

    def near(x: Array) -> NDArray[np.bool_]:
        distances, _ = mdtraj.compute_contacts(
            trajectory(molecule, x), [residues], "closest-heavy", periodic=False
        )
        return distances[:, 0] < cutoff

    return population(name or f"contact_{residues[0]}_{residues[1]}", near)


def native_contacts(
    molecule: Molecule,
    reference: ArrayLike | None = None,
    *,
    cutoff: float = 0.45,
    min_separation: int = 4,
    name: str = "native_contacts",
) -> Observable:
    r"""Fraction of native contacts, between 0 and 1.

    .. math:: Q = \frac1N \sum_{(i,j)} \frac{1}{1 + e^{\beta (r_{ij} - \lambda r^0_{ij})}},
              \quad \beta = 50\,\mathrm{nm}^{-1}, \lambda = 1.8

    over the pairs of heavy atoms nearer than ``cutoff`` in the reference, in residues that are far
    enough apart in the chain. Source: Best, Hummer and Eaton (2013), "Native contacts determine
    protein folding mechanisms in atomistic simulations", eq. 1.

    Args:
        molecule: the molecule.
        reference: shape ``(n_atoms, 3)``, nm; default the molecule's positions.
        cutoff: in nm.
        min_separation: smallest difference of the residues' numbers.
        name: key in the results.

    Raises:
        ValueError: the reference has no such contact.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> native = native_contacts(molecule, cutoff=0.6, min_separation=2)
        >>> round(float(native(molecule.positions[None])[0]), 3)
        1.0
    """
    import mdtraj

    start = molecule.positions if reference is None else np.asarray(reference, dtype=np.float64)
    native = trajectory(molecule, start[None])
    residue = [atom.residue.index for atom in molecule.mdtraj_topology.atoms]
    heavy = heavy_atoms(molecule)
    apart = [
        (i, j) for i in heavy for j in heavy if i < j and residue[j] - residue[i] >= min_separation
    ]
    lengths = mdtraj.compute_distances(native, apart, periodic=False)[0] if apart else np.empty(0)
    pairs = [pair for pair, length in zip(apart, lengths, strict=True) if length < cutoff]
    if not pairs:
        raise ValueError(
            f"expected contacts nearer than {cutoff} nm in the reference, between residues "
            f"{min_separation} or more apart, got none; lower min_separation or raise cutoff"
        )
    limits = 1.8 * lengths[lengths < cutoff].astype(np.float64)

    def fraction(x: Array) -> Array:
        r = mdtraj.compute_distances(trajectory(molecule, x), pairs, periodic=False)
        return (1.0 / (1.0 + np.exp(np.clip(50.0 * (r - limits), None, 500.0)))).mean(1)

    return Observable(name, "", fraction)


def hydrogen_bond(
    molecule: Molecule, atoms: tuple[int, int, int], name: str | None = None
) -> Observable:
    """Whether a hydrogen bond is there: H...A below 0.25 nm and D-H...A above 120 degrees.

    Source: Baker and Hubbard (1984), "Hydrogen bonding in globular proteins".

    Args:
        molecule: the molecule.
        atoms: 0-based indices of donor D, hydrogen H and acceptor A.
        name: default ``hydrogen_bond_h_a``.

    Raises:
        ValueError: these are not three different atoms of the molecule.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> bool(hydrogen_bond(molecule, (16, 17, 5))(molecule.positions[None])[0])
        False
    """
    donor, h, a = atom_indices(molecule, atoms, 3)

    def bonded(x: Array) -> NDArray[np.bool_]:
        return _bonded(molecule, x, [(donor, h, a)])[:, 0]

    return population(name or f"hydrogen_bond_{h}_{a}", bonded)


def hydrogen_bonds(molecule: Molecule, name: str = "hydrogen_bonds") -> Observable:
    """Number of hydrogen bonds within the molecule, from N-H and O-H to N and O.

    By the criterion of :func:`hydrogen_bond`; the same bonds as ``mdtraj.baker_hubbard`` counts.

    Args:
        molecule: the molecule.
        name: key in the results.

    Raises:
        ValueError: the molecule has no donor or no acceptor.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> int(hydrogen_bonds(molecule)(molecule.positions[None])[0])
        0
    """
    symbols = molecule.symbols
    polar = [i for i, symbol in enumerate(symbols) if symbol in ("N", "O")]
    pairs = [
        (d, h)
        for bond in molecule.bonds
        for d, h in (bond, bond[::-1])
        if d in polar and symbols[h] == "H"
    ]
    triples = [(d, h, a) for d, h in pairs for a in polar if a != d]
    if not triples:
        raise ValueError(f"expected donors N-H or O-H and another N or O in {molecule.name}")
    return Observable(name, "", lambda x: _bonded(molecule, x, triples).sum(1))


def rmsd(
    molecule: Molecule,
    reference: ArrayLike | None = None,
    atoms: str | Sequence[int] = "heavy",
    name: str = "rmsd",
) -> Observable:
    """Root-mean-square deviation in nm from a structure, after optimal superposition.

    Args:
        molecule: the molecule.
        reference: shape ``(n_atoms, 3)``, nm; default the molecule's positions.
        atoms: ``"heavy"``, ``"all"``, or at least three 0-based indices.
        name: key in the results.

    Raises:
        ValueError: ``atoms`` is another word, or there are fewer than three, or the reference has
            another shape.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> round(float(rmsd(molecule)(1.01 * molecule.positions[None])[0]), 4)
        0.0024
    """
    import mdtraj

    if isinstance(atoms, str):
        if atoms not in ("heavy", "all"):
            raise ValueError(f"expected atoms to be 'heavy', 'all' or indices, got {atoms!r}")
        chosen = heavy_atoms(molecule) if atoms == "heavy" else list(range(molecule.n_atoms))
    else:
        chosen = list(atom_indices(molecule, atoms))
    if len(chosen) < 3:
        raise ValueError(f"expected at least 3 atoms to superpose, got {len(chosen)}; choose more")
    start = molecule.positions if reference is None else np.asarray(reference, dtype=np.float64)
    target = trajectory(molecule, start[None])
    return Observable(
        name, "nm", lambda x: mdtraj.rmsd(trajectory(molecule, x), target, atom_indices=chosen)
    )


def solvent_accessible_surface(
    molecule: Molecule,
    residue: int | None = None,
    probe_radius: float = 0.14,
    name: str | None = None,
) -> Observable:
    """Solvent-accessible surface in nm², of the molecule or of one residue.

    Source: Shrake and Rupley (1973), "Environment and exposure to solvent of protein atoms", with
    960 points on each atom.

    Args:
        molecule: the molecule.
        residue: 0-based index, caps included; default all.
        probe_radius: of the solvent, nm.
        name: default ``surface``, or ``surface_ALA2``.

    Raises:
        ValueError: there is no such residue.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> surface = solvent_accessible_surface(molecule)
        >>> round(float(surface(molecule.positions[None])[0]), 1), surface.unit
        (3.6, 'nm²')
    """
    import mdtraj

    residues = list(molecule.mdtraj_topology.residues)
    if residue is not None and not 0 <= residue < len(residues):
        raise ValueError(f"expected a residue from 0 to {len(residues) - 1}, got {residue}")
    chosen = residues if residue is None else [residues[residue]]
    own = [atom.index for part in chosen for atom in part.atoms]
    label = "" if residue is None else f"_{residue_label(molecule, own[0])}"

    def surface(x: Array) -> Array:
        frames = trajectory(molecule, x)
        return mdtraj.shrake_rupley(frames, probe_radius=probe_radius)[:, own].sum(1)

    return Observable(name or "surface" + label, "nm²", surface)


def j_coupling(
    molecule: Molecule, residue: int = 0, model: str = "Bax2007", name: str | None = None
) -> Observable:
    r"""Scalar coupling :math:`{}^3J(H_N, H_\alpha)` in Hz, by a Karplus curve.

    .. math:: J = A \cos^2(\phi - 60^\circ) + B \cos(\phi - 60^\circ) + C

    Source: Vögeli, Ying, Grishaev and Bax (2007), "Limits on variations in protein backbone
    dynamics from precise measurements of scalar couplings", and others by ``model``.

    Args:
        molecule: a peptide.
        residue: which of the residues that have phi and psi.
        model: ``"Bax2007"``, ``"Bax1997"`` or ``"Ruterjans1999"``, as MDTraj names them.
        name: default ``j_coupling``, with the residue if there are several.

    Raises:
        ValueError: there is no such residue or model, or the residue has no such coupling: proline
            has no hydrogen on N, and in a D residue :math:`H_\alpha` is elsewhere. Of glycine it is
            the one that is in the place of an L residue's.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> molecule = alanine_dipeptide()
        >>> round(float(j_coupling(molecule)(molecule.positions[None])[0]), 1)
        8.4
    """
    import mdtraj

    if model not in _KARPLUS:
        raise ValueError(f"expected one of {', '.join(_KARPLUS)}, got {model!r}")
    atoms = backbone(molecule, residue)
    _check_coupling(molecule, atoms)

    def coupling(x: Array) -> Array:
        indices, values = mdtraj.compute_J3_HN_HA(trajectory(molecule, x), model=model)
        (place,) = np.flatnonzero((indices == atoms.phi).all(1))
        return values[:, place]

    return Observable(name or "j_coupling" + atoms.suffix, "Hz", coupling)


def _check_coupling(molecule: Molecule, atoms: Backbone) -> None:
    """Refuse residues without a hydrogen on N, and D residues."""
    _, n, alpha, c = atoms.phi
    label, x = residue_label(molecule, n), molecule.positions
    around = neighbours(molecule.n_atoms, molecule.bonds)
    if not any(molecule.symbols[i] == "H" for i in around[n]):
        raise ValueError(f"expected a residue with a hydrogen on N, got {label}; choose another")
    hydrogens = [i for i in around[alpha] if molecule.symbols[i] == "H"]
    side = np.cross(x[n] - x[alpha], x[c] - x[alpha])
    if len(hydrogens) == 1 and side @ (x[hydrogens[0]] - x[alpha]) > 0:
        raise ValueError(
            f"expected an L residue, got {label} of the other hand; its coupling is a function of "
            "phi + 60 degrees: make it by Observable and phi"
        )


def _bonded(molecule: Molecule, x: Array, triples: list[tuple[int, int, int]]) -> NDArray[np.bool_]:
    """Which hydrogen bonds (donor, hydrogen, acceptor) are there, (n, n_triples)."""
    import mdtraj

    frames = trajectory(molecule, x)
    lengths = mdtraj.compute_distances(frames, [t[1:] for t in triples], periodic=False)
    angles = mdtraj.compute_angles(frames, triples, periodic=False)
    return (lengths < _BOND_LENGTH) & (angles > _BOND_ANGLE)
