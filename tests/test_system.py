"""From options to objects: what computes the energies."""

from pathlib import Path

import pytest

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
