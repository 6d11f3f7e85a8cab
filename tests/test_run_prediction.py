"""Predictions from a run: with a posterior over the decoder's weights, and on a GPU."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import WELL, only_line

from pyrocg.cli import main
from pyrocg.config import resolve
from pyrocg.observables import double_well_observables
from pyrocg.run_prediction import samples_of_training
from pyrocg.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("same_threads")


def test_the_samples_that_the_weights_rest_on() -> None:
    counters = {"step": 100, "skipped": 10, "best_step": 50}
    well = {"system": {"kind": "double-well"}, "fit": {"num_samples": 8}}
    assert samples_of_training(resolve(well), counters) == 90 * 8
    best = well | {"predict": {"state": "best"}}
    assert samples_of_training(resolve(best), counters) == 50 * 8


# With a posterior.

PARTS = ("posterior", "monte_carlo", "weights")


def test_without_a_posterior_the_results_say_so(trained: Path, capsys) -> None:
    assert main(["predict", str(trained), "--json", "--quiet", "--num-samples", "500"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["posterior"] == {"method": "none"}
    assert found["weight_draws"] == 1
    assert "posterior" not in found["energy_calls_split"]
    assert all(observable["posterior"] == 0.0 for observable in found["observables"].values())


def test_predict_with_a_laplace_posterior(trained: Path, capsys) -> None:
    few = ["--num-samples", "600", "--weight-draws", "6", "--posterior-samples", "50"]
    command = ["predict", str(trained), "--posterior", "laplace", *few]
    assert main([*command, "--posterior-structure", "diagonal", "--json", "--plain"]) == 0
    captured = capsys.readouterr()
    assert "fitting the posterior over the decoder's weights (laplace)" in captured.err
    found = json.loads(captured.out)
    made = found["posterior"]
    assert (made["method"], made["structure"], made["weight_draws"]) == ("laplace", "diagonal", 6)
    assert made["training_samples"] == 40 * 32
    assert made["gibbs_scale"] > 0
    assert made["prior_scale"] in (1.0, 0.3, 0.1, 0.03, 0.01)
    assert made["expected_excess"] > 0
    split = found["energy_calls_split"]
    assert split["posterior"] >= 50
    assert split["prediction"] == 600 + 100  # the trained weights beside the draws
    assert found["energy_calls"] == sum(split.values())
    assert found["seconds"]["posterior"] > 0
    assert found["weight_draws"] == 6
    observables = found["observables"]
    assert any(observable["posterior"] > 0 for observable in observables.values())
    for observable in observables.values():
        assert all(observable[part] >= 0 for part in PARTS)
    assert found == json.loads((trained / "prediction.json").read_text())
    read = RunFolder.open(trained).prediction(double_well_observables())
    assert read is not None
    assert np.bincount(read.weight_draw).tolist() == [100] * 6
    assert main(["plot", str(trained)]) == 0
    assert (trained / "uncertainty.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_the_parts_of_each_interval(trained: Path, capsys) -> None:
    few = ["--num-samples", "600", "--weight-draws", "3", "--posterior-samples", "20"]
    assert main(["predict", str(trained), "--quiet", "--posterior", "laplace", *few]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("posterior     Laplace, 3 draws of the weights, Gibbs scale N = ")
        for line in lines
    )
    heading = next(i for i, line in enumerate(lines) if line.startswith("standard deviation from"))
    assert lines[heading].split()[-4:] == ["posterior", "Monte", "Carlo", "weights"]
    saved = json.loads((trained / "prediction.json").read_text())["observables"]
    for line, (name, observable) in zip(lines[heading + 1 :], saved.items(), strict=True):
        shown = line.split()
        assert shown[0] == name
        assert [float(word) for word in shown[1:]] == pytest.approx(
            [observable[part] for part in PARTS], abs=1e-6
        )


def test_predict_with_swag(trained: Path, capsys) -> None:
    few = ["--num-samples", "400", "--weight-draws", "4", "--posterior-steps", "200"]
    command = ["predict", str(trained), "--posterior", "swag", *few, "--json", "--quiet"]
    assert main([*command, "--posterior-learning-rate", "1e-2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["posterior"] == {
        "method": "swag",
        "weight_draws": 4,
        "steps": 200,
        "learning_rate": 1e-2,
        "gibbs_scale": None,
    }
    assert found["energy_calls_split"]["posterior"] == 200 * 32


def test_draws_that_are_worse_than_the_trained_weights_get_one_warning(
    trained: Path, capsys
) -> None:
    few = ["--num-samples", "1600", "--weight-draws", "16", "--posterior-steps", "200"]
    command = ["predict", str(trained), "--posterior", "swag", *few, "--json", "--quiet"]
    assert main([*command, "--posterior-learning-rate", "1.0"]) == 0
    found = [w["code"] for w in json.loads(capsys.readouterr().out)["warnings"]]
    assert found.count("weight_draws_worse") == 1


def test_the_posterior_of_the_configuration_is_used_and_can_be_replaced(
    trained: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    written = (folder / "config.toml").read_text()
    swag = '[posterior]\nkind = "swag"\nweight_draws = 2\nsteps = 200\nlearning_rate = 1e-2\n'
    changed = written.replace('[posterior]\nkind = "none"\n', swag)
    assert changed != written
    (folder / "config.toml").write_text(changed)
    command = ["predict", str(folder), "--json", "--quiet", "--num-samples", "100"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["posterior"]["method"] == "swag"
    few = ["--weight-draws", "2", "--posterior-samples", "20"]
    assert main([*command, "--posterior", "laplace", *few]) == 0
    assert json.loads(capsys.readouterr().out)["posterior"]["method"] == "laplace"
    assert main([*command, "--posterior", "none"]) == 0
    assert json.loads(capsys.readouterr().out)["posterior"] == {"method": "none"}


def test_a_posterior_of_too_many_weights_is_a_failure(tmp_path: Path, capsys) -> None:
    large = [*WELL, "--hidden", "128", "128", "--steps", "2", "--out", str(tmp_path / "run")]
    assert main(["fit", *large]) == 0
    capsys.readouterr()
    full = ["--posterior", "laplace", "--posterior-structure", "full"]
    assert main(["predict", str(tmp_path / "run"), "--quiet", *full]) == 1
    assert "expected at most 3000 weights for a full covariance" in only_line(capsys)


BAD_POSTERIORS = {
    "another": (["--posterior", "exact"], "posterior.kind: expected one of none, laplace, swag"),
    "no draws": (["--weight-draws", "5"], "posterior.weight_draws: expected only with"),
    "one draw": (["--posterior", "swag", "--weight-draws", "1"], "of at least 2, got 1"),
    "too many draws": (
        ["--posterior", "swag", "--weight-draws", "30", "--num-samples", "20"],
        "posterior.weight_draws: expected at most 20, as there are samples, got 30",
    ),
    "another's": (
        ["--posterior", "laplace", "--posterior-steps", "300"],
        "posterior.steps: expected only with posterior.kind swag, got it with laplace",
    ),
    "few steps": (["--posterior", "swag", "--posterior-steps", "10"], "of at least 200, got 10"),
}


@pytest.mark.parametrize("case", BAD_POSTERIORS)
def test_bad_posteriors_are_refused(case: str, trained: Path, capsys) -> None:
    arguments, message = BAD_POSTERIORS[case]
    assert main(["predict", str(trained), *arguments]) == 2
    assert message in only_line(capsys)


# On a GPU.


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("command", ["fit", "resume", "predict"])
def test_a_device_that_is_not_there_is_refused(
    command: str, trained: Path, tmp_path: Path, capsys
) -> None:
    where = [*WELL, "--out", str(tmp_path / "run")] if command == "fit" else [str(trained)]
    assert main([command, *where, "--device", "cuda"]) == 2
    line = only_line(capsys)
    assert line.startswith("pyrocg: error: run.device: expected cpu, since ")
    assert line.endswith("got cuda; use --device cpu")
    assert not (tmp_path / "run").exists()


def test_a_run_made_on_a_gpu_is_used_on_a_machine_without(
    trained: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    written = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(written.replace('device = "cpu"', 'device = "cuda"'))
    few = ["--quiet", "--num-samples", "100", "--device", "cpu"]
    assert main(["predict", str(folder), *few]) == 0
    assert main(["resume", str(folder), "--device", "cpu"]) == 0
    assert main(["plot", str(folder)]) == 0  # needs no device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fit_resume_and_predict_on_a_gpu(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    assert main(["fit", *WELL, "--device", "cuda", "--out", str(folder)]) == 0
    assert 'device = "cuda"' in (folder / "config.toml").read_text()
    (folder / "history.json").unlink()
    assert main(["resume", str(folder), "--quiet"]) == 0
    capsys.readouterr()
    few = ["--num-samples", "600", "--weight-draws", "3", "--posterior-samples", "20"]
    for posterior in (["none"], ["laplace", *few[2:]]):
        command = ["predict", str(folder), "--posterior", *posterior, *few[:2]]
        assert main([*command, "--json", "--quiet"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["log_z"] == pytest.approx(12.0649, abs=0.5)
