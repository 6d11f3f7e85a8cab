"""What a posterior over the decoder's weights is: something that draws state dictionaries."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from pyrocg.bootstrap import random_stream
from pyrocg.checkpoint import save_state

__all__ = ["Layout", "VectorPosterior", "WeightPosterior", "check_draws", "trained_weights"]


class WeightPosterior(ABC):
    """Draws state dictionaries of a decoder."""

    @abstractmethod
    def draw(self, n: int, seed: int) -> list[dict[str, Tensor]]:
        """Draw n decoders.

        Args:
            n: number of draws.
            seed: of the random numbers; the global generators are left as they were.

        Returns:
            Parts of the decoder's state dictionary, by the names in ``decoder.state_dict()``.

        Raises:
            ValueError: n is below 1.
        """

    def save(self, path: str | Path) -> None:
        """Write it to a file, atomically; :func:`load_posterior` reads it.

        Raises:
            OSError: the file cannot be written; what was there before is untouched.
        """
        state = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        save_state(path, {"kind": type(self).__name__, **state})


@dataclass(frozen=True)
class Layout:
    """How a vector of weights is cut into the decoder's tensors."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> Layout:
        """Layout of some named tensors."""
        return cls(tuple(parameters), tuple(tuple(p.shape) for p in parameters.values()))

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Put tensors of this layout in one vector, float64 on the CPU."""
        parts = [parameters[name].detach().double().cpu().flatten() for name in self.names]
        return torch.cat(parts)

    def cut(self, vector: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Cut a vector into tensors."""
        parts = vector.to(dtype).split([math.prod(shape) for shape in self.shapes])
        pairs = zip(self.names, self.shapes, parts, strict=True)
        return {name: part.reshape(shape) for name, shape, part in pairs}


class VectorPosterior(WeightPosterior):
    """Draws vectors of weights."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    mean: Tensor
    dtype: torch.dtype

    @abstractmethod
    def _vector(self, generator: torch.Generator) -> Tensor:
        """Draw one vector of weights."""

    def draw(self, n: int, seed: int) -> list[dict[str, Tensor]]:
        check_draws(n)
        generator = random_stream(seed, 5)  # samples have the seed itself
        layout = Layout(self.names, self.shapes)
        return [layout.cut(self._vector(generator), self.dtype) for _ in range(n)]


def trained_weights(decoder: nn.Module) -> dict[str, Tensor]:
    """Parameters of a decoder that require gradients, by name."""
    return {name: p for name, p in decoder.named_parameters() if p.requires_grad}


def check_draws(n: int) -> None:
    """Refuse a number of draws below 1."""
    if n < 1:
        raise ValueError(f"expected a number of draws of at least 1, got {n}")
