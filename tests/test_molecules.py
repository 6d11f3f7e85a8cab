"""Molecules: readers against each other and against the reference ensemble; what is refused."""

import copy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from pyrocg.molecules import Molecule, alanine_dipeptide, peptide
from pyrocg.peptides import RESIDUES, peptide_structure

DATA = Path(__file__).parent / "data"
AMBER96 = ("amber96.xml", "amber96_obc.xml")
# OpenMM's Gromacs reader leaves its files open.
leaky = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def energies(molecule, positions):
    """Energies (n,) in kJ/mol on the Reference platform."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(molecule.system, openmm.VerletIntegrator(0.001), platform)
    values = []
    for x in np.asarray(positions, dtype=np.float64):
        context.setPositions(x)
        values.append(context.getState(energy=True).getPotentialEnergy()._value)
    return np.array(values)


def energy_of(molecule, kind):
    """Energy of one class of forces at the molecule's positions."""
    system = copy.deepcopy(molecule.system)
    for index in reversed(range(system.getNumForces())):
        if type(system.getForce(index)).__name__ != kind:
            system.removeForce(index)
    part = Molecule("part", molecule.topology, system, molecule.positions)
    return energies(part, [part.positions])[0]


def named(molecule, residue):
    """Positions by atom name of one residue."""
    found = list(molecule.topology.residues())[residue]
    return {atom.name: molecule.positions[atom.index] for atom in found.atoms()}


def handedness(atoms, center, names):
    """Sign of the triple product of three substituents."""
    a, b, c = (atoms[name] - atoms[center] for name in names)
    return np.sign(np.dot(np.cross(a, b), c))


def torsion(a, b, c, d):
    """Dihedral in degrees, by the projection formula."""
    u, v, w = b - a, c - b, d - c
    first, second = np.cross(u, v), np.cross(v, w)
    return np.degrees(np.arctan2(np.linalg.norm(v) * np.dot(u, second), np.dot(first, second)))


@pytest.fixture(scope="module")
def ala2():
    return alanine_dipeptide()


@pytest.fixture(scope="module")
def reference():
    """512 structures of the reference ensemble at 330 K, nm."""
    with np.load(DATA / "ala2_reference.npz") as arrays:
        return arrays["positions"].astype(np.float64)


@pytest.fixture
def pdb_text(ala2, tmp_path):
    path = tmp_path / "ala2.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(ala2.topology, ala2.positions * 10, file)
    return path.read_text()


# Built-in molecules.


def test_import_loads_neither_openmm_nor_mdtraj():
    code = (
        "import sys, pyrocg.molecules, pyrocg.observables; "
        "assert not {'openmm', 'mdtraj'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_alanine_dipeptide_atoms_and_properties(ala2):
    names = "H1 CH3 H2 H3 C O N H CA HA CB HB1 HB2 HB3 C O N H C H1 H2 H3"
    assert " ".join(atom.name for atom in ala2.topology.atoms()) == names
    assert [r.name for r in ala2.topology.residues()] == ["ACE", "ALA", "NME"]
    assert "".join(ala2.symbols) == "HCHHCONHCHCHHHCONHCHHH"
    assert ala2.n_atoms == 22
    assert len(ala2.bonds) == 21
    assert ala2.bonds == tuple(sorted(ala2.bonds))
    assert {(1, 4), (4, 6), (6, 8), (8, 10), (8, 14), (14, 16), (16, 18)} <= set(ala2.bonds)
    total = 6 * 12.011 + 12 * 1.008 + 2 * (14.007 + 15.999)
    assert ala2.masses.sum() == pytest.approx(total, abs=0.01)
    assert ala2.mdtraj_topology.n_atoms == 22
    assert ala2.mdtraj_topology is ala2.mdtraj_topology
    kinds = {type(force).__name__ for force in ala2.system.getForces()}
    assert "GBSAOBCForce" in kinds
    assert ala2.system.getNumConstraints() == 0


def test_alanine_dipeptide_energy_matches_the_reference_ensemble(ala2, reference):
    # 184320 samples at 330 K: mean -81.252, standard deviation 14.969 kJ/mol.
    values = energies(ala2, reference)
    assert abs(values.mean() + 81.252) < 4 * 14.969 / np.sqrt(512)
    assert values.std() == pytest.approx(14.97, rel=0.15)
    assert energies(ala2, [ala2.positions])[0] < values.min()


def test_alanine_dipeptide_is_the_l_form_of_the_reference(ala2, reference):
    index = {a.name: a.index for a in list(ala2.topology.residues())[1].atoms()}
    frames = [{name: x[i] for name, i in index.items()} for x in reference[:20]]
    truth = {handedness(frame, "CA", ("N", "C", "CB")) for frame in frames}
    assert truth == {handedness(named(ala2, 1), "CA", ("N", "C", "CB"))}


def test_alanine_dipeptide_is_deterministic_and_read_only(ala2):
    np.testing.assert_array_equal(alanine_dipeptide().positions, ala2.positions)
    with pytest.raises(ValueError, match="read-only"):
        ala2.positions[0, 0] = 1.0
    with pytest.raises(AttributeError):
        ala2.name = "other"


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"amber96-obc, ff96-obc1, got 'gaff'; .*peptide\('A'"):
        alanine_dipeptide("gaff")


