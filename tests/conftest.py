"""Fixtures of more than one file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import WELL

from pyrocg.cli import main
from pyrocg.molecules import alanine_dipeptide, peptide


@pytest.fixture
def same_threads():
    """A run sets the threads of torch; afterwards they are as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a double well that was trained."""
    folder = tmp_path_factory.mktemp("runs") / "well"
    before = torch.get_num_threads()
    assert main(["fit", *WELL, "--out", str(folder)]) == 0
    torch.set_num_threads(before)
    return folder


@pytest.fixture(scope="session")
def ala2():
    return alanine_dipeptide()


@pytest.fixture(scope="session")
def tripeptide():
    return peptide("AGA", ("amber96.xml", "amber96_obc.xml"))


@pytest.fixture(scope="session")
def reference():
    """512 structures of the reference ensemble of alanine dipeptide at 330 K, nm."""
    with np.load(Path(__file__).parent / "data" / "ala2_reference.npz") as arrays:
        return arrays["positions"].astype(np.float64)
