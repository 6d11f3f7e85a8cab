"""Molecules, force fields and structures that energies are timed on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyrocg.molecules import Molecule, peptide

MOLECULES = {"ALA-2": ("A", True), "ALA-6": ("AAAAA", True), "chignolin": ("GYDPETGTWG", False)}
"""Sequence, and whether it has caps. Chignolin is an extended strand, minimised: with all pairs
computed, the fold costs nothing."""
FAMILIES = {
    "amber96-obc": ("amber96.xml", "amber96_obc.xml"),
    "ff14SB-obc2": ("amber14-all.xml", "implicit/obc2.xml"),
    "ff14SB-gbn2": ("amber14-all.xml", "implicit/gbn2.xml"),
    "ff19SB-gbn2": ("amber19-all.xml", "implicit/gbn2.xml"),
    "charmm36-obc2": ("charmm36_2024.xml", "implicit/obc2.xml"),
}
ALANINES = (0, 1, 5, 12, 24, 48)
"""n in ACE-(ALA)n-NME, 12 + 10 n atoms."""


def structures(molecule: Molecule, batch: int) -> np.ndarray:
    """The reference structure with 5 pm of noise, exact in float32 so that all see the same."""
    noise = np.random.default_rng(0).standard_normal((batch, molecule.n_atoms, 3))
    return (molecule.positions + 0.005 * noise).astype(np.float32).astype(np.float64)


def built(name: str, family: str) -> Molecule:
    sequence, caps = MOLECULES[name]
    return peptide(sequence, FAMILIES[family], caps)


def polyalanine(n: int, family: str) -> Molecule:
    """ACE-(ALA)n-NME."""
    if n == 0:
        data = Path(__file__).with_name("data") / "ace-nme.pdb"
        return Molecule.from_pdb(data, FAMILIES[family])
    return peptide("A" * n, FAMILIES[family])
