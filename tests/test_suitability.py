"""What a ready System, topology and positions must be, and what is refused."""

import copy

import numpy as np
import openmm
import pytest
from openmm import app, unit

from pyrocg.molecules import Molecule

AMBER96 = ("amber96.xml", "amber96_obc.xml")


def test_from_openmm_copies_and_leaves_out_the_motion_remover(ala2):
    system = app.ForceField(*AMBER96).createSystem(ala2.topology, rigidWater=False)
    assert any(isinstance(f, openmm.CMMotionRemover) for f in system.getForces())
    positions = ala2.positions * 10 * unit.angstrom
    molecule = Molecule.from_openmm(ala2.topology, system, positions, "mine")
    kinds = {type(force).__name__ for force in molecule.system.getForces()}
    assert "CMMotionRemover" not in kinds
    assert system.getNumForces() == molecule.system.getNumForces() + 1
    np.testing.assert_allclose(molecule.positions, ala2.positions)


def constrain(system):
    system.addConstraint(0, 1, 0.1)


def make_periodic(system):
    (force,) = (f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    force.setNonbondedMethod(openmm.NonbondedForce.PME)
    system.setDefaultPeriodicBoxVectors([3, 0, 0], [0, 3, 0], [0, 0, 3])


def add_virtual_site(system):
    system.setParticleMass(0, 0.0)
    system.setVirtualSite(0, openmm.TwoParticleAverageSite(1, 2, 0.5, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (constrain, "got 1: .*constraints=None and rigidWater=False"),
        (make_periodic, "periodic boundary conditions.*NoCutoff"),
        (add_virtual_site, "got virtual sites at 0:"),
        (lambda s: s.setParticleMass(3, 0.0), r"massless \(frozen\) particles at 3:"),
        (lambda s: s.addForce(openmm.AndersenThermostat(300, 1)), "AndersenThermostat .force"),
        (lambda s: s.addForce(openmm.MonteCarloBarostat(1, 300)), "MonteCarloBarostat|periodic"),
        (lambda s: s.addParticle(1.0), "got 22, 23 and 22; take all three"),
    ],
)
def test_unsuitable_systems_are_refused(ala2, change, message):
    system = copy.deepcopy(ala2.system)
    change(system)
    with pytest.raises(ValueError, match=message):
        Molecule.from_openmm(ala2.topology, system, ala2.positions)


def test_bare_constructor_refuses_a_motion_remover(ala2):
    system = copy.deepcopy(ala2.system)
    index = system.addForce(openmm.CMMotionRemover())
    with pytest.raises(ValueError, match=rf"CMMotionRemover \(force {index}\).*removeForce"):
        Molecule("x", ala2.topology, system, ala2.positions)


@pytest.mark.parametrize("shape", [(22, 2), (1, 22, 3), (66,)])
def test_positions_of_a_wrong_shape(ala2, shape):
    with pytest.raises(ValueError, match=r"shape \(n_atoms, 3\) in nm, got"):
        Molecule.from_openmm(ala2.topology, ala2.system, np.zeros(shape))


def test_positions_of_a_wrong_length(ala2):
    with pytest.raises(ValueError, match="got 22, 22 and 21"):
        Molecule.from_openmm(ala2.topology, ala2.system, ala2.positions[:-1])


def test_nan_positions_name_the_atoms(ala2):
    positions = np.array(ala2.positions)
    positions[[3, 7]] = np.nan
    with pytest.raises(ValueError, match="NaN or inf at atoms 3, 7;"):
        Molecule.from_openmm(ala2.topology, ala2.system, positions)


def test_topology_without_bonds_is_refused(ala2):
    topology = app.Topology()
    residue = topology.addResidue("ALL", topology.addChain())
    for atom in ala2.topology.atoms():
        topology.addAtom(atom.name, atom.element, residue)
    with pytest.raises(ValueError, match=r"21 atoms not bonded .* and 16 more; .*addBond"):
        Molecule.from_openmm(topology, ala2.system, ala2.positions)
