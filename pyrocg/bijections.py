"""What all reduced coordinates share: a bijection u -> x with its exact log|det|."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Coordinates", "IdentityCoordinates"]


class Coordinates(nn.Module, ABC):
    r"""A bijection :math:`x = T(u)` between reduced coordinates and configurations.

    Every coordinate is either *real* (:math:`u_i \in \mathbb{R}`, about one unit wide when
    thermal) or *circular* (:math:`u_i` and :math:`u_i + 2\pi` are the same point; any real value
    is accepted, :meth:`inverse` returns :math:`[-\pi, \pi)`). A bounded quantity is mapped to the
    real line, so that every density over u is a proper density over x.

    Args:
        event_shape: shape of one configuration x.
        names: a name for every coordinate.
        circular: which coordinates are circular, shape ``(n_coordinates,)``; default none.

    Attributes:
        origin: the reference configuration in reduced coordinates, shape ``(n_coordinates,)``.
        rotatable: indices of the circular coordinates that tell conformations apart.

    Example:
        >>> class Scaled(Coordinates):  # x = 2 u
        ...     def _forward(self, u):
        ...         return 2 * u, torch.full(u.shape[:-1], self.n_coordinates * 2.0).log()
        ...
        ...     def _inverse(self, x):
        ...         return x / 2, self._forward(x / 2)[1]
        >>> x, log_abs_det = Scaled((1,), ["length"])(torch.tensor([1.5]))
        >>> x.item(), round(log_abs_det.exp().item(), 4)
        (3.0, 2.0)
    """

    circular: Tensor
    origin: Tensor
    rotatable: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        names: Sequence[str],
        circular: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.names = tuple(names)
        if circular is None:
            circular = torch.zeros(len(self.names), dtype=torch.bool)
        self.register_buffer("circular", circular, persistent=False)
        self.register_buffer("origin", torch.zeros(len(self.names)), persistent=False)
        self.register_buffer("rotatable", circular.nonzero()[:, 0], persistent=False)

    @property
    def n_coordinates(self) -> int:
        """Number of reduced coordinates."""
        return len(self.names)

    @abstractmethod
    def _forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map u (..., n_coordinates) to x (..., *event_shape) and log|det dx/du| (...)."""

    @abstractmethod
    def _inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to u and log|det dx/du| at u."""

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x`` of shape ``(..., *event_shape)`` and ``log|det dx/du|`` of shape ``(...)``.

        Raises:
            ValueError: the last dimension of ``u`` is not ``n_coordinates``.
        """
        if u.dim() < 1 or u.shape[-1] != self.n_coordinates:
            raise ValueError(
                f"expected reduced coordinates of shape (..., {self.n_coordinates}), "
                f"got {tuple(u.shape)}"
            )
        return self._forward(u)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``u`` of shape ``(..., n_coordinates)`` and ``log|det dx/du|`` at that ``u``.

        Raises:
            ValueError: the trailing dimensions of ``x`` are not ``event_shape``.
        """
        n = len(self.event_shape)
        if x.dim() < n or x.shape[x.dim() - n :] != self.event_shape:
            raise ValueError(
                f"expected positions of shape (..., {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}"
            )
        return self._inverse(x)


class IdentityCoordinates(Coordinates):
    r"""The identity, :math:`x = u \in \mathbb{R}^d`, for potentials that have no rigid motion.

    Args:
        dim: the dimension d.

    Example:
        >>> import torch
        >>> x, log_abs_det = IdentityCoordinates(2)(torch.tensor([[1.0, 2.0]]))
        >>> x.tolist(), log_abs_det.tolist()
        ([[1.0, 2.0]], [0.0])
    """

    def __init__(self, dim: int) -> None:
        super().__init__((dim,), [f"x{i + 1}" for i in range(dim)])

    def _forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return u, u.new_zeros(u.shape[:-1])

    def _inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(x.shape[:-1])
