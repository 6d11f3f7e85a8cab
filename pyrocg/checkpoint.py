"""Checkpoints: one file of tensors and plain values, written atomically, loaded without pickles."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["load_state", "put_state", "save_state", "write_atomically"]


def write_atomically(path: str | Path, write: Any) -> None:
    """Write a file so that at every moment it is either the old one or the whole new one.

    Args:
        path: the file; its folder must exist.
        write: called with an open binary file.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    try:
        _write_whole(Path(path), write)
    except OSError as error:
        raise OSError(
            f"expected to write {path}, got: {error.strerror or error}; make room on the disk, or "
            "give yourself the right to write there"
        ) from error


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values, atomically.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    try:
        write_atomically(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # torch's writer reports a full disk so
        raise OSError(f"cannot write {path}: {error}") from error


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are ever constructed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"expected a checkpoint of tensors at {path}, cannot read it: {error}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"expected a dictionary in {path}, got {type(state).__name__}")
    return state


def put_state(module: nn.Module, state: dict[str, Any], path: str | Path) -> None:
    """Put tensors of a checkpoint into a module.

    Args:
        module: changed in place.
        state: its state dictionary, as it was saved.
        path: where that was read from, for the error.

    Raises:
        ValueError: it is the state of another module, or of another version of this one.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"expected the state of this {type(module).__name__} in {path}, got names or shapes of "
            "another one; it is of another model or another version of pyrocg: train again"
        ) from error


def _write_whole(path: Path, write: Any) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.umask(mask := os.umask(0))  # a temporary file is private, this one need not be
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
