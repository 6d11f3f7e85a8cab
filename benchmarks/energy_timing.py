"""Rates of engines, each in turn with a baseline, so that other load meets both."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from energy_engines import Row
from torch import Tensor


def warmed(rows: list[Row]) -> list[float]:
    """Seconds that the first call of every row takes, with compilation and the start of workers."""
    seconds = []
    for row in rows:
        start = time.perf_counter()
        row.run()
        seconds.append(time.perf_counter() - start)
        row.run()
    return seconds


class Burst(NamedTuple):
    """What was done in a short while."""

    rate: float
    """Configurations per second."""
    cores: float
    """Processor time per time, fewer cores than asked for on a busy machine."""


def burst(row: Row, seconds: float) -> Burst:
    """Run a row until some time has passed."""
    count, start, busy = 0, time.perf_counter(), processor_time()
    while True:
        row.run()
        count += len(row.x)
        if (elapsed := time.perf_counter() - start) >= seconds:
            return Burst(count / elapsed, (processor_time() - busy) / elapsed)


def processor_time() -> float:
    """Seconds that this process and those that it started have computed; on Linux."""
    total = time.process_time()
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            for thread in Path(f"/proc/{child}/task").glob("*/schedstat"):
                total += 1e-9 * int(thread.read_text().split()[0])
    return total


class Rate(NamedTuple):
    """Medians over rounds."""

    rate: float
    """Configurations per second."""
    ratio: float
    """To the baseline, timed just before."""
    cores: float
    """Cores that the engine got."""
    core_ratio: float
    """Configurations per second of processor time, to the baseline's."""


def rates(rows: list[Row], rounds: int, seconds: float) -> list[Rate]:
    """The rate of every row, in turn with the first, the baseline."""
    found: list[list[Rate]] = [[] for _ in rows]
    for _ in range(rounds):
        for row, results in zip(rows, found, strict=True):
            base = burst(rows[0], seconds)
            mine = base if row is rows[0] else burst(row, seconds)
            ratio, share = mine.rate / base.rate, base.cores / mine.cores
            results.append(Rate(mine.rate, ratio, mine.cores, ratio * share))
    return [Rate(*map(statistics.median, zip(*results, strict=True))) for results in found]


def errors(row: Row, x: np.ndarray, expected: tuple[Any, Any]) -> tuple[float, float]:
    """Largest relative errors of energies, NaN where a row has none, and forces.

    Differences of energies are divided by the mean absolute energy, those of force components by
    the configuration's largest.
    """
    energies, forces = expected
    got = row.evaluate(torch.from_numpy(x).to(row.x) if isinstance(row.x, Tensor) else x)
    of_energy = np.nan if got[0] is None else np.abs(_numbers(got[0]) - energies).max()
    of_forces = np.abs(_numbers(got[1]) - forces).max(axis=(1, 2))
    return of_energy / np.abs(energies).mean(), (of_forces / np.abs(forces).max(axis=(1, 2))).max()


def _numbers(a: Any) -> np.ndarray:
    return np.asarray(torch.as_tensor(a).cpu(), dtype=np.float64)
