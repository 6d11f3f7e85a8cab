"""Molecules of a few atoms, drawn by hand, and one real one, for the tests of coordinates."""

from __future__ import annotations

import numpy as np
import openmm
from openmm import app

from pyrocg.molecules import Molecule, alanine_dipeptide

TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)


def drawn(name, symbols, bonds, positions):
    """Return a molecule with these atoms and bonds and a System without forces."""
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("MOL", topology.addChain())
    atoms = []
    for i, symbol in enumerate(symbols):
        element = app.Element.getBySymbol(symbol)
        atoms.append(topology.addAtom(f"{symbol}{i}", element, residue))
        system.addParticle(element.mass)
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
    return Molecule(name, topology, system, np.asarray(positions, dtype=float))


def water():
    positions = [[0.09, 0.02, 0.01], [0, 0, 0], [-0.03, 0.09, 0]]
    return drawn("water", "HOH", [(0, 1), (1, 2)], positions)


def peroxide():
    positions = [[-0.03, 0.09, 0.02], [0, 0, 0], [0.145, 0, 0], [0.17, 0.03, 0.09]]
    return drawn("peroxide", "HOOH", [(0, 1), (1, 2), (2, 3)], positions)


def methane():
    return drawn("methane", "CHHHH", star(4), np.vstack([[0, 0, 0], 0.109 * TETRAHEDRON]))


def halomethane():
    lengths = np.array([[0.109], [0.135], [0.177], [0.194]])
    positions = np.vstack([[0, 0, 0], lengths * TETRAHEDRON])
    return drawn("CHFClBr", ["C", "H", "F", "Cl", "Br"], star(4), positions)


def ammonia():
    positions = [[0, 0, 0], [0.094, 0, -0.038], [-0.047, 0.081, -0.038], [-0.047, -0.081, -0.038]]
    return drawn("ammonia", "NHHH", star(3), positions)


def methanol():
    hydroxyl = [[0.082, 0.082, 0.082], [0.02, 0.13, 0.13]]
    positions = np.vstack([[0, 0, 0], 0.109 * TETRAHEDRON[1:], hydroxyl])
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5)]
    return drawn("methanol", "CHHHOH", bonds, positions)


def ethane():
    shift = 0.154 * TETRAHEDRON[0]
    positions = np.vstack(
        [[0, 0, 0], shift, 0.109 * TETRAHEDRON[1:], shift - 0.109 * TETRAHEDRON[1:]]
    )
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (1, 6), (1, 7)]
    return drawn("ethane", "CCHHHHHH", bonds, positions)


def cyclopropane():
    angles = 2 * np.pi * np.arange(3) / 3
    circle = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    up = np.array([0, 0, 0.09])
    positions = np.vstack([0.087 * circle, 0.145 * circle + up, 0.145 * circle - up])
    bonds = [(0, 1), (1, 2), (2, 0), (0, 3), (1, 4), (2, 5), (0, 6), (1, 7), (2, 8)]
    return drawn("cyclopropane", "CCCHHHHHH", bonds, positions)


def star(n):
    return [(0, i) for i in range(1, n + 1)]


MOLECULES = {
    f.__name__: f
    for f in (
        water,
        peroxide,
        methane,
        halomethane,
        ammonia,
        methanol,
        ethane,
        cyclopropane,
        alanine_dipeptide,
    )
}