@pytest.mark.parametrize("code", RESIDUES)
def test_every_residue_has_sane_geometry(code, ala2):
    molecule = peptide(code, AMBER96)
    assert_sane(molecule)
    atoms = named(molecule, 1)
    left = handedness(named(ala2, 1), "CA", ("N", "C", "CB"))
    if code != "G":
        assert handedness(atoms, "CA", ("N", "C", "CB")) == left
    if code == "I":  # CB is S: CA > CG1 > CG2
        assert handedness(atoms, "CB", ("CA", "CG1", "CG2")) == left
    if code == "T":  # CB is R: OG1 > CA > CG2
        assert handedness(atoms, "CB", ("OG1", "CA", "CG2")) == -left


@pytest.mark.parametrize(
    ("sequence", "caps"), [("AAA", True), ("AAAA", False), ("GPG", True), ("PW", False)]
)
def test_peptides_from_amber14(sequence, caps):
    molecule = peptide(sequence, caps=caps)
    residues = [residue.name for residue in molecule.topology.residues()]
    expected = [RESIDUES[code] for code in sequence]
    assert residues == (["ACE", *expected, "NME"] if caps else expected)
    assert_sane(molecule)


def assert_sane(molecule):
    """Bonds near equilibrium, trans peptide bonds, no overlap, forces small at the minimum."""
    x = molecule.positions
    (bonds,) = (f for f in molecule.system.getForces() if isinstance(f, openmm.HarmonicBondForce))
    for k in range(bonds.getNumBonds()):
        i, j, length, _ = bonds.getBondParameters(k)
        assert 0.9 < np.linalg.norm(x[i] - x[j]) / length._value < 1.3
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1) + np.eye(len(x))
    assert distances.min() > 0.09
    residues = [named(molecule, r) for r in range(molecule.topology.getNumResidues())]
    for first, second in pairwise(residues):
        alpha = first.get("CA", first.get("CH3"))
        omega = torsion(alpha, first["C"], second["N"], second.get("CA", second["C"]))
        assert abs(omega) > 150
    _, start = peptide_structure(*_recipe(molecule))
    minimum, begin = energies(molecule, [x, start])
    assert -100 < (minimum - begin) / molecule.n_atoms < 0


def _recipe(molecule):
    sequence = molecule.name.removeprefix("peptide-")
    return sequence, molecule.topology.getNumResidues() > len(sequence)


def test_large_peptides_are_minimised_on_one_cpu_thread():
    first, second = peptide("AAAAAA"), peptide("AAAAAA")
    assert first.n_atoms == 72
    np.testing.assert_array_equal(first.positions, second.positions)
    assert_sane(first)


@pytest.mark.parametrize("sequence", ["", "AXA", "aa", "A-A"])
def test_bad_sequences_are_refused(sequence):
    with pytest.raises(ValueError, match=r"one-letter codes ACDEFGHIKLMNPQRSTVWY, got '.*'; write"):
        peptide(sequence)


