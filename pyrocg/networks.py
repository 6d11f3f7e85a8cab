"""Plain networks: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["MLP", "CircularFeatures", "ConstantOutput", "constant_or_mlp"]


class MLP(nn.Module):
    """A multilayer perceptron.

    Args:
        in_features: size of the last dimension of the input.
        hidden: sizes of the hidden layers.
        out_features: size of the last dimension of the output.
        activations: one activation module class for all hidden layers, or one per layer.
        zero_output: start with an output of zero, by zero weights and biases of the last layer.

    Example:
        >>> import torch
        >>> mlp = MLP(3, (16, 16), 2, torch.nn.Tanh, zero_output=True)
        >>> mlp(torch.ones(5, 3)).abs().sum().item()
        0.0
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        activations: Callable[[], nn.Module] | Sequence[Callable[[], nn.Module]] = nn.SiLU,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_features, *hidden)
        per_layer = [activations] * len(hidden) if callable(activations) else list(activations)
        if len(per_layer) != len(hidden):
            raise ValueError(
                f"expected one activation or {len(hidden)} of them, one for each hidden layer, "
                f"got {len(per_layer)}"
            )
        layers: list[nn.Module] = []
        for (n_in, n_out), activation in zip(pairwise(sizes), per_layer, strict=True):
            layers += [nn.Linear(n_in, n_out), activation()]
        last = nn.Linear(sizes[-1], out_features)
        if zero_output:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.layers(x)


class CircularFeatures(nn.Module):
    """Features of reduced coordinates that are continuous on the circle: (cos, sin) and the reals.

    Args:
        circular: which coordinates are circular, shape ``(n_coordinates,)``.
    """

    circular_index: Tensor
    real_index: Tensor

    def __init__(self, circular: Tensor) -> None:
        super().__init__()
        self.register_buffer("circular_index", circular.nonzero().squeeze(-1), persistent=False)
        self.register_buffer("real_index", (~circular).nonzero().squeeze(-1), persistent=False)
        self.n_features = len(circular) + int(circular.sum())

    def forward(self, u: Tensor) -> Tensor:
        """Map u (..., n_coordinates) to (..., n_features)."""
        angles = u.index_select(-1, self.circular_index)
        reals = u.index_select(-1, self.real_index)
        return torch.cat([angles.cos(), angles.sin(), reals], dim=-1)


class ConstantOutput(nn.Module):
    """A learned vector that ignores its input.

    Args:
        size: of the vector, which starts at zero.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the vector, shape ``(..., size)``."""
        return self.value.expand(*x.shape[:-1], -1)


def constant_or_mlp(
    kind: str,
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    activations: Callable[[], nn.Module] | Sequence[Callable[[], nn.Module]],
) -> nn.Module:
    """Return a learned vector ("constant") or a network ("network"), both starting at zero.

    Raises:
        ValueError: ``kind`` is another word.
    """
    if kind == "constant":
        return ConstantOutput(out_features)
    if kind == "network":
        return MLP(in_features, hidden, out_features, activations, zero_output=True)
    raise ValueError(f'expected "constant" or "network", got {kind!r}')
