"""Peptides from their sequence: a topology with hydrogens and ideal start coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from openmm.app import Topology

__all__ = ["RESIDUES", "peptide_structure"]

Array: TypeAlias = NDArray[np.float64]
Atoms: TypeAlias = dict[str, Array]
"""Positions (3,) in nm by atom name."""

RESIDUES: dict[str, str] = {
    **{"A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIS"},
    **{"I": "ILE", "K": "LYS", "L": "LEU", "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN"},
    **{"R": "ARG", "S": "SER", "T": "THR", "V": "VAL", "W": "TRP", "Y": "TYR"},
}
"""Residue name of every supported one-letter code."""

# Heavy side-chain atoms beyond CB, in building order. One row places an atom A bonded to B:
# A B C D, length A-B (0.1 nm), angle A-B-C and dihedral A-B-C-D (degrees), hydrogens on A.
# Aromatic rings are regular polygons, so that they close exactly.
SIDE_CHAINS: dict[str, tuple[str, ...]] = {
    "ALA": (),
    "GLY": (),
    "CYS": ("SG CB CA N 1.81 113.8 -62 1",),
    "SER": ("OG CB CA N 1.42 110.8 -63 1",),
    "THR": ("OG1 CB CA N 1.43 109.2 60 1", "CG2 CB CA N 1.53 111.1 -60 3"),
    "VAL": ("CG1 CB CA N 1.53 110.7 177 3", "CG2 CB CA N 1.53 110.4 -63 3"),
    "ILE": (
        "CG1 CB CA N 1.53 110.7 -60 2",
        "CG2 CB CA N 1.53 110.4 178 3",
        "CD1 CG1 CB CA 1.52 114.0 170 3",
    ),
    "LEU": (
        "CG CB CA N 1.53 116.1 -60 1",
        "CD1 CG CB CA 1.52 110.3 175 3",
        "CD2 CG CB CA 1.52 110.6 -65 3",
    ),
    "MET": (
        "CG CB CA N 1.52 113.7 -64 2",
        "SD CG CB CA 1.81 112.7 180 0",
        "CE SD CG CB 1.79 100.6 180 3",
    ),
    "LYS": (
        "CG CB CA N 1.52 113.8 -65 2",
        "CD CG CB CA 1.52 111.8 180 2",
        "CE CD CG CB 1.52 111.7 180 2",
        "NZ CE CD CG 1.49 112.0 180 3",
    ),
    "ARG": (
        "CG CB CA N 1.52 113.8 -65 2",
        "CD CG CB CA 1.52 111.8 180 2",
        "NE CD CG CB 1.46 111.7 180 1",
        "CZ NE CD CG 1.33 124.8 180 0",
        "NH1 CZ NE CD 1.33 120.6 0 2",
        "NH2 CZ NE CD 1.33 119.6 180 2",
    ),
    "ASP": (
        "CG CB CA N 1.52 113.1 -66 0",
        "OD1 CG CB CA 1.25 119.2 -46 0",
        "OD2 CG CB CA 1.25 118.2 134 0",
    ),
    "ASN": (
        "CG CB CA N 1.52 112.6 -66 0",
        "OD1 CG CB CA 1.23 120.9 -58 0",
        "ND2 CG CB CA 1.33 116.5 122 2",
    ),
    "GLU": (
        "CG CB CA N 1.52 113.8 -64 2",
        "CD CG CB CA 1.52 113.3 180 0",
        "OE1 CD CG CB 1.25 119.0 -6 0",
        "OE2 CD CG CB 1.25 118.1 174 0",
    ),
    "GLN": (
        "CG CB CA N 1.52 113.8 -60 2",
        "CD CG CB CA 1.52 112.8 180 0",
        "OE1 CD CG CB 1.23 120.9 -50 0",
        "NE2 CD CG CB 1.33 116.5 130 2",
    ),
    "HIS": (
        "CG CB CA N 1.49 113.7 -63 0",
        "ND1 CG CB CA 1.37 126.0 -76 0",
        "CD2 CG CB CA 1.37 126.0 104 1",
        "CE1 ND1 CG CB 1.37 108.0 180 1",
        "NE2 CD2 CG CB 1.37 108.0 180 1",
    ),
    "PHE": (
        "CG CB CA N 1.50 113.8 -65 0",
        "CD1 CG CB CA 1.39 120.0 93 1",
        "CD2 CG CB CA 1.39 120.0 -87 1",
        "CE1 CD1 CG CB 1.39 120.0 180 1",
        "CE2 CD2 CG CB 1.39 120.0 180 1",
        "CZ CE1 CD1 CG 1.39 120.0 0 1",
    ),
    "TYR": (
        "CG CB CA N 1.50 113.8 -65 0",
        "CD1 CG CB CA 1.39 120.0 93 1",
        "CD2 CG CB CA 1.39 120.0 -87 1",
        "CE1 CD1 CG CB 1.39 120.0 180 1",
        "CE2 CD2 CG CB 1.39 120.0 180 1",
        "CZ CE1 CD1 CG 1.39 120.0 0 0",
        "OH CZ CE1 CD1 1.37 120.0 180 1",
    ),
    "TRP": (
        "CG CB CA N 1.50 114.1 -66 0",
        "CD1 CG CB CA 1.40 126.0 96 1",
        "CD2 CG CB CA 1.40 126.0 -84 0",
        "NE1 CD1 CG CB 1.40 108.0 180 1",
        "CE2 CD2 CG CB 1.40 108.0 180 0",
        "CE3 CD2 CG CB 1.40 132.0 0 1",
        "CZ2 CE2 CD2 CG 1.40 120.0 180 1",
        "CZ3 CE3 CD2 CG 1.40 120.0 180 1",
        "CH2 CZ2 CE2 CD2 1.40 120.0 0 1",
    ),
    "PRO": ("CG CB CA N 1.49 104.2 29.6 2", "CD CG CB CA 1.50 105.0 -34.8 2"),
}
CB_HYDROGENS = {"ALA": 3, "GLY": 0, "THR": 1, "VAL": 1, "ILE": 1}  # the others have 2
PSI, PHI, PHI_PROLINE, OMEGA = 140.0, -120.0, -65.0, 180.0


def peptide_structure(sequence: str, caps: bool = True) -> tuple[Topology, Array]:
    """Return the topology of a peptide and start coordinates (n_atoms, 3) in nm.

    An extended strand of L amino acids with trans peptide bonds and ideal bonds, angles and
    side-chain rotamers, to be energy-minimised. Acids and bases are charged, histidine carries
    its proton on NE2, cysteines are reduced. Every heavy atom is followed by its hydrogens.

    Args:
        sequence: one-letter codes, ``"AAA"``.
        caps: ACE and NME at the ends; otherwise charged ends (NH3+ and COO-).

    Raises:
        ValueError: the sequence is empty or holds an unknown code.

    Example:
        >>> topology, positions = peptide_structure("GA")
        >>> [residue.name for residue in topology.residues()], positions.shape
        (['ACE', 'GLY', 'ALA', 'NME'], (29, 3))
    """
    from openmm.app import Topology, element

    names = _residue_names(sequence, caps)
    residues = _place(names)
    topology = Topology()
    chain = topology.addChain()
    for index, (name, atoms) in enumerate(zip(names, residues, strict=True)):
        residue = topology.addResidue(name, chain, str(index + 1))
        for atom in atoms:
            topology.addAtom(atom, element.get_by_symbol(atom[0]), residue)
    topology.createStandardBonds()
    return topology, np.array([x for atoms in residues for x in atoms.values()])


def _residue_names(sequence: str, caps: bool) -> list[str]:
    unknown = sorted({code for code in sequence if code not in RESIDUES})
    if not sequence or unknown:
        raise ValueError(
            f"expected a sequence of the one-letter codes {''.join(RESIDUES)}, "
            f"got {sequence!r}; write upper-case letters without separators"
        )
    names = [RESIDUES[code] for code in sequence]
    return ["ACE", *names, "NME"] if caps else names


def _place(names: list[str]) -> list[Atoms]:
    """Positions of all atoms, by residue, in the order of the topology."""
    residues = _backbone(names)
    last = len(names) - 1
    for index, (name, atoms) in enumerate(zip(names, residues, strict=True)):
        before = residues[index - 1]["C"] if index else None
        after = residues[index + 1]["N"] if index < last else None
        if name != "NME":
            _carbonyl(atoms, after)
        hydrogens = _hydrogen_counts(name, first=before is None)
        if name not in ("ACE", "NME"):
            _side_chain(name, atoms)
        residues[index] = _with_hydrogens(name, atoms, hydrogens, before, after)
    return residues


def _backbone(names: list[str]) -> list[Atoms]:
    """N, CA and C of every residue as one chain (CH3 and C of ACE, N and C of NME)."""
    # Length to the previous atom (nm), and angle there (degrees), of each kind of atom.
    geometry = {"N": (0.1335, 116.6), "CA": (0.1449, 121.9), "C": (0.1522, 110.0)}
    residues: list[Atoms] = []
    chain: list[Array] = []
    for name in names:
        atoms: Atoms = {}
        phi = PHI_PROLINE if name == "PRO" else PHI
        kinds = {"ACE": "CA C", "NME": "N CA"}.get(name, "N CA C").split()
        for kind in kinds:
            length, angle = geometry[kind]
            dihedral = {"N": PSI, "CA": OMEGA, "C": phi}[kind]
            chain.append(_next(chain, length, angle, dihedral))
            label = {("ACE", "CA"): "CH3", ("NME", "CA"): "C"}.get((name, kind), kind)
            atoms[label] = chain[-1]
        residues.append(atoms)
    return residues


def _next(chain: list[Array], length: float, angle: float, dihedral: float) -> Array:
    """The next atom of a chain; the first atoms fix the frame."""
    padding = [np.array([-0.1, -0.1, 0.0]), np.array([-0.1, 0.0, 0.0]), np.zeros(3)]
    if not chain:
        return padding[-1]
    great, grand, parent = [*padding, *chain[1:]][-3:]
    return _bonded(parent, grand, great, length, angle, dihedral)


def _bonded(b: Array, c: Array, d: Array, length: float, angle: float, dihedral: float) -> Array:
    """Atom a at distance ``length`` from b, with angle a-b-c and dihedral a-b-c-d in degrees."""
    theta, chi = np.deg2rad(angle), np.deg2rad(dihedral)
    axis = _unit(b - c)
    normal = _unit(np.cross(c - d, axis))
    inplane = np.cross(normal, axis)
    step = -np.cos(theta) * axis + np.sin(theta) * (np.cos(chi) * inplane + np.sin(chi) * normal)
    return b + length * step


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def _carbonyl(atoms: Atoms, after: Array | None) -> None:
    """O of a carbonyl; O and OXT of a charged C terminus."""
    carbon, alpha = atoms["C"], atoms.get("CA", atoms.get("CH3"))
    assert alpha is not None
    if after is None:
        for name, dihedral in (("O", PSI - 180.0), ("OXT", PSI)):
            atoms[name] = _bonded(carbon, alpha, atoms["N"], 0.125, 117.0, dihedral)
    else:
        atoms["O"] = carbon - 0.123 * _unit(_unit(alpha - carbon) + _unit(after - carbon))


def _side_chain(name: str, atoms: Atoms) -> None:
    """CB on the L side and the heavy atoms of :data:`SIDE_CHAINS`."""
    if name == "GLY":
        return
    improper = 115.0 if name == "PRO" else 122.7
    atoms["CB"] = _bonded(atoms["CA"], atoms["C"], atoms["N"], 0.153, 110.5, improper)
    for row in SIDE_CHAINS[name]:
        atom, b, c, d, length, angle, dihedral, _ = row.split()
        atoms[atom] = _bonded(
            atoms[b], atoms[c], atoms[d], 0.1 * float(length), float(angle), float(dihedral)
        )


def _hydrogen_counts(name: str, first: bool) -> dict[str, int]:
    """How many hydrogens each heavy atom carries."""
    if name == "ACE":
        return {"CH3": 3}
    if name == "NME":
        return {"N": 1, "C": 3}
    counts = {"N": 0 if name == "PRO" else 1, "CA": 2 if name == "GLY" else 1}
    counts["N"] += 2 if first else 0
    counts["CB"] = CB_HYDROGENS.get(name, 2)
    return counts | {row.split()[0]: int(row.split()[-1]) for row in SIDE_CHAINS[name]}


def _with_hydrogens(
    name: str, heavy: Atoms, counts: dict[str, int], before: Array | None, after: Array | None
) -> Atoms:
    """All atoms of a residue in order: each heavy atom and its hydrogens, C and O last."""
    order = sorted(heavy, key=lambda atom: atom in ("C", "O", "OXT") and name != "NME")
    atoms: Atoms = {}
    for atom in order:
        hydrogens = _hydrogen_names(name, atom, counts.get(atom, 0))
        outside = {"N": before, "C": after}.get(atom)
        positions = _hydrogen_positions(atom, heavy, outside, len(hydrogens))
        placed = dict(zip(hydrogens, positions, strict=True))
        if name == "ACE" and atom == "CH3":  # the order of the ACE-ALA-NME PDB files
            atoms["H1"] = placed.pop("H1")
        atoms[atom] = heavy[atom]
        atoms.update(placed)
    return atoms


def _hydrogen_names(residue: str, atom: str, count: int) -> list[str]:
    """PDB version 3 names of the hydrogens on an atom."""
    if atom == "N" and count > 1:
        return ["H2", "H3"] if residue == "PRO" else ["H", "H2", "H3"]
    stem = "H" if residue in ("ACE", "NME") else "H" + atom[1:]
    first = 2 if count == 2 and atom[0] == "C" else 1
    return [stem] if count == 1 else [f"{stem}{first + i}" for i in range(count)]


def _hydrogen_positions(atom: str, heavy: Atoms, outside: Array | None, count: int) -> list[Array]:
    """Hydrogens completing a tetrahedron (4 neighbours), a plane (3) or a bend (2)."""
    if count == 0:
        return []
    x = heavy[atom]
    length = {"C": 0.109, "N": 0.101, "O": 0.096, "S": 0.134}[atom[0]]
    neighbours = _neighbours(x, heavy)
    bonded = neighbours + ([outside] if outside is not None else [])
    units = [_unit(y - x) for y in bonded]
    opposite = -_unit(np.sum(units, axis=0))
    if len(units) == 1:
        angle = {1: 109.5, 2: 120.0, 3: 109.5}[count]
        parent = bonded[0]
        grand = next(y for y in _second_shell(parent, x, heavy))
        dihedrals = 180.0 + 360.0 / count * np.arange(count)
        return [_bonded(x, parent, grand, length, angle, chi) for chi in dihedrals]
    if count == 2:
        normal = _unit(np.cross(units[0], units[1]))
        return [x + length * (0.577 * opposite + s * 0.816 * normal) for s in (1.0, -1.0)]
    return [x + length * opposite]


def _neighbours(x: Array, heavy: Atoms) -> list[Array]:
    """Heavy atoms of the residue within bonding distance (0.2 nm) of x."""
    return [y for y in heavy.values() if 0.01 < np.linalg.norm(y - x) < 0.2]


def _second_shell(parent: Array, x: Array, heavy: Atoms) -> list[Array]:
    """Heavy neighbours of ``parent`` other than x; a point off the axis if there are none."""
    others = [y for y in _neighbours(parent, heavy) if np.linalg.norm(y - x) > 0.01]
    return others or [parent + np.array([0.03, 0.1, 0.05])]
