"""Encoders r(z | u): modules whose call returns a Pyro distribution over the latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrocg.distributions import WrappedNormal
from pyrocg.networks import MLP, CircularFeatures, constant_or_mlp

__all__ = ["BasinPartition", "GaussianEncoder", "MixtureEncoder", "PartitionEncoder"]


class GaussianEncoder(nn.Module):
    r"""The paper's encoder, :math:`r(z|u) = N(z \mid \mu(u), \mathrm{diag}\,\sigma^2)`.

    Circular coordinates enter as (cos, sin). :meth:`paper` gives the settings of the paper. r has
    to be a density where p(z) lives: on a torus a normal one leaves out what it has beyond
    :math:`\pm\pi`, and all weights are too small by that; there it is wrapped.
    Source: Schöberl, Zabaras and Koutsourelakis (2020), arXiv:2002.10148.

    Args:
        circular: which coordinates are circular, shape ``(n_coordinates,)``.
        latent_dim: dimension of z.
        hidden: sizes of the hidden layers.
        activations: their activations; default the paper's, SELU and then tanh.
        variance: "constant", one learned vector, or "network", a function of u.
        initial_log_variance: where the log variances start.
        circular_latent: z is a point on a torus, see :class:`~pyrocg.priors.TorusPrior`; r is a
            wrapped normal density.

    Example:
        >>> import torch
        >>> encoder = GaussianEncoder(torch.tensor([False, True]), latent_dim=1)
        >>> encoder(torch.zeros(5, 2)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        circular: Tensor,
        latent_dim: int,
        hidden: Sequence[int] = (100, 100, 100),
        activations: Sequence[Callable[[], nn.Module]] | None = None,
        variance: str = "network",
        initial_log_variance: float = -1.0,
        circular_latent: bool = False,
    ) -> None:
        super().__init__()
        if activations is None:
            activations = (nn.SELU, *[nn.Tanh] * len(hidden))[: len(hidden)]
        self.circular_latent = circular_latent
        self.features = CircularFeatures(circular)
        self.mean = MLP(self.features.n_features, hidden, latent_dim, activations)
        self.log_variance = constant_or_mlp(
            variance, self.features.n_features, hidden, latent_dim, activations
        )
        self.initial_log_variance = initial_log_variance

    @classmethod
    def paper(cls, circular: Tensor, latent_dim: int, system: str) -> GaussianEncoder:
        """Build it in the sizes of the paper's experiments, from the authors' code.

        "double-well": 100-100-100 (SELU, tanh, tanh), the variance a network of the same shape.
        "alanine-dipeptide": 150-150-150 (SELU, SELU, log-sigmoid), constant log variances that
        start at -1.

        Args:
            circular: which coordinates are circular, shape ``(n_coordinates,)``.
            latent_dim: dimension of z; the paper has 1 and 2.
            system: "double-well" or "alanine-dipeptide".

        Raises:
            ValueError: the paper has no such system.

        Example:
            >>> import torch
            >>> circular = torch.zeros(60, dtype=torch.bool)
            >>> encoder = GaussianEncoder.paper(circular, 2, "alanine-dipeptide")
            >>> sum(p.numel() for p in encoder.mean.parameters())
            54752
        """
        if system == "double-well":
            return cls(circular, latent_dim, (100, 100, 100), None, "network", 0.0)
        if system == "alanine-dipeptide":
            activations = (nn.SELU, nn.SELU, nn.LogSigmoid)
            return cls(circular, latent_dim, (150, 150, 150), activations, "constant", -1.0)
        raise ValueError(f'expected "double-well" or "alanine-dipeptide", got {system!r}')

    def forward(self, u: Tensor) -> TorchDistributionMixin:
        """Return r(z|u) for u of shape ``(..., n_coordinates)``."""
        features = self.features(u)
        log_variance = self.initial_log_variance + self.log_variance(features)
        return _latents(self.mean(features), (0.5 * log_variance).exp(), self.circular_latent)


