"""An expressive decoder q(u | z): torsions, then all other coordinates by affine couplings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyrocg.couplings import AffineCoupling, random_halves
from pyrocg.distributions import MoebiusNormal
from pyrocg.networks import MLP, harmonics

__all__ = ["CouplingDecoder", "CouplingDistribution"]

_HARMONICS = 3  # that the couplings see of each torsion, as its potential mostly has
_FEW = 10_000  # numbers of matrices that cost less to copy than another component; measured
_LARGEST_OMEGA = 0.999  # of the Möbius map; nearer to 1, float32 has no digits of 1 - |ω|²


class CouplingDecoder(nn.Module):
    r"""An expressive decoder that is unimodal given z, with optional mixture components k.

    Circular coordinates :math:`\tau` (torsions) and real coordinates v (the rest):

    .. math::
        \tau_j &= c_{kj} + (B_k z)_j + \sum_i D_{kij} \sin(\tau_i - c_{ki})
                  + m_j + h_{\omega_j}(\sigma_j\, \epsilon_j) \pmod{2\pi} \\
        v &= a_k + A_k \sin(\tau - c_k) + L_k\, f(\epsilon_v;\, \tau, k)

    with h the Möbius map of :class:`~pyrocg.distributions.MoebiusNormal`; :math:`m_j, \sigma_j` and
    :math:`\omega_j` are functions of z, k and the torsions :math:`\tau_i` that are drawn before
    :math:`\tau_j`. Those of ``chain`` are drawn one after another, in that order, then all others
    at once. f is a chain of affine couplings (Dinh, Sohl-Dickstein and Bengio 2017)
    with bounded log scales, both starting at the identity. Each pair of couplings halves v in its
    own fixed, random way, and is told :math:`\cos h\tau` and :math:`\sin h\tau` up to h = 3. So z
    reaches v through the torsions only; where no coordinate is circular, z itself takes the place
    of the torsions in both terms. :meth:`start_linear` sets the constants, for instance to the
    Laplace approximation of each basin, so that training begins close to the answer.

    Args:
        circular: which coordinates are circular, shape ``(n_coordinates,)``.
        latent_dim: dimension of z.
        n_components: number of components k; 0 for none.
        n_couplings: number of coupling layers.
        hidden: sizes of the hidden layers of each coupling.
        torsion_hidden: sizes of the hidden layers of the networks of the torsions.
        labels: what the networks are told of each component, shape ``(n_components, n_labels)``;
            default one-hot. Where components are many, numbers that are close for similar
            components let each learn from the others.
        chain: circular coordinates to draw one after another, indices in u; default none.
        embedding: how many learned numbers the networks are told of each component beside its
            labels, so that it can differ from similar ones.

    Raises:
        ValueError: a coordinate of the chain is not circular, or in it twice; or there is nothing
            to embed.

    Example:
        >>> decoder = CouplingDecoder(torch.tensor([False, True, False]), 1, n_components=2)
        >>> q = decoder(torch.zeros(5, 1), torch.tensor([0, 1, 0, 1, 0]))
        >>> q.rsample().shape, q.event_shape
        (torch.Size([5, 3]), torch.Size([3]))
    """

    centres: Tensor
    real_centres: Tensor
    scale_tril: Tensor
    inverse_tril: Tensor
    circular_index: Tensor
    real_index: Tensor
    order: Tensor
    labels: Tensor

    def __init__(
        self,
        circular: Tensor,
        latent_dim: int,
        n_components: int = 0,
        n_couplings: int = 6,
        hidden: Sequence[int] = (128, 128),
        torsion_hidden: Sequence[int] = (64, 64),
        labels: Tensor | None = None,
        chain: Tensor | None = None,
        embedding: int = 0,
    ) -> None:
        super().__init__()
        if embedding and not n_components:
            raise ValueError(
                f"expected components for an embedding of {embedding} numbers, got none; "
                "leave it out"
            )
        n_circular, n_real = int(circular.sum()), int((~circular).sum())
        self.latent_dim, self.n_components = latent_dim, n_components
        groups = max(1, n_components)
        labels = torch.eye(groups, n_components) if labels is None else labels
        self.register_buffer("labels", labels, persistent=False)
        chain = torch.empty(0, dtype=torch.long) if chain is None else chain
        circular_index, real_index = _chained(circular, chain), (~circular).nonzero()[:, 0]
        self.register_buffer("circular_index", circular_index, persistent=False)
        self.register_buffer("real_index", real_index, persistent=False)
        order = torch.cat([circular_index, real_index]).argsort()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("centres", torch.zeros(groups, n_circular))
        self.register_buffer("real_centres", torch.zeros(groups, n_real))
        self.register_buffer("scale_tril", torch.eye(n_real).repeat(groups, 1, 1))
        self.register_buffer("inverse_tril", torch.eye(n_real).repeat(groups, 1, 1))
        if n_circular:
            self.loadings = nn.Parameter(torch.zeros(groups, latent_dim, n_circular))
            self.log_scale = nn.Parameter(torch.zeros(groups, n_circular))
        self.slopes = nn.Parameter(torch.zeros(groups, n_circular or latent_dim, n_real))
        self.edges = sorted({*range(len(chain) + 1), n_circular})  # of the blocks drawn at once
        if len(self.edges) > 2:
            self.torsion_slopes = nn.Parameter(torch.zeros(groups, self.edges[-2], n_circular))
        self.embedding = nn.Parameter(torch.randn(groups, embedding)) if embedding else None
        n_labels = labels.shape[1] + embedding
        n_told = latent_dim + n_labels
        self.torsion_networks = nn.ModuleList(
            MLP(n_told + 2 * first, torsion_hidden, 4 * (last - first), zero_output=True)
            for first, last in pairwise(self.edges)
        )
        n_condition = (2 * _HARMONICS * n_circular or latent_dim) + n_labels
        self.couplings = nn.ModuleList(
            AffineCoupling(order, n_condition, hidden)
            for order in (random_halves(n_real, n_couplings) if n_real else ())
        )

    def forward(self, z: Tensor, component: Tensor | None = None) -> CouplingDistribution:
        """Return q(u|z, k) for z of shape ``(..., latent_dim)`` and k of shape ``(...)``.

        Raises:
            ValueError: there is a component where there should be none, or none where there should.
        """
        if (component is None) != (self.n_components == 0):
            raise ValueError(
                f"expected {'components' if self.n_components else 'no components'} for a decoder "
                f"with n_components={self.n_components}, got component={component}"
            )
        k = z.new_zeros(z.shape[:-1], dtype=torch.long) if component is None else component
        return CouplingDistribution(self, z, k)

    def torsions(self, z: Tensor, k: Tensor, before: Tensor, block: int) -> MoebiusNormal:
        """Distribution of a block of circular coordinates given the latents and those before."""
        first, last = self.edges[block : block + 2]
        inputs = torch.cat([z, self._told(z, k), before.cos(), before.sin()], dim=-1)
        shift, log_scale, *warp = self.torsion_networks[block](inputs).chunk(4, dim=-1)
        centre, past = self.centres[k][..., first:last], self.centres[k][..., :first]
        linear = _apply(self.loadings[..., first:last], k, z)
        if first:
            slopes = self.torsion_slopes[:, :first, first:last]
            linear = linear + _apply(slopes, k, (before - past).sin())
        scale = self.log_scale[k][..., first:last] + log_scale
        scale = scale.clamp(-7.0, math.log(4.0) - 1e-4).exp()
        w = torch.stack(warp, dim=-1)
        omega = _LARGEST_OMEGA * w / (1.0 + w.square().sum(-1, keepdim=True)).sqrt()
        return MoebiusNormal(centre + linear + shift, scale, omega, validate_args=False)

    def _told(self, z: Tensor, k: Tensor) -> Tensor:
        """What the networks are told of components."""
        labels = self.labels[k].to(z.dtype)
        return labels if self.embedding is None else torch.cat([labels, self.embedding[k]], dim=-1)

    def condition(self, tau: Tensor, z: Tensor, k: Tensor) -> Tensor:
        """What the couplings are told: the torsions, or z where there are none, and k."""
        cause = harmonics(tau, _HARMONICS) if tau.shape[-1] else z
        return torch.cat([cause, self._told(z, k)], dim=-1)

    def conditional_centre(self, tau: Tensor, z: Tensor, k: Tensor) -> Tensor:
        """Centre of the real coordinates given the torsions, or z where there are none."""
        cause = (tau - self.centres[k]).sin() if tau.shape[-1] else z
        return self.real_centres[k] + _apply(self.slopes, k, cause)

    @torch.no_grad()
    def start_linear(self, mean: Tensor, loadings: Tensor, covariance: Tensor) -> None:
        r"""Start every component at a linear-Gaussian decoder, u ~ N(m + z W, S).

        Exact where no coordinate is circular. Else so is the marginal of u to first order in the
        torsions' deviations, with :math:`\Sigma` its covariance :math:`W^T W + S` and c, r the
        circular and the real coordinates,

        .. math:: A = \Sigma_{cc}^{-1} \Sigma_{cr}, \quad
                  L L^T = \Sigma_{rr} - \Sigma_{rc} \Sigma_{cc}^{-1} \Sigma_{cr},

        but for correlations, given z, among the circular coordinates that are drawn at once, which
        are dropped.

        Args:
            mean: m, shape ``(n_components, n_coordinates)``.
            loadings: W, shape ``(n_components, latent_dim, n_coordinates)``.
            covariance: S, shape ``(n_components, n_coordinates, n_coordinates)``; standard
                deviations of circular coordinates at most 4 rad.
        """
        c, r = self.circular_index, self.real_index
        to = self.centres
        for k in range(len(mean)):
            given_z, w = covariance[k].double(), loadings[k].double()
            s = given_z + w.T @ w if len(c) else given_z
            slopes = torch.linalg.solve(s[c][:, c], s[c][:, r]) if len(c) else w[:, r]
            residual = s[r][:, r] - s[r][:, c] @ slopes[: len(c)]
            self.centres[k], self.real_centres[k] = mean[k][c].to(to), mean[k][r].to(to)
            self.slopes[k] = slopes.to(to)
            for first, last in pairwise(self.edges):
                past, now = c[:first], c[first:last]
                gain = torch.linalg.solve(given_z[past][:, past], given_z[past][:, now])
                rest = given_z[now][:, now] - given_z[now][:, past] @ gain
                if first:
                    self.torsion_slopes[k, :first, first:last] = gain.to(to)
                self.loadings[k, :, first:last] = (w[:, now] - w[:, past] @ gain).to(to)
                self.log_scale[k, first:last] = 0.5 * rest.diagonal().log().to(to)
            tril = torch.linalg.cholesky(residual)
            self.scale_tril[k], self.inverse_tril[k] = tril.to(to), torch.linalg.inv(tril).to(to)


class CouplingDistribution(TorchDistribution):
    """The distribution that :class:`CouplingDecoder` returns.

    The density of a value just drawn comes with the draw; of any other value by the inverse.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, decoder: CouplingDecoder, z: Tensor, k: Tensor) -> None:
        self.decoder, self.z, self.k = decoder, z, k
        self._drawn: tuple[Tensor, Tensor] | None = None
        n = len(decoder.order)
        super().__init__(z.shape[:-1], torch.Size([n]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CouplingDistribution:
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:
            return self
        return CouplingDistribution(
            self.decoder, self.z.expand(*shape, self.z.shape[-1]), self.k.expand(shape)
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        d = self.decoder
        shape = torch.Size(sample_shape) + self.batch_shape
        z, k = self.z.expand(*shape, self.z.shape[-1]), self.k.expand(shape)
        tau, log_prob = z.new_zeros(*shape, 0), z.new_zeros(shape)
        for block in range(len(d.torsion_networks)):
            torsions = d.torsions(z, k, tau, block)
            drawn = torsions.rsample()
            log_prob = log_prob + torsions.log_prob(drawn).sum(-1)
            tau = torch.cat([tau, drawn], dim=-1)
        xi = torch.randn(*shape, len(d.real_index), dtype=z.dtype, device=z.device)
        log_prob = log_prob - 0.5 * (xi.square() + math.log(2 * math.pi)).sum(-1)
        condition = d.condition(tau, z, k)
        for coupling in d.couplings:
            xi, log_abs_det = coupling(xi, condition)
            log_prob = log_prob - log_abs_det
        v = d.conditional_centre(tau, z, k) + _multiply(d.scale_tril, k, xi)
        log_prob = log_prob - _log_det_tril(d.scale_tril)[k]
        u = torch.cat([tau, v], dim=-1).index_select(-1, d.order)
        self._drawn = (u, log_prob)
        return u

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn is not None and self._drawn[0] is value:
            return self._drawn[1]
        noise, log_abs_det = self.noise(value)
        log_prob = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1) - log_abs_det
        for torsions, tau in self.torsions(value):
            log_prob = log_prob + torsions.log_prob(tau).sum(-1)
        return log_prob

    def torsions(self, value: Tensor) -> Iterator[tuple[MoebiusNormal, Tensor]]:
        """Distribution of each block of torsions given those before it, and the block's values."""
        tau = value.index_select(-1, self.decoder.circular_index)
        for block, (first, last) in enumerate(pairwise(self.decoder.edges)):
            found = self.decoder.torsions(self.z, self.k, tau[..., :first], block)
            yield found, tau[..., first:last]

    def noise(self, value: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\epsilon_v` and log|det dv/dε| at a value."""
        d, z, k = self.decoder, self.z, self.k
        tau, v = value.index_select(-1, d.circular_index), value.index_select(-1, d.real_index)
        noise = _multiply(d.inverse_tril, k, v - d.conditional_centre(tau, z, k))
        condition, log_abs_det = d.condition(tau, z, k), _log_det_tril(d.scale_tril)[k]
        for coupling in reversed(list(d.couplings)):
            noise, of_coupling = coupling.inverse(noise, condition)
            log_abs_det = log_abs_det + of_coupling
        return noise, log_abs_det


def _apply(matrices: Tensor, k: Tensor, x: Tensor) -> Tensor:
    """Return x @ matrices[k] for x (..., n), k (...) and matrices (n_components, n, m)."""
    chosen = matrices.index_select(0, k.reshape(-1))
    rows = x.reshape(len(chosen), 1, x.shape[-1])
    return (rows @ chosen).reshape(*k.shape, matrices.shape[-1])


def _multiply(matrices: Tensor, k: Tensor, x: Tensor) -> Tensor:
    """Return matrices[k] @ x for constant matrices (n_components, n, n).

    On the CPU component by component where a copy of its matrix for every sample would cost more.
    """
    copied = k.numel() * matrices.shape[1] ** 2
    if k.device.type != "cpu" or copied < _FEW * (10 + len(matrices)):
        return _apply(matrices.mT, k, x)
    assert not matrices.requires_grad
    done: Tensor = _by_component(matrices, k.reshape(-1), x.reshape(-1, x.shape[-1]))
    return done.reshape(x.shape)


@torch.library.custom_op("pyrocg::by_component", mutates_args=())
def _by_component(matrices: Tensor, k: Tensor, x: Tensor) -> Tensor:
    """matrices[k] @ x for k (n_samples,); one operation, since its shapes depend on k."""
    order = k.argsort()
    counts = torch.bincount(k, minlength=len(matrices)).tolist()
    parts = zip(matrices, x.index_select(0, order).split(counts), strict=True)
    done = torch.cat([part @ matrix.T for matrix, part in parts if len(part)])
    return done.index_select(0, order.argsort())


@_by_component.register_fake
def _shape(matrices: Tensor, k: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _transposed(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
    matrices, k = ctx.saved_tensors
    return None, None, _by_component(matrices.mT, k, gradient)


_by_component.register_autograd(_transposed, setup_context=_keep)


def _log_det_tril(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def _chained(circular: Tensor, chain: Tensor) -> Tensor:
    """Indices of the circular coordinates in the order in which they are drawn."""
    chain = chain.to(circular.device)
    if not bool(circular[chain].all()) or len(chain.unique()) < len(chain):
        raise ValueError(
            f"expected a chain of different circular coordinates, got {chain.tolist()}"
        )
    rest = circular.index_fill(0, chain, False)
    return torch.cat([chain, rest.nonzero()[:, 0]])