def test_residue_that_the_force_field_does_not_know():
    with pytest.raises(ValueError, match=r"residue of the peptide A .* residue 0 \(ALA\)"):
        peptide("A", caps=False)


# Readers.


@pytest.mark.parametrize("suffix", ["pdb", "cif"])
def test_from_pdb_and_mmcif(ala2, tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    writer = {"pdb": app.PDBFile, "cif": app.PDBxFile}[suffix]
    with path.open("w") as file:
        writer.writeFile(ala2.topology, ala2.positions * 10, file)
    molecule = Molecule.from_pdb(path, AMBER96)
    assert molecule.name == "mine"
    assert molecule.bonds == ala2.bonds
    np.testing.assert_allclose(molecule.positions, ala2.positions, atol=1e-4)
    np.testing.assert_allclose(
        energies(molecule, [ala2.positions]), energies(ala2, [ala2.positions]), atol=1e-9
    )


def test_from_pdb_ignores_the_unit_cell(pdb_text, tmp_path):
    path = tmp_path / "cell.pdb"
    path.write_text(
        "CRYST1   30.000   30.000   30.000  90.00  90.00  90.00 P 1           1\n" + pdb_text
    )
    assert not Molecule.from_pdb(path, AMBER96).system.usesPeriodicBoundaryConditions()


def test_from_amber_obc1_is_the_built_in_variant(reference):
    molecule = Molecule.from_amber(DATA / "ala2.prmtop", DATA / "ala2.inpcrd", "OBC1")
    built = alanine_dipeptide("ff96-obc1")
    assert molecule.symbols == built.symbols
    np.testing.assert_allclose(
        energies(molecule, reference[:8]), energies(built, reference[:8]), atol=1e-3
    )


@leaky
def test_from_gromacs_is_amber_in_vacuum(reference):
    amber = Molecule.from_amber(DATA / "ala2.prmtop", DATA / "ala2.inpcrd")
    molecule = Molecule.from_gromacs(DATA / "ala2.top", DATA / "ala2.gro")
    np.testing.assert_allclose(molecule.positions, amber.positions, atol=6e-4)
    np.testing.assert_allclose(
        energies(molecule, reference[:8]), energies(amber, reference[:8]), atol=1e-3
    )


def test_from_charmm_has_the_bonded_terms_of_amber():
    # CHARMM does not scale 1-4 electrostatics, so the non-bonded energy differs by design.
    amber = Molecule.from_amber(DATA / "ala2.prmtop", DATA / "ala2.inpcrd")
    molecule = Molecule.from_charmm(DATA / "ala2.psf", DATA / "ala2.crd", [DATA / "ala2.prm"])
    np.testing.assert_allclose(molecule.positions, amber.positions, atol=1e-6)
    for kind in ("HarmonicBondForce", "HarmonicAngleForce"):
        assert energy_of(molecule, kind) == pytest.approx(energy_of(amber, kind), abs=0.02)
    solvated = Molecule.from_charmm(
        DATA / "ala2.psf", DATA / "ala2.crd", [DATA / "ala2.prm"], implicit_solvent="OBC2"
    )
    kinds = {type(force).__name__ for force in solvated.system.getForces()}
    assert kinds & {"GBSAOBCForce", "CustomGBForce"}


def test_from_openmm_copies_and_leaves_out_the_motion_remover(ala2):
    system = app.ForceField(*AMBER96).createSystem(ala2.topology, rigidWater=False)
    assert any(isinstance(f, openmm.CMMotionRemover) for f in system.getForces())
    positions = ala2.positions * 10 * unit.angstrom
    molecule = Molecule.from_openmm(ala2.topology, system, positions, "mine")
    kinds = {type(force).__name__ for force in molecule.system.getForces()}
    assert "CMMotionRemover" not in kinds
    assert system.getNumForces() == molecule.system.getNumForces() + 1
    np.testing.assert_allclose(molecule.positions, ala2.positions)


READERS = {
    "pdb": lambda p: Molecule.from_pdb(p("a.pdb")),
    "amber": lambda p: Molecule.from_amber(p("a.prmtop"), DATA / "ala2.inpcrd"),
    "amber crd": lambda p: Molecule.from_amber(DATA / "ala2.prmtop", p("a.inpcrd")),
    "gromacs": lambda p: Molecule.from_gromacs(p("a.top"), DATA / "ala2.gro"),
    "gromacs gro": lambda p: Molecule.from_gromacs(DATA / "ala2.top", p("a.gro")),
    "charmm": lambda p: Molecule.from_charmm(p("a.psf"), DATA / "ala2.crd", [DATA / "ala2.prm"]),
    "charmm crd": lambda p: Molecule.from_charmm(
        DATA / "ala2.psf", p("a.crd"), [DATA / "ala2.prm"]
    ),
    "charmm prm": lambda p: Molecule.from_charmm(
        DATA / "ala2.psf", DATA / "ala2.crd", [p("a.prm")]
    ),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_missing_files(reader, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file at .* check the path"):
        reader(lambda name: tmp_path / name)


@leaky
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_garbage_files(reader, tmp_path):
    def garbage(name):
        (tmp_path / name).write_text("hello\nworld\n")
        return tmp_path / name

    with pytest.raises(ValueError, match=r"expected .* got: .*; ") as caught:
        reader(garbage)
    assert "\n" not in str(caught.value)
    assert "a." in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(" ALA ", " XYZ "), r"residue 1 \(XYZ\).*force field that knows"),
        (
            lambda s: "\n".join(line for line in s.splitlines() if " HB1 " not in line),
            r"residue 1 \(ALA\).*missing 1 H atom.*Modeller",
        ),
        (
            lambda s: s.replace(s.splitlines()[2][30:38], "     nan", 1),
            "got NaN or inf at atoms 1;",
        ),
    ],
    ids=["unknown residue", "missing hydrogen", "NaN"],
)
def test_unsuitable_pdb(pdb_text, tmp_path, change, message):
    path = tmp_path / "bad.pdb"
    path.write_text(change(pdb_text))
    with pytest.raises(ValueError, match=message) as caught:
        Molecule.from_pdb(path, AMBER96)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("forcefield", "message"),
    [
        (("nope.xml",), 'Could not locate file "nope.xml"; name files that OpenMM ships'),
        ((), "at least one force-field file, got none"),
        (("implicit/obc2.xml",), "contains no residue templates"),
        ("nope.xml", "force-field files in nope.xml,"),
    ],
)
def test_unsuitable_force_field(pdb_text, tmp_path, forcefield, message):
    path = tmp_path / "ala2.pdb"
    path.write_text(pdb_text)
    with pytest.raises(ValueError, match=message):
        Molecule.from_pdb(path, forcefield)