class MixtureEncoder(nn.Module):
    r"""A mixture of Gaussians given u.

    .. math:: r(z|u) = \sum_j w_j(u)\, N(z \mid \mu_j(u), \sigma_j^2(u))

    The mean of every mode is a linear function of the features plus a network, so that it can
    start at the exact posterior of a linear decoder (:meth:`start_posterior`). Of a
    :class:`~pyrocg.decoders.CouplingDecoder` the posterior is a function of the torsions alone;
    that is what ``columns`` is for.

    Args:
        circular: which coordinates are circular, shape ``(n_coordinates,)``.
        latent_dim: dimension of z.
        n_modes: number of Gaussians.
        hidden: sizes of the hidden layers.
        n_components: number of components k that the encoder is also given.
        columns: indices of the coordinates that it reads, default all.
        labels: what the network is told of each component, shape ``(n_components, n_labels)``;
            default one-hot.
        circular_latent: z is a point on a torus; the modes are wrapped normal densities.

    Example:
        >>> import torch
        >>> encoder = MixtureEncoder(torch.tensor([False, True]), latent_dim=1, n_components=3)
        >>> encoder(torch.zeros(5, 2), torch.tensor([0, 1, 2, 0, 1])).batch_shape
        torch.Size([5])
    """

    labels: Tensor
    columns: Tensor

    def __init__(
        self,
        circular: Tensor,
        latent_dim: int,
        n_modes: int = 4,
        hidden: Sequence[int] = (96, 96),
        n_components: int = 0,
        columns: Tensor | None = None,
        labels: Tensor | None = None,
        circular_latent: bool = False,
    ) -> None:
        super().__init__()
        self.circular_latent = circular_latent
        labels = torch.eye(max(1, n_components), n_components) if labels is None else labels
        self.register_buffer("labels", labels, persistent=False)
        columns = torch.arange(len(circular)) if columns is None else columns
        self.register_buffer("columns", columns, persistent=False)
        self.features = CircularFeatures(circular[columns])
        self.latent_dim, self.n_modes, self.n_components = latent_dim, n_modes, n_components
        n_in = self.features.n_features + labels.shape[1]
        self.network = MLP(n_in, hidden, n_modes * (2 * latent_dim + 1), zero_output=True)
        groups = max(1, n_components)
        self.linear = nn.Parameter(torch.zeros(groups, self.features.n_features, latent_dim))
        self.offset = nn.Parameter(torch.zeros(groups, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(groups, latent_dim))
        shift = 0.1 * torch.randn(n_modes, latent_dim)
        self.mode_shift = nn.Parameter(shift - shift.mean(0))

    def forward(self, u: Tensor, component: Tensor | None = None) -> TorchDistributionMixin:
        """Return r(z|u), or r(z|u, k) for components of shape ``(...)``."""
        features = self.features(u.index_select(-1, self.columns))
        k = u.new_zeros(u.shape[:-1], dtype=torch.long) if component is None else component
        inputs = torch.cat([features, self.labels[k].to(u.dtype)], dim=-1)
        mean = features.unsqueeze(-2) @ self.linear[k] + self.offset[k].unsqueeze(-2)
        out = self.network(inputs).reshape(*u.shape[:-1], self.n_modes, 2 * self.latent_dim + 1)
        shift, log_scale, logits = out.split([self.latent_dim, self.latent_dim, 1], dim=-1)
        loc = mean + shift + self.mode_shift
        scale = (self.log_scale[k].unsqueeze(-2) + log_scale).clamp(-7.0, 3.0).exp()
        modes = _latents(loc, scale, self.circular_latent)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits.squeeze(-1)), modes)

    @torch.no_grad()
    def start_posterior(self, mean: Tensor, loadings: Tensor, covariance: Tensor) -> None:
        r"""Start at the posterior of z under u ~ N(mean + z loadings, covariance).

        Given are the coordinates that the encoder reads:

        .. math:: P = I + W S^{-1} W^T, \quad z|u \sim N(P^{-1} W S^{-1} (u - m),\, P^{-1}),

        with :math:`\sin(u_j - m_j)` in place of the difference where j is circular. Of the
        covariance only the diagonal, the variances of z|u, is kept. The prior is standard normal;
        on a torus this is only a start.

        Args:
            mean: m, shape ``(n_components, n_coordinates)``.
            loadings: W, shape ``(n_components, latent_dim, n_coordinates)``.
            covariance: S, shape ``(n_components, n_coordinates, n_coordinates)``.
        """
        c, r, j = self.features.circular_index, self.features.real_index, self.columns
        for k in range(len(mean)):
            s, w = covariance[k][j][:, j].double(), loadings[k][:, j].double()
            gain = torch.linalg.solve(s, w.T).T
            precision = gain @ w.T
            precision += torch.eye(self.latent_dim, dtype=precision.dtype, device=gain.device)
            matrix, m = torch.linalg.solve(precision, gain), mean[k][j].double()
            parts = [-matrix[:, c] * m[c].sin(), matrix[:, c] * m[c].cos(), matrix[:, r]]
            self.linear[k] = torch.cat(parts, dim=1).T.to(self.linear)
            self.offset[k] = -(matrix[:, r] @ m[r]).to(self.offset)
            self.log_scale[k] = 0.5 * torch.linalg.inv(precision).diagonal().log().to(self.offset)


