"""Decoders q(u | z): modules whose call returns a Pyro distribution over reduced coordinates.

Every decoder here is unimodal given the latents, so that modes have to live in z; densities are
proper where a coordinate is circular.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyrocg.coupling_decoder import CouplingDecoder, CouplingDistribution
from pyrocg.distributions import MixedNormal
from pyrocg.networks import MLP, constant_or_mlp

__all__ = ["CouplingDecoder", "CouplingDistribution", "GaussianDecoder"]


class GaussianDecoder(nn.Module):
    r"""The paper's decoder, :math:`q(u|z) = N(u \mid \mu(z), \mathrm{diag}\,\sigma^2)`.

    Wrapped normal where the coordinate is circular. :meth:`paper` gives the settings of the paper.
    Source: Schöberl, Zabaras and Koutsourelakis (2020), arXiv:2002.10148.

    Args:
        circular: which coordinates are circular, shape ``(n_coordinates,)``.
        latent_dim: dimension of z.
        hidden: sizes of the hidden layers.
        activations: their activation, one or one per layer.
        variance: "constant", one learned vector, or "network", a function of z.
        initial_log_variance: where the log variances start.
        circular_latent: z is a point on a torus, seen as (cos z, sin z).

    Example:
        >>> import torch
        >>> decoder = GaussianDecoder(torch.tensor([False, True]), latent_dim=1)
        >>> decoder(torch.zeros(5, 1)).sample().shape
        torch.Size([5, 2])
    """

    circular: Tensor
    circular_index: Tensor
    real_index: Tensor

    def __init__(
        self,
        circular: Tensor,
        latent_dim: int,
        hidden: Sequence[int] = (100, 100, 100),
        activations: Callable[[], nn.Module] | Sequence[Callable[[], nn.Module]] = nn.Tanh,
        variance: str = "network",
        initial_log_variance: float = -0.5,
        circular_latent: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("circular", circular, persistent=False)
        self.register_buffer("circular_index", circular.nonzero()[:, 0], persistent=False)
        self.register_buffer("real_index", (~circular).nonzero()[:, 0], persistent=False)
        n_in = 2 * latent_dim if circular_latent else latent_dim
        self.circular_latent = circular_latent
        self.mean = MLP(n_in, hidden, len(circular), activations)
        self.log_variance = constant_or_mlp(variance, n_in, hidden, len(circular), activations)
        self.initial_log_variance = initial_log_variance

    @classmethod
    def paper(cls, circular: Tensor, latent_dim: int, system: str) -> GaussianDecoder:
        """Build it in the sizes of the paper's experiments, from the authors' code.

        "double-well": 100-100 (tanh), the variance a separate network of the same shape.
        "alanine-dipeptide": 100-100-100 (tanh), constant log variances that start at -0.5.

        Args:
            circular: which coordinates are circular, shape ``(n_coordinates,)``.
            latent_dim: dimension of z; the paper has 1 and 2.
            system: "double-well" or "alanine-dipeptide".

        Raises:
            ValueError: the paper has no such system.

        Example:
            >>> import torch
            >>> decoder = GaussianDecoder.paper(torch.zeros(2, dtype=torch.bool), 1, "double-well")
            >>> sum(p.numel() for p in decoder.parameters())
            21004
        """
        if system == "double-well":
            return cls(circular, latent_dim, (100, 100), nn.Tanh, "network", 0.0)
        if system == "alanine-dipeptide":
            return cls(circular, latent_dim, (100, 100, 100), nn.Tanh, "constant", -0.5)
        raise ValueError(f'expected "double-well" or "alanine-dipeptide", got {system!r}')

    def forward(self, z: Tensor) -> MixedNormal:
        """Return q(u|z) for z of shape ``(..., latent_dim)``."""
        if self.circular_latent:
            z = torch.cat([z.cos(), z.sin()], dim=-1)
        log_variance = self.initial_log_variance + self.log_variance(z)
        scale = (0.5 * log_variance).exp()
        scale = torch.where(self.circular, scale.clamp(max=4.0), scale)
        index = self.circular_index, self.real_index
        return MixedNormal(self.mean(z), scale, self.circular, index=index)
