"""The machine that a run uses: threads of torch, and the device of its networks and energies."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from pyrocg.config import Config
from pyrocg.sections import RunOptions

__all__ = ["default_threads", "device_of", "located", "set_threads"]


def default_threads() -> int:
    """OMP_NUM_THREADS, else 1: networks as small as these gain nothing from more."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else 1


def set_threads(options: RunOptions) -> None:
    """Give torch the threads that the options ask for."""
    torch.set_num_threads(options.threads or default_threads())


def device_of(options: RunOptions) -> torch.device:
    """Return the device that the options ask for.

    Raises:
        ValueError: this machine does not have it.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        why = "torch finds no GPU" if torch.version.cuda else "this build of torch has no CUDA"
        raise ValueError(f"run.device: expected cpu, since {why}, got cuda; use --device cpu")
    return torch.device(options.device)


def located(config: Config) -> Config:
    """The same options with paths and the number of threads that hold from anywhere."""
    system, run = config.system, config.run
    if system.pdb is not None:
        system = replace(system, pdb=str(Path(system.pdb).resolve()))
    if system.forcefield is not None:
        files = (str(Path(f).resolve()) if Path(f).is_file() else f for f in system.forcefield)
        system = replace(system, forcefield=tuple(files))
    run = replace(run, threads=run.threads or default_threads())
    return replace(config, system=system, run=run)
