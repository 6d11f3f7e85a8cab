"""Readers of structure files, against each other and against the built-in molecule."""

import copy
from pathlib import Path

import numpy as np
import pytest
from openmm import app
from reference_energies import energies

from pyrocg.molecules import Molecule, alanine_dipeptide

DATA = Path(__file__).parent / "data"
AMBER96 = ("amber96.xml", "amber96_obc.xml")
# OpenMM's Gromacs reader leaves its files open.
leaky = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def energy_of(molecule, kind):
    """Energy of one class of forces at the molecule's positions."""
    system = copy.deepcopy(molecule.system)
    for index in reversed(range(system.getNumForces())):
        if type(system.getForce(index)).__name__ != kind:
            system.removeForce(index)
    part = Molecule("part", molecule.topology, system, molecule.positions)
    return energies(part, [part.positions])[0]


@pytest.fixture
def pdb_text(ala2, tmp_path):
    path = tmp_path / "ala2.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(ala2.topology, ala2.positions * 10, file)
    return path.read_text()


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