def _latents(loc: Tensor, scale: Tensor, circular: bool) -> TorchDistributionMixin:
    """Independent normal densities over z, wrapped on a torus."""
    if circular:
        return WrappedNormal(loc, scale.clamp(max=4.0)).to_event(1)
    return dist.Normal(loc, scale).to_event(1)


class BasinPartition(nn.Module):
    r"""A fixed, soft partition of configurations into basins, :math:`r(k|u)`.

    .. math:: r(k|u) \propto \exp\Big(\sum_j \kappa_j\, s_j(u_j - c_{kj})\Big), \quad
              s_j(d) = \cos d \text{ if circular}, \quad -d^2/2 \text{ otherwise,}

    the responsibilities of equal von Mises or normal densities around the centres. It is a
    partition of unity, so the components' targets :math:`\pi(u)\, r(k|u)` add up to the target
    exactly, for any :math:`\kappa`; being fixed, it anchors each component to its basin.

    Args:
        centres: :math:`c_{kj}`, shape ``(n_components, n_columns)``.
        columns: which coordinates j, indices in u, shape ``(n_columns,)``.
        circular: which coordinates of u are circular, shape ``(n_coordinates,)``.
        concentration: :math:`\kappa_j`, a number or shape ``(n_columns,)``.

    Example:
        >>> import torch
        >>> centres, circular = torch.tensor([[0.0], [torch.pi]]), torch.tensor([True])
        >>> r = BasinPartition(centres, torch.tensor([0]), circular, 2.0)
        >>> r(torch.tensor([[torch.pi / 2]])).probs.tolist()
        [[0.5, 0.5]]
    """

    centres: Tensor
    columns: Tensor
    circular: Tensor
    concentration: Tensor

    def __init__(
        self,
        centres: Tensor,
        columns: Tensor,
        circular: Tensor,
        concentration: Tensor | float = 4.0,
    ) -> None:
        super().__init__()
        if centres.dim() != 2 or columns.shape != centres.shape[1:]:
            raise ValueError(
                "expected centres of shape (n_components, n_columns) and n_columns indices, "
                f"got {tuple(centres.shape)} and {tuple(columns.shape)}"
            )
        kappa = torch.as_tensor(concentration, dtype=centres.dtype).expand(columns.shape).clone()
        if not bool((kappa > 0).all()):
            raise ValueError(f"expected concentrations > 0, got {kappa.tolist()}")
        self.register_buffer("centres", centres)
        self.register_buffer("columns", columns)
        self.register_buffer("circular", circular[columns])
        self.features = CircularFeatures(self.circular)
        self.register_buffer("concentration", kappa)

    def forward(self, u: Tensor) -> dist.Categorical:
        """Return r(k|u) for u of shape ``(..., n_coordinates)``."""
        c, r = self.features.circular_index, self.features.real_index
        chosen, kappa = u.index_select(-1, self.columns), self.concentration
        # cos(u - c) as a product: one cosine for each angle, not one for each of the components
        angles, centres = chosen.index_select(-1, c), self.centres.index_select(-1, c)
        towards = torch.cat([kappa[c] * centres.cos(), kappa[c] * centres.sin()], dim=-1)
        logits = torch.cat([angles.cos(), angles.sin()], dim=-1) @ towards.mT.to(u.dtype)
        if len(r):
            away = chosen.index_select(-1, r).unsqueeze(-2) - self.centres.index_select(-1, r)
            logits = logits - 0.5 * (kappa[r] * away.square()).sum(-1)
        return dist.Categorical(logits=logits)


class PartitionEncoder(nn.Module):
    r"""The encoder of a mixture latent, :math:`r(k, z|u) = r(k|u)\, r(z|u, k)`.

    A Pyro program with the sites "component" and "z", the counterpart of
    :class:`~pyrocg.priors.StratifiedPrior`.

    Args:
        partition: r(k|u), a module whose call returns a categorical distribution.
        encoder: r(z|u, k), called with u and k.

    Example:
        >>> import torch
        >>> circular = torch.tensor([True])
        >>> partition = BasinPartition(torch.tensor([[0.0], [3.0]]), torch.tensor([0]), circular)
        >>> encoder = PartitionEncoder(partition, MixtureEncoder(circular, 2, n_components=2))
        >>> z, component = encoder(torch.zeros(5, 1))
        >>> z.shape, component.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, partition: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.partition = partition
        self.encoder = encoder

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the two sites, return ``(z, component)``."""
        component = pyro.sample("component", self.partition(u))
        return pyro.sample("z", self.encoder(u, component)), component
