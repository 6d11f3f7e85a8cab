"""Runs in folders, read in as objects."""

from pathlib import Path

import pytest
import torch

import pyrocg
from pyrocg.checkpoint import load_state
from pyrocg.run import load_run

pytestmark = pytest.mark.usefixtures("same_threads")


def test_a_run_is_what_was_trained(trained: Path) -> None:
    run, state = load_run(trained), load_state(trained / "checkpoint.pt")
    found = run.model.state_dict()
    assert found.keys() == state["model"].keys()
    assert all(torch.equal(found[name], value) for name, value in state["model"].items())
    assert run.counters["step"] == run.config.fit.steps == 40
    assert run.basin_calls > 0
    prediction = pyrocg.predict(run.model, run.system.observables, num_samples=500, progress=False)
    assert prediction.log_z == pytest.approx(12.06, abs=0.3)


def test_the_best_state_if_the_options_say_so(trained: Path, tmp_path: Path) -> None:
    for name in ("config.toml", "basins.pt", "checkpoint.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    file = tmp_path / "config.toml"
    file.write_text(file.read_text().replace('state = "last"', 'state = "best"'))
    found, best = (
        load_run(tmp_path).model.state_dict(),
        load_state(trained / "checkpoint.pt")["best"],
    )
    assert all(torch.equal(found[name], value) for name, value in best.items())


def test_without_a_run_or_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the folder of a run"):
        load_run(tmp_path)
    (tmp_path / "config.toml").write_bytes((trained / "config.toml").read_bytes())
    with pytest.raises(FileNotFoundError, match="expected a checkpoint at"):
        load_run(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_nobody_knows(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.device"):
        load_run(trained, device="gpu")


def test_a_device_that_is_not_there(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.device: expected cpu"):
        load_run(trained, device="cuda")
