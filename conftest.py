"""Runs the Python blocks of README.md and docs/*.md; docstrings run by --doctest-modules."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

import pyrocg
from pyrocg.predictive import predict
from pyrocg.training import fit

ROOT = Path(__file__).parent


@pytest.fixture(scope="session")
def docs_folder(tmp_path_factory):
    """Where the blocks run: the small input files that they read lie here, and what they write."""
    folder = tmp_path_factory.mktemp("docs")
    for path in (ROOT / "tests" / "data").glob("ala2.*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def readers_machine(docs_folder, monkeypatch):
    """Defaults that take seconds in place of minutes; what a block says itself still holds."""
    monkeypatch.chdir(docs_folder)
    few_steps = {"steps": 10, "num_samples": 63, "evaluate_every": 5, "evaluate_samples": 128}
    few_samples = {"num_samples": 1000, "n_draws": 50}
    quick_fit = functools.partial(fit, **few_steps, progress=False)
    quick_predict = functools.partial(predict, **few_samples, progress=False)
    monkeypatch.setattr(pyrocg, "fit", quick_fit, raising=False)
    monkeypatch.setattr(pyrocg, "predict", quick_predict, raising=False)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    path=str(ROOT),
    fixtures=["readers_machine"],
).pytest()


def pytest_collection_modifyitems(items):
    """Ten steps teach an encoder nothing; OpenMM's Gromacs reader leaves its files open."""
    for item in items:
        if item.path.suffix == ".md":
            for warning in (
                "ignore:the encoder learned almost nothing",
                "ignore::pytest.PytestUnraisableExceptionWarning",
            ):
                item.add_marker(pytest.mark.filterwarnings(warning))


def pytest_configure():
    """Batches here are too small for threads, which cost a lot on a machine with other work."""
    torch.set_num_threads(1)
