"""Plain networks: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "MLP",
    "CircularFeatures",
    "ConstantOutput",
    "constant_or_mlp",
    "harmonics",
    "in_place_of",
    "last_layers",
    "with_state",
]


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

    Example:
        >>> CircularFeatures(torch.tensor([False, True]))(torch.tensor([5.0, 0.0])).tolist()
        [1.0, 0.0, 5.0]
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


def harmonics(angles: Tensor, order: int) -> Tensor:
    r"""Cosine and sine of :math:`h\, \tau` for h from 1 to an order.

    Args:
        angles: :math:`\tau` in rad, shape ``(..., n)``.
        order: the highest h, at least 1.

    Returns:
        Shape ``(..., 2 * order * n)``.

    Example:
        >>> harmonics(torch.zeros(1), 2).tolist()
        [1.0, 0.0, 1.0, 0.0]
    """
    multiples = [h * angles for h in range(1, order + 1)]
    return torch.cat([part for m in multiples for part in (m.cos(), m.sin())], dim=-1)


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

    Args:
        kind: "constant" or "network".
        in_features, hidden, out_features, activations: as of :class:`MLP`.

    Raises:
        ValueError: ``kind`` is another word.
    """
    if kind == "constant":
        return ConstantOutput(out_features)
    if kind == "network":
        return MLP(in_features, hidden, out_features, activations, zero_output=True)
    raise ValueError(f'expected "constant" or "network", got {kind!r}')


@contextmanager
def with_state(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Put other values into some of a module's parameters and buffers, for a while.

    Afterwards, also after an error, they are what they were, bit by bit. Values are copied into
    the tensors that the module has, so optimisers and other holders of them stay valid.

    Args:
        module: changed in place inside the ``with`` block.
        state: part of a state dictionary of it, such as a draw of a weight posterior.

    Raises:
        KeyError: the module has no tensor of that name.
        ValueError: it has one of another shape.

    Example:
        >>> import torch
        >>> linear = torch.nn.Linear(1, 1)
        >>> before = linear.bias.item()
        >>> with with_state(linear, {"bias": torch.tensor([7.0])}):
        ...     linear.bias.item()
        7.0
        >>> linear.bias.item() == before
        True
    """
    own = module.state_dict()
    for name, value in state.items():
        if name not in own:
            raise KeyError(f"expected names of {type(module).__name__}'s state, got {name!r}")
        if value.shape != own[name].shape:
            raise ValueError(
                f"expected {name} of shape {tuple(own[name].shape)}, got {tuple(value.shape)}; "
                "draw from a posterior of this module"
            )
    before = {name: own[name].clone() for name in state}
    try:
        module.load_state_dict(state, strict=False)
        yield module
    finally:
        module.load_state_dict(before, strict=False)


@contextmanager
def in_place_of(module: nn.Module, tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of a module's parameters and buffers, for a while.

    Unlike ``torch.func.functional_call`` this leaves modules that are shared by parts of it, and
    so have several names, as they were.

    Args:
        module: which computes with the others inside the ``with`` block.
        tensors: the others, by the ``id`` of the parameter or buffer; those left out stay.

    Example:
        >>> import torch
        >>> linear = torch.nn.Linear(1, 1)
        >>> with in_place_of(linear, {id(linear.bias): torch.tensor([7.0])}):
        ...     linear.bias.item()
        7.0
        >>> isinstance(linear.bias, torch.nn.Parameter)
        True
    """
    holders = [held for m in module.modules() for held in (m._parameters, m._buffers)]
    before: list[dict[str, Any]] = [dict(held) for held in holders]
    try:
        for held, values in zip(holders, before, strict=True):
            held.update({k: tensors.get(id(v), v) for k, v in values.items()})
        yield
    finally:
        for held, values in zip(holders, before, strict=True):
            held.update({k: v for k, v in values.items() if id(v) in tensors})


def last_layers(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the last layer of every ``nn.Sequential`` in a module.

    Without a ``Sequential``, those of its last part that has parameters.

    Example:
        >>> last_layers(MLP(3, (16, 16), 2))
        ('layers.4.weight', 'layers.4.bias')
    """
    names: list[str] = []
    for prefix, part in module.named_modules():
        if isinstance(part, nn.Sequential):
            names += _names_of_last_part(prefix, part)
    return tuple(dict.fromkeys(names)) or tuple(_names_of_last_part("", module))


def _names_of_last_part(prefix: str, module: nn.Module) -> list[str]:
    dot = f"{prefix}." if prefix else ""
    for name, child in reversed(list(module.named_children())):
        found = [f"{dot}{name}.{parameter}" for parameter, _ in child.named_parameters()]
        if found:
            return found
    return [f"{dot}{name}" for name, _ in module.named_parameters(recurse=False)]
