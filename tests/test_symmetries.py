import copy

import openmm
import pytest
from small_molecules import methanol

from pyrocg.coordinates import CartesianCoordinates, InternalCoordinates
from pyrocg.molecules import Molecule, alanine_dipeptide, peptide
from pyrocg.symmetries import check_rigid_motion, told_apart

METHYLS = [(0, 2, 3), (11, 12, 13), (19, 20, 21)]


def changed(change):
    """Alanine dipeptide with a changed System."""
    molecule = alanine_dipeptide()
    system = copy.deepcopy(molecule.system)
    change(system)
    return Molecule.from_openmm(molecule.topology, system, molecule.positions)


def hold(system):
    force = openmm.CustomExternalForce("10*((x-0.1)^2+y^2+z^2)")
    force.addParticle(8, [])
    system.addForce(force)


def field(system):
    """A field that pulls two atoms of opposite charge: it turns, but does not move, a molecule."""
    force = openmm.CustomExternalForce("q*z")
    force.addPerParticleParameter("q")
    force.addParticle(5, [10.0])
    force.addParticle(17, [-10.0])
    system.addForce(force)


def wall(system):
    """Nothing within 2 nm of the origin."""
    force = openmm.CustomExternalForce("100*max(0,sqrt(x^2+y^2+z^2)-2)^2")
    for atom in range(system.getNumParticles()):
        force.addParticle(atom, [])
    system.addForce(force)


def restrain_when_far(system):
    """A flat bottom: nothing below 1 nm."""
    force = openmm.CustomBondForce("100*max(0,r-1)^2")
    force.addBond(2, 20, [])
    system.addForce(force)


def pull(system):
    force = openmm.CustomBondForce("10*r^2")
    force.addBond(1, 18, [])
    system.addForce(force)


def charge_one_hydrogen(system):
    (force,) = (f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    charge, sigma, epsilon = force.getParticleParameters(12)
    force.setParticleParameters(12, charge * 1.1, sigma, epsilon)


@pytest.mark.parametrize("change", [hold, field, wall])
@pytest.mark.parametrize("check", [check_rigid_motion, InternalCoordinates, CartesianCoordinates])
def test_an_energy_that_rigid_motion_changes_is_refused(check, change):
    with pytest.raises(ValueError, match=r"the whole molecule moves, .* \(CustomExternalForce\)"):
        check(changed(change))


def test_restraints_within_the_molecule_are_welcome():
    assert InternalCoordinates(changed(pull)).n_coordinates == 60


def test_a_restraint_that_is_flat_at_the_reference_tells_hydrogens_apart():
    molecule = changed(restrain_when_far)
    check_rigid_motion(molecule)
    assert told_apart(molecule, METHYLS) == [METHYLS[0], METHYLS[2]]


def test_a_molecule_without_forces_has_every_symmetry():
    molecule = methanol()
    check_rigid_motion(molecule)
    assert told_apart(molecule, [(1, 2, 3), (0, 4, 5)]) == []


@pytest.mark.parametrize("files", [("amber14-all.xml", "implicit/gbn2.xml"), ("amber96.xml",)])
def test_force_fields_do_not_tell_hydrogens_of_a_rotor_apart(files):
    molecule = peptide("MK", files)
    rotors = InternalCoordinates(molecule).rotors.T.tolist()
    assert len(rotors) == 4
    assert told_apart(molecule, rotors) == []


def test_hydrogens_that_the_force_field_tells_apart_are_no_rotor():
    molecule = changed(charge_one_hydrogen)
    assert told_apart(molecule, METHYLS) == [METHYLS[1]]
    coordinates = InternalCoordinates(molecule)
    assert sorted(map(sorted, coordinates.rotors.T.tolist())) == [
        list(METHYLS[0]),
        list(METHYLS[2]),
    ]
    assert len(coordinates.rotatable) == 3
