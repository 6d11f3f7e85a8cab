"""A run in a folder as objects: what it is of, and its model, untrained or trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.checkpoint import load_state, put_state
from pyrocg.config import Config, read_toml, resolve
from pyrocg.machine import device_of
from pyrocg.runfolder import RunFolder
from pyrocg.system import System, build_basins, build_model, build_system

__all__ = ["Run", "load_run", "trained_run", "untrained_model"]


@dataclass(frozen=True)
class Run:
    """A run that was trained, or is being trained, as far as its last checkpoint.

    Attributes:
        config: its options.
        system: its molecule, target, coordinates and observables.
        model: as ``predict.state`` says: in its last state, or in its best, if t has reached 1.
        counters: ``step``, ``energy_calls``, ``seconds``, ``history`` and more of the training.
        basin_calls: energy calls of the search for basins.
    """

    config: Config
    system: System
    model: CoarseGrainedModel
    counters: dict[str, Any]
    basin_calls: int


def load_run(path: str | Path, device: str | None = None) -> Run:
    """Read in a run of the command line.

    Args:
        path: the folder that ``pyrocg fit`` was given as ``--out``.
        device: "cpu" or "cuda"; None for that of the run.

    Raises:
        FileNotFoundError: the folder has no run, or no checkpoint yet.
        ValueError: another version of the package wrote it, or the device is not there.
    """
    folder = RunFolder.open(path)
    given = {} if device is None else {"run": {"device": device}}
    config = resolve(given, read_toml(folder.config_file))
    return trained_run(folder, config, build_system(config))


def trained_run(folder: RunFolder, config: Config, system: System) -> Run:
    """The run in a folder, with other options of prediction and device than those of the folder.

    Raises:
        FileNotFoundError: there is no checkpoint yet.
        ValueError: it is of another model or another version of the package.
    """
    state = load_state(folder.checkpoint)
    model, basin_calls = untrained_model(folder, config, system)
    best = config.predict.state == "best" and state["counters"]["best_step"] > 0
    which = "best" if best else "model"
    put_state(model, state[which], folder.checkpoint)
    return Run(config, system, model, state["counters"], basin_calls)


def untrained_model(
    folder: RunFolder, config: Config, system: System, progress: bool = False
) -> tuple[CoarseGrainedModel, int]:
    """The untrained model on the run's device, and the energy calls that its basins took."""
    device, calls, basins = device_of(config.run), 0, None
    if config.model.kind == "basins":
        basins = folder.basins(lambda: build_basins(config, system, progress))
        calls = basins.energy_calls
    return build_model(config, system, basins).to(device), calls
