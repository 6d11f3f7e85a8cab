"""Internal coordinates of the amino acids: residues, protonation states, both hands, rings."""

import math

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from small_molecules import drawn

from pyrocg.coordinates import InternalCoordinates
from pyrocg.molecules import Molecule
from pyrocg.peptides import RESIDUES, peptide_structure


def forceless(topology, positions, name):
    """A molecule whose System has masses and no forces."""
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    return Molecule(name, topology, system, positions)


def chain(sequence, caps=True):
    return forceless(*peptide_structure(sequence, caps), sequence)


def protonated(code, variant):
    """A dipeptide in another protonation state, its hydrogens by OpenMM's Modeller."""
    topology, positions = peptide_structure(code)
    modeller = app.Modeller(topology, positions * unit.nanometer)
    modeller.delete([a for a in modeller.topology.atoms() if a.element.symbol == "H"])
    modeller.addHydrogens(variants=[None, variant, None], platform=reference_platform())
    return forceless(modeller.topology, modeller.positions, variant)


def reference_platform():
    return openmm.Platform.getPlatformByName("Reference")


def bridged(sequence):
    """A peptide whose two cysteines are joined."""
    topology, positions = peptide_structure(sequence)
    modeller = app.Modeller(topology, positions * unit.nanometer)
    modeller.delete([a for a in modeller.topology.atoms() if a.name == "HG"])
    modeller.topology.addBond(*(a for a in modeller.topology.atoms() if a.name == "SG"))
    return forceless(modeller.topology, modeller.positions, "disulfide")


def joined():
    """Two capped cysteines joined by their sulphurs: two chains."""
    topology, positions = peptide_structure("C")
    modeller = app.Modeller(topology, positions * unit.nanometer)
    beside = positions + np.array([0.9, 0.3, 0.0])
    modeller.add(topology, beside * unit.nanometer)
    modeller.delete([a for a in modeller.topology.atoms() if a.name == "HG"])
    modeller.topology.addBond(*(a for a in modeller.topology.atoms() if a.name == "SG"))
    return forceless(modeller.topology, modeller.positions, "joined")


def mirrored(sequence):
    topology, positions = peptide_structure(sequence)
    return forceless(topology, positions * [1, 1, -1], "D-" + sequence)


def cyclic():
    """Four glycines joined head to tail."""
    topology, positions = peptide_structure("GGGG", caps=False)
    modeller = app.Modeller(topology, positions * unit.nanometer)
    surplus = [a for a in modeller.topology.atoms() if a.name in ("H2", "H3", "OXT")]
    modeller.delete(surplus)
    ends = {(a.residue.index, a.name): a for a in modeller.topology.atoms()}
    modeller.topology.addBond(ends[3, "C"], ends[0, "N"])
    return forceless(modeller.topology, modeller.positions, "cyclic")


MAKERS = {
    **{code: lambda code=code: chain(code) for code in RESIDUES},
    **{f"{code} uncapped": lambda code=code: chain(code, caps=False) for code in "AGPR"},
    **{
        variant: lambda pair=(code, variant): protonated(*pair)
        for code, variant in (
            ("H", "HID"),
            ("H", "HIP"),
            ("D", "ASH"),
            ("E", "GLH"),
            ("K", "LYN"),
        )
    },
    "disulfide": lambda: bridged("CGC"),
    "two chains": joined,
    "D-I": lambda: mirrored("I"),
    "cyclic": cyclic,
}


@pytest.mark.parametrize("name", MAKERS)
def test_real_molecules_come_back(name):
    """Distances of distorted structures, and log|det| of the inverse against autograd."""
    molecule = MAKERS[name]()
    coordinates = InternalCoordinates(molecule)
    torch.manual_seed(0)
    x = torch.tensor(molecule.positions)
    x = x + 0.003 * torch.randn(20, *x.shape, dtype=x.dtype)
    u, log_abs_det = coordinates.inverse(x)
    back, log_abs_det_back = coordinates(u)
    relabelled = coordinates.relabel(x)
    torch.testing.assert_close(squared(back), squared(relabelled), atol=1e-11, rtol=0)
    torch.testing.assert_close(log_abs_det_back, log_abs_det)
    expected = log_volume(coordinates, u[0])
    assert log_abs_det[0].item() == pytest.approx(expected, abs=1e-7)


def squared(x):
    return (x[:, :, None] - x[:, None]).square().sum(-1)


def log_volume(coordinates, u):
    r"""log|det| of all 3N positions by rotation, translation and u, at the identity.

    Of the first-order change of positions, :math:`(1, \omega \times x, \partial x/\partial u)`.
    """
    jacobian = torch.autograd.functional.jacobian(lambda v: coordinates(v)[0].flatten(), u)
    x = coordinates(u)[0]
    axes = torch.eye(3, dtype=x.dtype)
    turned = [torch.linalg.cross(axis.expand_as(x), x).flatten() for axis in axes]
    moved = [axis.expand_as(x).flatten() for axis in axes]
    full = torch.cat([torch.stack(turned + moved, 1), jacobian], 1)
    images = coordinates.n_rotors * math.log(3)
    return torch.linalg.slogdet(full).logabsdet.item() + images


TURNING = {
    "A": "phi psi",
    "F": "phi psi CA-CB CB-CG",
    "Y": "phi psi CA-CB CB-CG CZ-OH",
    "W": "phi psi CA-CB CB-CG",
    "H": "phi psi CA-CB CB-CG",
    "R": "phi psi CA-CB CB-CG CG-CD CD-NE",
    "N": "phi psi CA-CB CB-CG",
    "K": "phi psi CA-CB CB-CG CG-CD CD-CE",
    "V": "phi psi CA-CB",
}


@pytest.mark.parametrize("code", TURNING)
def test_conformations_differ_in_torsions_that_turn(code):
    """Not in those of aromatic rings, amides and guanidinium, nor in rotors."""
    molecule = chain(code)
    coordinates = InternalCoordinates(molecule)
    atoms = [a.name for a in molecule.topology.atoms()]
    known = {coordinates.index(name): name for name in ("phi", "psi")}

    def label(i):
        parent, grandparent = map(int, coordinates.names[i].split("_")[2:4])
        return known.get(i, f"{atoms[grandparent]}-{atoms[parent]}")

    assert {label(i) for i in coordinates.rotatable.tolist()} == set(TURNING[code].split())


def test_a_linear_group_is_refused_by_the_names_of_its_atoms():
    """Acetonitrile: C-C-N is straight."""
    out = 0.109 * np.array([[-1, 0, 2.83], [-1, 2.45, -1.41], [-1, -2.45, -1.41]]) / 3
    positions = np.vstack([[0, 0, 0], out, [0.146, 0, 0], [0.262, 0, 0]])
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5)]
    with pytest.raises(ValueError, match=r"bent angles, got N5-C4-C0 \(angle_5_4_0\) = 180\.0"):
        InternalCoordinates(drawn("acetonitrile", "CHHHCN", bonds, positions))
