"""From options to objects: what computes the energies."""

from pathlib import Path

import pytest
import torch

from pyrocg.config import resolve
from pyrocg.energies.terms import UnsupportedForceError
from pyrocg.system import build_system, engine_of

WALL = """<ForceField><Script>
import openmm
wall = openmm.CustomExternalForce("x^2")
wall.addParticle(0)
sys.addForce(wall)
</Script></ForceField>"""


@pytest.fixture
def walled(tmp_path: Path) -> dict:
    """Alanine dipeptide with a force that depends on where the molecule is."""
    (tmp_path / "wall.xml").write_text(WALL)
    files = ["amber96.xml", "amber96_obc.xml", str(tmp_path / "wall.xml")]
    return {"system": {"kind": "alanine-dipeptide", "forcefield": files}}


def test_the_engine_that_was_asked_for() -> None:
    given = {"system": {"kind": "alanine-dipeptide", "engine": "copies"}}
    engine = engine_of(build_system(resolve(given)))
    assert engine == {"name": "CopiesEnergy", "reason": "asked for"}


def test_an_engine_that_does_not_cover_a_force_is_refused_by_its_name(walled: dict) -> None:
    message = (
        r"system\.engine: copies does not cover this molecule: .* got CustomExternalForce "
        r"\(force 5\): .*; use --engine auto"
    )
    with pytest.raises(UnsupportedForceError, match=message):
        build_system(resolve({"system": {"engine": "copies"}}, walled))


def test_the_energy_of_a_peptide_is_capped_while_training_and_exact_in_weights() -> None:
    def built(**options):
        given = {"kind": "peptide", "peptide": "G", "engine": "openmm", **options}
        system = build_system(resolve({"system": {**given, "platform": "Reference"}}))
        assert system.molecule is not None
        positions = torch.from_numpy(system.molecule.positions.copy())
        overlapping = positions.clone()
        overlapping[4] = overlapping[0] + 0.001
        return system.target, positions, overlapping

    target, positions, overlapping = built(energy_cap=200.0)
    exact = target.exact.energy
    given, kt = float(exact(positions)), 1 / target.beta
    assert float(target.energy(positions)) == pytest.approx(given)
    assert float(exact(overlapping)) > given + 1000 * kt
    assert given + 200 * kt < float(target.energy(overlapping)) < given + 400 * kt
    assert target.energy.cap == pytest.approx(given + 200 * kt)
    assert built()[0].energy.cap == pytest.approx(given + 1000 * kt)
    uncapped = built(energy_cap=float("inf"))[0]
    assert uncapped.energy is uncapped.energy.exact
    plain = build_system(resolve({"system": {"kind": "alanine-dipeptide"}})).target
    assert plain.energy is plain.energy.exact
