"""The folder of a run: which file holds what, each written whole or not at all."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrocg.basins import Basins
from pyrocg.checkpoint import load_state, save_state, write_atomically
from pyrocg.config import Config, read_toml, resolve, to_toml
from pyrocg.observables import Observable
from pyrocg.prediction import Prediction
from pyrocg.training import FitResult

__all__ = ["RunFolder", "plain"]

_SCALARS = (
    "beta",
    "level",
    "log_z",
    "log_z_interval",
    "elbo",
    "ess",
    "pareto_k",
    "energy_calls",
    "nonfinite",
    "seed",
    "n_draws",
)
_ARRAYS = ("energies", "weight_draw")
_TENSORS = ("log_weights", "smoothed_log_weights", "plain_log_weights")


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    ``config.toml``: every option; ``basins.pt``: the basins; ``checkpoint.pt``: the training;
    ``history.json`` and ``history.csv``: its course, once it has ended; ``prediction.json``: the
    results; ``prediction.npz``: values and weights of the samples; ``samples.npz``: their
    positions, if asked for; and the pictures.
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path, config: Config) -> RunFolder:
        """Start a run in a folder without one, and write its options.

        Raises:
            FileExistsError: the folder has a run.
            OSError: the options cannot be written; no folder is left that was not there.
        """
        cls.check_free(path)
        folder = cls(Path(path))
        made = [p for p in (folder.path, *folder.path.parents) if not p.exists()]
        try:
            folder._make()
            folder._write(folder.config_file, to_toml(config))
        except BaseException:
            with suppress(OSError):
                for each in made:
                    each.rmdir()
            raise
        return folder

    @classmethod
    def check_free(cls, path: str | Path) -> None:
        """Refuse a folder that has a run.

        Raises:
            FileExistsError: the folder has a run, or is a file.
        """
        folder = cls(Path(path))
        if folder.config_file.exists():
            raise FileExistsError(
                f"expected a folder without a run, got {path}; "
                f"continue it by `pyrocg resume {path}`, or name another --out"
            )
        if folder.path.exists() and not folder.path.is_dir():
            raise FileExistsError(f"expected a folder, got the file {path}; name another --out")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Return the run in a folder.

        Raises:
            FileNotFoundError: the folder has none.
        """
        folder = cls(Path(path))
        if not folder.config_file.is_file():
            raise FileNotFoundError(
                f"expected the folder of a run, with config.toml, got {path}; start one by "
                f"`pyrocg fit SYSTEM --out {path}`"
            )
        return folder

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from training in the folder, until this one ends, by whatever.

        Half-written files of a training that was killed are removed.

        Raises:
            BlockingIOError: another process trains in it.
        """
        with self.config_file.open("r+b") as file:  # NFS locks only what can be written
            try:
                _lock(file)
                if not os.path.samestat(os.fstat(file.fileno()), self.config_file.stat()):
                    raise BlockingIOError  # another process began the same run just now
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"expected no other process that trains in {self.path}, got one; wait until it "
                    "has ended, or stop it"
                ) from error
            for name in ("basins.pt", "checkpoint.pt", "history.csv", "history.json"):
                for half in self.path.glob(f".{name}.*"):
                    half.unlink(missing_ok=True)
            yield

    @property
    def config_file(self) -> Path:
        """The options."""
        return self.path / "config.toml"

    @property
    def checkpoint(self) -> Path:
        """The state of the training."""
        return self.path / "checkpoint.pt"

    @property
    def is_trained(self) -> bool:
        """Whether the training has ended."""
        return (self.path / "history.json").is_file()

    def config(self) -> Config:
        """Read the options."""
        return resolve(read_toml(self.config_file))

    def basins(self, find: Callable[[], Basins]) -> Basins:
        """Return the basins of the run; they are found once."""
        file = self.path / "basins.pt"
        if file.is_file():
            return Basins(**load_state(file))
        basins = find()
        save_state(file, vars(basins))
        return basins

    def write_history(
        self, result: FitResult, energy_calls: dict[str, int], engine: dict[str, Any]
    ) -> None:
        """Write the course of the training, which says that it has ended."""
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(result.history)
        writer.writerows(zip(*result.history.values(), strict=True))
        self._write(self.path / "history.csv", rows.getvalue())
        self.write_json(
            "history.json",
            {
                "steps": result.steps,
                "stopped": result.stopped,
                "seconds": result.seconds,
                "skipped": result.skipped,
                "best_step": result.best_step,
                "engine": engine,
                "energy_calls": energy_calls,
                "history": result.history,
            },
        )

    def history(self) -> dict[str, Any]:
        """Read the course of the training.

        Raises:
            FileNotFoundError: the training has not ended.
        """
        return self._read_json("history.json", "resume")

    def prediction_summary(self) -> dict[str, Any]:
        """Read the results.

        Raises:
            FileNotFoundError: nothing was predicted yet.
        """
        return self._read_json("prediction.json", "predict")

    def write_prediction(
        self, prediction: Prediction, summary: dict[str, Any], with_samples: bool
    ) -> None:
        """Write the results, the values and weights of the samples, and maybe their positions.

        All are written beside the former ones first, which a failure leaves as they were. The
        summary goes first and comes last, so that it is never beside arrays of another prediction.

        Raises:
            OSError: they cannot be written; what was there before is untouched.
        """
        arrays = {
            **{name: getattr(prediction, name).numpy() for name in _TENSORS},
            **{name: getattr(prediction, name) for name in _ARRAYS},
            **{f"value/{name}": value for name, value in prediction.values.items()},
            **{f"latent/{name}": value for name, value in prediction.latents.items()},
            **{f"scalar/{name}": np.asarray(getattr(prediction, name)) for name in _SCALARS},
        }
        samples = {"positions": prediction.positions} if with_samples else None
        with tempfile.TemporaryDirectory(dir=self.path, prefix=".prediction.") as beside:
            new = RunFolder(Path(beside))
            try:
                if samples is not None:
                    new._write_arrays("samples.npz", samples)
                new._write_arrays("prediction.npz", arrays)
                new.write_json("prediction.json", summary)
            except OSError as error:
                raise OSError(str(error).replace(str(new.path), str(self.path))) from error
            for name in ("prediction.json", "samples.npz"):
                (self.path / name).unlink(missing_ok=True)
            for name in ("samples.npz", "prediction.npz", "prediction.json"):
                if (new.path / name).is_file():
                    (new.path / name).replace(self.path / name)

    def prediction(self, observables: Sequence[Observable]) -> Prediction | None:
        """Read back what :meth:`write_prediction` wrote; None if nothing.

        Positions are there if they were saved (``run.save_samples``); if not, they are an array of
        no configurations, of which no trajectory can be written.

        Raises:
            ValueError: another version of the package wrote it.
        """
        file = self.path / "prediction.npz"
        if not file.is_file():
            return None
        arrays = _read_arrays(file)
        missing = {*_ARRAYS, *_TENSORS, *(f"scalar/{name}" for name in _SCALARS)} - arrays.keys()
        if missing:
            raise ValueError(
                f"expected {', '.join(sorted(missing))} in {file}, which another version wrote; "
                f"predict again by `pyrocg predict {self.path}`"
            )
        samples = self.path / "samples.npz"
        positions = _read_arrays(samples)["positions"] if samples.is_file() else np.zeros((0,))

        def group(prefix: str) -> dict[str, Any]:
            n = len(prefix) + 1
            return {name[n:]: v for name, v in arrays.items() if name.startswith(prefix + "/")}

        scalars = {name: value.tolist() for name, value in group("scalar").items()}
        scalars["log_z_interval"] = tuple(scalars["log_z_interval"])
        return Prediction(
            positions=positions,
            latents=group("latent"),
            values=group("value"),
            observables=tuple(observables),
            **{name: torch.from_numpy(arrays[name]) for name in _TENSORS},
            **{name: arrays[name] for name in _ARRAYS},
            **scalars,
        )

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file; numbers that JSON does not have become null."""
        self._write(self.path / name, json.dumps(plain(value), indent=1) + "\n")

    def write_figure(self, name: str, figure: Any) -> Path:
        """Write a Matplotlib figure as a picture."""
        path = self.path / name
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))
        return path

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"expected a folder that can be made, got {self.path}: {error.strerror}; "
                "name another --out"
            ) from error

    def _write(self, path: Path, text: str) -> None:
        write_atomically(path, lambda file: file.write(text.encode()))

    def _write_arrays(self, name: str, arrays: dict[str, Any]) -> None:
        write_atomically(self.path / name, lambda file: np.savez_compressed(file, **arrays))

    def _read_json(self, name: str, command: str) -> dict[str, Any]:
        file = self.path / name
        if not file.is_file():
            raise FileNotFoundError(
                f"expected {file}, found no such file; write it by `pyrocg {command} {self.path}`"
            )
        return json.loads(file.read_text())


def _lock(file: Any) -> None:
    """Lock a file until it is closed, on systems and disks that can.

    Raises:
        BlockingIOError: another process has locked it.
    """
    with suppress(ImportError):  # only Unix has it
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(*error.args) from error


def _read_arrays(file: Path) -> dict[str, Any]:
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


def plain(value: Any) -> Any:
    """The same value with NaN and infinities as None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
