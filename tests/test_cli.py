import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import TINY, WELL, only_line

import pyrocg
from pyrocg.checkpoint import load_state
from pyrocg.cli import _engine, main
from pyrocg.energies.toy import DoubleWell
from pyrocg.observables import double_well_observables
from pyrocg.runfolder import RunFolder, plain
from pyrocg.sections import SECTIONS, options

pytestmark = pytest.mark.usefixtures("same_threads")


def started(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pyrocg.cli", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def numbers(folder: Path) -> dict:
    """What must be the same for two runs: all but wall seconds."""
    state = load_state(folder / "checkpoint.pt")
    state["counters"].pop("seconds")
    return state


def assert_same(a, b, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), where


# The way through.


def test_help_is_fast_because_it_loads_nothing() -> None:
    heavy = "{'torch', 'pyro', 'openmm', 'arviz', 'matplotlib', 'mdtraj', 'numpy'}"
    code = (
        "import sys, pyrocg.cli\n"
        "try: pyrocg.cli.main(['fit', '--help'])\n"
        f"except SystemExit: print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--num-samples" in done.stdout


def test_fit_leaves_a_run(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.toml", "basins.pt", "checkpoint.pt", "history.json", "history.csv"} <= names
    history = json.loads((trained / "history.json").read_text())
    assert history["stopped"] == "finished"
    assert history["history"]["step"] == [10, 20, 30, 40]
    assert (trained / "history.csv").read_text().startswith("step,t,loss,elbo")


def test_predict_prints_one_json_object(trained: Path, capsys) -> None:
    assert main(["predict", str(trained), "--json", "--num-samples", "2000", "--level", "0.9"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed)
    assert len(printed.strip().splitlines()) == 1
    assert set(result["observables"]) == {"x1", "x2", "population_right"}
    for observable in result["observables"].values():
        assert observable["level"] == 0.9
        low, high = observable["interval"]
        assert low <= observable["mean"] <= high
    assert result["corrected"]
    assert 0 < result["ess"] <= 1
    assert result["log_z"] == pytest.approx(12.0649, abs=0.2)
    split = result["energy_calls_split"]
    assert split["training"] >= 40 * 32
    assert split["prediction"] == 2000
    assert split["basins"] > 0
    assert result["energy_calls"] == sum(split.values())
    assert result == json.loads((trained / "prediction.json").read_text())


def test_predict_plain_says_so(trained: Path, capsys) -> None:
    arguments = ["predict", str(trained), "--json", "--plain", "--quiet", "--num-samples", "500"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["corrected"] is False


def test_predict_prints_a_table_with_the_reference(trained: Path, capsys) -> None:
    assert main(["predict", str(trained), "--quiet", "--num-samples", "500"]) == 0
    printed = capsys.readouterr().out
    assert "reference 12.0649" in printed
    assert "-2.44110" in printed


def test_plot_draws_what_there_is(trained: Path, capsys) -> None:
    assert main(["predict", str(trained), "--quiet", "--num-samples", "500"]) == 0
    assert main(["plot", str(trained)]) == 0
    for name in ("training", "weights", "observables", "latent", "components"):
        assert (trained / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_config_is_read_and_written(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    config = str(trained / "config.toml")
    assert main(["fit", "--config", config, "--out", str(again), "--quiet"]) == 0
    assert (again / "config.toml").read_text() == (trained / "config.toml").read_text()
    assert_same(numbers(again), numbers(trained))


def test_command_line_beats_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[fit]\nsteps = 3\nnum_samples = 8\n[model]\nstarts = 8\n")
    arguments = ["fit", "double-well", "--config", str(tmp_path / "c.toml"), "--steps", "2"]
    assert main([*arguments, "--quiet", "--out", str(tmp_path / "run")]) == 0
    written = (tmp_path / "run" / "config.toml").read_text()
    assert "steps = 2\n" in written
    assert "num_samples = 8\n" in written


@pytest.mark.parametrize("schedule", ["linear", "geometric", "adaptive"])
def test_gaussian_model_with_tempering(schedule: str, tmp_path: Path) -> None:
    arguments = (
        "fit double-well --model gaussian --hidden 8 --steps 30 --num-samples 32 --threads 1 "
        f"--evaluate-every 5 --schedule {schedule} --schedule-start 0.1 --quiet"
    ).split()
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    history = json.loads((tmp_path / "run" / "history.json").read_text())["history"]
    assert history["t"][0] < 1
    assert history["t"][-1] == 1
    assert main(["plot", str(tmp_path / "run")]) == 0


def test_alanine_dipeptide(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    tiny = [*TINY, "--engine", "openmm", "--workers", "1", "--steps", "10", "--save-samples"]
    tiny += ["--cover", "0"]
    assert main(["quickstart", "--out", str(folder), "--predict-samples", "300", *tiny]) == 0
    printed = capsys.readouterr().out
    assert "0.83857" in printed
    assert "population_left" in printed
    for name in ("ramachandran", "training", "observables", "latent"):
        assert (folder / f"{name}.png").is_file()
    assert np.load(folder / "samples.npz")["positions"].shape == (300, 22, 3)
    trajectory = tmp_path / "samples.dcd"
    arguments = ["--num-samples", "50", "--json", "--quiet", "--trajectory", str(trajectory)]
    assert main(["predict", str(folder), *arguments]) == 0
    names = {"population_left", "population_alpha", "population_beta", "radius_of_gyration"}
    assert names <= set(json.loads(capsys.readouterr().out)["observables"])
    assert trajectory.is_file()
    assert len(np.loadtxt(tmp_path / "samples.weights.txt")) == 50


def test_the_engine_its_speed_and_its_reason_are_said_and_saved(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    arguments = (
        "fit alanine-dipeptide --engine openmm --workers 1 --model gaussian --hidden 8 --steps 2 "
        f"--num-samples 4 --threads 1 --evaluate-every 2 --evaluate-samples 4 --out {folder}"
    )
    assert main(arguments.split()) == 0
    captured = capsys.readouterr()
    assert "pyrocg: energies by OpenMMEnergy: asked for\n" in captured.err
    assert "configurations/s: at least" in captured.err
    history = json.loads((folder / "history.json").read_text())
    assert history["engine"]["name"] == "OpenMMEnergy"
    assert history["engine"]["reason"] == "asked for"
    assert history["engine"]["configurations_per_second"] > 0
    assert history["energy_calls"]["timing"] % 4 == 0
    assert history["energy_calls"]["timing"] >= 8


def test_a_large_molecule_is_warned_of(capsys) -> None:
    energy = SimpleNamespace(exact=SimpleNamespace(engine_reason="asked for"))
    system = SimpleNamespace(molecule=SimpleNamespace(n_atoms=312), target=SimpleNamespace())
    system.target.energy = energy
    _engine(system, quiet=False)
    assert "warning: 312 atoms; models of more than some tens" in capsys.readouterr().err
    system.molecule.n_atoms = 22
    _engine(system, quiet=False)
    assert "warning" not in capsys.readouterr().err


def test_what_is_not_finite_is_warned_of(tmp_path: Path, capsys, monkeypatch) -> None:
    exact = DoubleWell._energy

    def broken(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] > 4, torch.inf, exact(self, x))

    monkeypatch.setattr(DoubleWell, "_energy", broken)
    assert main(["fit", *WELL, "--out", str(tmp_path / "run")]) == 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("pyrocg: warning: ")
    assert line.endswith(" energies were not finite")


def test_progress_of_the_basins_is_shown_unless_quiet(tmp_path: Path, capsys) -> None:
    loud = [word for word in WELL if word != "--quiet"]
    assert main(["fit", *loud, "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "basins, relaxing" in captured.err
    assert "relaxing" not in captured.out


def test_options_of_the_basins_reach_them(tmp_path: Path, capsys) -> None:
    few = ["--max-basins", "1", "--basin-steps", "100", "--out", str(tmp_path / "few")]
    assert main(["fit", *WELL, *few]) == 0
    assert len(load_state(tmp_path / "few" / "basins.pt")["u"]) == 1
    assert "1 of 2 minima were left out" in capsys.readouterr().err
    low = ["--max-free-energy", "1", "--out", str(tmp_path / "low")]
    assert main(["fit", *WELL, *low]) == 0
    assert len(load_state(tmp_path / "low" / "basins.pt")["u"]) == 1


def test_flags_of_the_prediction_are_the_same_in_every_command(trained: Path, capsys) -> None:
    common = ["predict", str(trained), "--json", "--quiet"]
    assert main([*common, "--predict-samples", "300", "--predict-seed", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([*common, "--num-samples", "300", "--seed", "4"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert found["num_samples"] == again["num_samples"] == 300
    assert found["engine"] == {"name": "DoubleWell", "reason": ""}
    assert found["observables"] == again["observables"]
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    helped = capsys.readouterr().out
    for option in options("predict").values():
        assert f"--{option.flag} " in helped
    assert {"predict"} == {
        s for s in SECTIONS for o in options(s).values() if o.flag.startswith("predict-")
    }


def test_draws_and_batch_of_a_prediction(trained: Path) -> None:
    few = ["--predict-samples", "300", "--predict-draws", "20", "--predict-batch", "100"]
    assert main(["predict", str(trained), "--quiet", *few]) == 0
    prediction = RunFolder.open(trained).prediction(double_well_observables())
    assert prediction is not None
    assert prediction.n_draws == 20
    assert len(prediction.log_weights) == 300


def test_a_prediction_of_another_version_says_what_to_do(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    assert main(["predict", str(folder), "--quiet", "--predict-samples", "50"]) == 0
    with np.load(folder / "prediction.npz") as stored:
        kept = {name: stored[name] for name in stored.files if name != "scalar/beta"}
    np.savez(folder / "prediction.npz", **kept)
    with pytest.raises(ValueError, match=r"expected scalar/beta in .* predict again"):
        RunFolder.open(folder).prediction(double_well_observables())


def test_a_saved_prediction_is_read_back(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = (folder / "config.toml").read_text()
    saving = config.replace("save_samples = false", "save_samples = true")
    (folder / "config.toml").write_text(saving)
    few = ["predict", str(folder), "--quiet", "--predict-samples", "200"]
    assert main(few) == 0
    read = RunFolder.open(folder).prediction(double_well_observables())
    assert read is not None
    assert read.positions.shape == (200, 2)
    np.testing.assert_array_equal(read.positions[:, 0], read.values["x1"])
    summary = json.loads((folder / "prediction.json").read_text())
    assert read.warnings
    assert [dict(vars(w)) for w in read.warnings] == summary["warnings"]
    assert plain(read.summary()["observables"]) == summary["observables"]
    assert read.weight_draw.tolist() == [0] * 200
    (folder / "config.toml").write_text(config)
    assert main(few) == 0
    assert not (folder / "samples.npz").exists()  # it would be that of another prediction
    read = RunFolder.open(folder).prediction(double_well_observables())
    assert read is not None
    assert len(read.positions) == 0


# Stopped and continued.


def test_killed_and_resumed_gives_the_same_numbers(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    long = [*WELL, "--steps", "100"]
    assert main(["fit", *long, "--out", str(whole)]) == 0
    process = started("fit", *long, "--checkpoint-seconds", "0", "--out", str(killed))
    wait_for(killed / "checkpoint.pt", process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert load_state(killed / "checkpoint.pt")["counters"]["step"] < 100
    assert not (killed / "history.json").exists()
    assert main(["resume", str(killed), "--quiet"]) == 0
    assert_same(numbers(killed), numbers(whole))


def test_killed_before_the_first_checkpoint_starts_over(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_bytes((trained / "config.toml").read_bytes())
    assert main(["resume", str(folder), "--quiet"]) == 0
    assert_same(numbers(folder), numbers(trained))


def test_interrupt_writes_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started("fit", *WELL, "--steps", "100000", "--out", str(folder))
    wait_for(folder / "basins.pt", process)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"continue by `pyrocg resume {folder}`" in err
    assert "Traceback" not in err
    assert load_state(folder / "checkpoint.pt")["counters"]["step"] > 0


def test_interrupt_of_the_search_for_basins_is_prompt(tmp_path: Path, monkeypatch) -> None:
    # a pytest in the background may have been handed an ignored SIGINT, and hand it down
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, long = tmp_path / "run", ["--starts", "5000", "--basin-steps", "100000"]
    process = started("fit", "double-well", *long, "--out", str(folder))
    signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    shown = ""
    while "relaxing" not in shown:
        character = process.stderr.read(1)
        assert character, shown
        shown += character
    os.kill(process.pid, signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 10
    assert f"continue by `pyrocg resume {folder}`" in err
    assert "Traceback" not in err
    assert {path.name for path in folder.iterdir()} == {"config.toml"}


def test_resume_of_a_finished_run_changes_nothing(trained: Path, capsys) -> None:
    before = numbers(trained)
    assert main(["resume", str(trained)]) == 0
    assert "nothing to resume" in capsys.readouterr().err
    assert_same(numbers(trained), before)


# Refused.

BAD_INPUT = {
    "no system": (["fit"], "system.kind: expected"),
    "unknown system": (["fit", "triple-well"], "got 'triple-well'"),
    "wrong type": (["fit", "double-well", "--steps", "many"], "fit.steps: expected an integer"),
    "out of range": (["fit", "double-well", "--level", "2"], "predict.level: expected"),
    "no such file": (["fit", "--pdb", "none.pdb"], "none.pdb"),
    "force field": (["fit", "--peptide", "A", "--forcefield", "none.xml"], "none.xml"),
    "residue": (["fit", "--peptide", "AXA"], "X"),
    "no config": (["fit", "--config", "none.toml"], "none.toml"),
    "name of a force field": (
        ["fit", "alanine-dipeptide", "--forcefield", "amber96-obc2"],
        "or one of amber96-obc, ff96-obc1, got 'amber96-obc2'",
    ),
    "not applicable": (["fit", "double-well", "--temperature", "300"], "system.temperature"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD_INPUT[case]
    assert main([*arguments, "--out", "run"]) == 2
    assert message in only_line(capsys)
    assert not (tmp_path / "run").exists()


def test_unknown_key_in_file(tmp_path: Path, capsys) -> None:
    (tmp_path / "c.toml").write_text("[fit]\nstep = 3\n")
    arguments = ["fit", "double-well", "--config", str(tmp_path / "c.toml")]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert "did you mean fit.steps?" in only_line(capsys)


def test_folder_with_a_run_is_refused(trained: Path, capsys) -> None:
    assert main(["fit", *WELL, "--out", str(trained)]) == 2
    assert "pyrocg resume" in only_line(capsys)


def test_folder_that_cannot_be_made(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["fit", *WELL, "--out", str(tmp_path / "file" / "run")]) == 2
    line = only_line(capsys)
    assert f"expected a folder that can be made, got {tmp_path / 'file' / 'run'}" in line
    assert line.endswith("name another --out")


def test_a_folder_that_another_process_trains_in(trained: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("fcntl")
    folder = RunFolder(tmp_path)
    folder.config_file.write_bytes((trained / "config.toml").read_bytes())
    with folder.claimed():
        assert main(["resume", str(tmp_path), "--quiet"]) == 1
    assert "expected no other process that trains in" in only_line(capsys)
    (tmp_path / ".checkpoint.pt.half").write_bytes(b"of a process that was killed")
    assert main(["resume", str(tmp_path), "--quiet"]) == 0
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("command", ["resume", "predict", "plot"])
def test_folder_without_a_run(command: str, tmp_path: Path, capsys) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "expected the folder of a run" in only_line(capsys)


@pytest.mark.parametrize("name", ["x.dcd", "none/x.dcd", "x.txt"])
def test_trajectory_of_a_toy_or_nowhere(name: str, trained: Path, capsys) -> None:
    assert main(["predict", str(trained), "--trajectory", name]) == 2
    assert "--trajectory: expected" in only_line(capsys)


def test_predict_before_training(trained: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.toml").write_bytes((trained / "config.toml").read_bytes())
    assert main(["predict", str(tmp_path)]) == 2
    assert "checkpoint" in only_line(capsys)


def test_broken_checkpoint(trained: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.toml").write_bytes((trained / "config.toml").read_bytes())
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    assert main(["predict", str(tmp_path)]) == 2
    assert "expected a checkpoint of tensors" in only_line(capsys)


def test_bad_usage(capsys) -> None:
    for arguments in ([], ["fit", "double-well"], ["fly"], ["fit", "--none"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_word_that_is_no_option(capsys) -> None:
    for arguments, message in {
        ("fit", "double-well", "--out", "run", "--step", "5"): "--step; did you mean --steps?; see",
        ("fit", "double-well", "--out", ""): "expected the name of a folder, got an empty one",
        ("predict", "run", "more"): "expected options of pyrocg predict, got more; see pyrocg pre",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in only_line(capsys)


def test_the_version(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"pyrocg {pyrocg.__version__}\n"


def test_results_that_nobody_reads_are_no_error(trained: Path, capsys, monkeypatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch, os.fdopen(write, "w") as closed:
        patch.setattr(sys, "stdout", closed)
        assert main(["predict", str(trained), "--json", "--quiet", "--num-samples", "50"]) == 1
    assert "error" not in capsys.readouterr().err


def test_full_disk(trained: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.toml", "basins.pt"):
        (folder / name).write_bytes((trained / name).read_bytes())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyrocg.checkpoint.os.fsync", full)
    assert main(["resume", str(folder), "--quiet"]) == 1
    line = only_line(capsys)
    assert f"expected to write {folder}/checkpoint.pt, got: No space left on device" in line
    assert line.endswith(f"then continue by `pyrocg resume {folder}`")
    assert {path.name for path in folder.iterdir()} == {"config.toml", "basins.pt"}


def full_after(monkeypatch, n_files: int) -> None:
    """The disk is full once so many files are written."""
    left, fsync = iter(range(n_files)), os.fsync

    def write(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("pyrocg.checkpoint.os.fsync", write)


def test_full_disk_leaves_no_new_folder(tmp_path: Path, capsys, monkeypatch) -> None:
    full_after(monkeypatch, 0)
    assert main(["fit", *WELL, "--out", str(tmp_path / "new" / "run")]) == 2
    assert "No space left on device" in only_line(capsys)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    assert main(["fit", *WELL, "--out", str(tmp_path / "old")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_full_disk_while_fitting_leaves_what_can_be_resumed(
    trained: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    full_after(monkeypatch, 2)
    folder = tmp_path / "run"
    assert main(["fit", *WELL, "--out", str(folder)]) == 1
    assert "No space left on device" in only_line(capsys)
    assert {path.name for path in folder.iterdir()} == {"config.toml", "basins.pt"}
    monkeypatch.undo()
    assert main(["resume", str(folder), "--quiet"]) == 0
    assert_same(numbers(folder), numbers(trained))


@pytest.mark.parametrize("n_files", [0, 1, 2])
def test_full_disk_while_predicting_leaves_the_former_prediction(
    n_files: int, trained: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = (folder / "config.toml").read_text()
    saving = config.replace("save_samples = false", "save_samples = true")
    (folder / "config.toml").write_text(saving)
    predict = ["predict", str(folder), "--quiet", "--predict-samples"]
    assert main([*predict, "300"]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    full_after(monkeypatch, n_files)
    assert main([*predict, "200"]) == 1
    name = ("samples.npz", "prediction.npz", "prediction.json")[n_files]
    expected = f"expected to write {folder / name}, got: No space left on device"
    assert expected in only_line(capsys)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_debug_shows_the_traceback(tmp_path: Path, capsys) -> None:
    assert main(["plot", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
