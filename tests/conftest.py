"""Fixtures of more than one file."""

from pathlib import Path

import pytest
import torch
from tiny_runs import WELL

from pyrocg.cli import main


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