def test_water_beside_the_molecule_is_refused(pdb_text, tmp_path):
    path = tmp_path / "wet.pdb"
    rows = [("O", 20.0, 20.0), ("H1", 20.957, 20.0), ("H2", 19.76, 20.927)]
    water = "".join(
        f"HETATM{23 + i:5d}  {name:<3} HOH B   1    {x:8.3f}{y:8.3f}  20.000  1.00  0.00"
        f"           {name[0]}\n"
        for i, (name, x, y) in enumerate(rows)
    )
    path.write_text(pdb_text.replace("END\n", water + "END\n"))
    with pytest.raises(ValueError, match=r"one connected .* 22 \(HOH O\), 23 .*remove solvent"):
        Molecule.from_pdb(path, ("amber14-all.xml", "amber14/tip3p.xml"))


@pytest.mark.parametrize("solvent", ["obc1", "OBC", "TIP3P"])
def test_unknown_implicit_solvent(solvent):
    with pytest.raises(ValueError, match="HCT, OBC1, OBC2, GBn, GBn2, got"):
        Molecule.from_amber(DATA / "ala2.prmtop", DATA / "ala2.inpcrd", solvent)
    with pytest.raises(ValueError, match="HCT, OBC1, OBC2, GBn, GBn2, got"):
        Molecule.from_charmm(DATA / "ala2.psf", DATA / "ala2.crd", [DATA / "ala2.prm"], solvent)


def test_charmm_without_parameters():
    with pytest.raises(ValueError, match=r"got none; pass \.prm files"):
        Molecule.from_charmm(DATA / "ala2.psf", DATA / "ala2.crd", [])


# Validation of a ready System.


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
