r"""The coarse-grained model as a Pyro model/guide pair. Read this first.

In Pyro's words **the physics is the model and the generator is the guide**:

============  =======================  =============================================
site          guide (generator)        model (extended target)
============  =======================  =============================================
z             p(z), the prior          r(z|u), the encoder
u             q(u|z), the decoder      improper
boltzmann                              factor -t β U(T(u)) + log|det dT/du|
============  =======================  =============================================

so that Pyro's ELBO is

.. math:: E_q[-t\beta U(T(u)) + \log|\partial T/\partial u| + \log r(z|u) - \log p(z) - \log q(u|z)]
          = \log Z_t - KL(q \| \pi) \le \log Z_t .

Source: Schöberl, Zabaras and Koutsourelakis (2020), arXiv:2002.10148.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrocg.basins import Basins, find_basins
from pyrocg.coordinates import Coordinates
from pyrocg.decoders import CouplingDecoder
from pyrocg.encoders import BasinPartition, MixtureEncoder, PartitionEncoder
from pyrocg.networks import CircularFeatures
from pyrocg.priors import PriorProgram, StandardNormalPrior, StratifiedPrior, as_prior
from pyrocg.target import BoltzmannTarget
from pyrocg.traces import (
    check_sites,
    drawn_values,
    log_generator,
    register_parameters,
    site_log_probs,
)
from pyrocg.weights import log_mean_exp

__all__ = ["CoarseGrainedModel", "ExtendedTarget", "Generator", "Samples"]


class Generator(nn.Module):
    """The guide: z ~ p(z), u ~ q(u|z), in a plate "samples".

    Args:
        prior: p(z), see :mod:`pyrocg.priors`.
        decoder: q(u|z), called with what the prior gives.
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.decoder = decoder

    def forward(self, num_samples: int) -> Tensor:
        """Draw ``num_samples`` reduced coordinates u, shape ``(num_samples, n_coordinates)``."""
        _check_count(num_samples)
        register_parameters("generator", self)
        with pyro.plate("samples", num_samples, dim=-1):
            latents = _draw("z", self.prior())
            return pyro.sample("u", self.decoder(*latents))


class ExtendedTarget(nn.Module):
    """The model: u with the Boltzmann factor at the tempering factor t, and z ~ r(z|u).

    Args:
        target: the Boltzmann density over positions.
        coordinates: the map from u to positions.
        encoder: r(z|u), see :mod:`pyrocg.encoders`.
        prior: the generator's prior; a program's auxiliary sites are drawn from it.
    """

    temper: Tensor
    origin: Tensor

    def __init__(
        self,
        target: BoltzmannTarget,
        coordinates: Coordinates,
        encoder: nn.Module,
        prior: nn.Module,
    ) -> None:
        super().__init__()
        if target.event_shape != coordinates.event_shape:
            raise ValueError(
                f"expected coordinates of configurations {tuple(target.event_shape)}, as the "
                f"target has, got {tuple(coordinates.event_shape)}; build both from one molecule"
            )
        self.target = target
        self.coordinates = coordinates
        self.encoder = encoder
        self.program = prior if isinstance(prior, PriorProgram) else None
        self.register_buffer("temper", torch.ones(()))
        self.register_buffer("origin", torch.zeros(coordinates.n_coordinates), persistent=False)

    def forward(self, num_samples: int) -> Tensor:
        """Score ``num_samples`` reduced coordinates, return their positions."""
        _check_count(num_samples)
        register_parameters("extended_target", self)
        improper = dist.Normal(self.origin, torch.ones_like(self.origin)).to_event(1).mask(False)
        with pyro.plate("samples", num_samples, dim=-1):
            u = pyro.sample("u", improper)
            x, log_abs_det = self.coordinates(u)
            log_boltzmann = self.target.log_prob(x)
            pyro.deterministic("x", x, event_dim=len(self.target.event_shape))
            pyro.deterministic("log_boltzmann", log_boltzmann, event_dim=0)
            score = self.temper * log_boltzmann + log_abs_det
            # no energy, no weight: Pyro refuses NaN
            pyro.factor("boltzmann", torch.where(score.isnan(), -torch.inf, score))
            self.encode(u)
            return x

    def encode(self, u: Tensor) -> None:
        """Draw the latent sites given u, shape ``(..., n_coordinates)``."""
        encoded = self.encoder(u)
        if isinstance(encoded, TorchDistributionMixin):
            pyro.sample("z", encoded)
            if self.program is not None:
                with poutine.block(hide=["z"]):
                    self.program()


@dataclass(frozen=True)
class Samples:
    r"""Samples of the generator with their importance weights in the extended space.

    Attributes:
        u: reduced coordinates, shape ``(n, n_coordinates)``.
        x: configurations, shape ``(n, *event_shape)``, nm for molecules.
        latents: values of the guide's other sites, shape ``(n, ...)`` each.
        log_weights: :math:`-t\beta U + \log|\partial T/\partial u| + \log r - \log p - \log q`,
            averaged over the latents as :meth:`CoarseGrainedModel.sample` says, shape ``(n,)``.
        joint_log_weights: the same for the latents drawn with u alone; their mean is the ELBO.
        reduced_energy: :math:`\beta U` (without t), shape ``(n,)``.
        latent_log_ratio: :math:`\log r(z|u) - \log p(z)`, shape ``(n,)``; its mean bounds the
            information in z about u from below (Barber and Agakov 2003), so near 0 means that
            the latent variables have collapsed.
    """

    u: Tensor
    x: Tensor
    latents: dict[str, Tensor]
    log_weights: Tensor
    joint_log_weights: Tensor
    reduced_energy: Tensor
    latent_log_ratio: Tensor

    def to(self, device: torch.device | str) -> Samples:
        """Return the same samples on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if k != "latents"}
        return Samples(latents={k: v.to(device) for k, v in self.latents.items()}, **moved)


class CoarseGrainedModel(nn.Module):
    r"""A generative model of a Boltzmann density with collective variables z.

    :attr:`model` and :attr:`guide` are what ``pyro.infer.SVI(cg.model, cg.guide, ...)`` takes;
    both are called with the number of samples. They are modules that register their parameters
    with Pyro's handlers themselves, without the global parameter store. (A ``PyroModule`` given as
    prior or encoder uses that store, as it always does, unless it was built after
    ``pyro.settings.set(module_local_params=True)``: needed where two models train side by side.)

    .. warning:: ``TraceMeanField_ELBO`` is wrong for this pair: it takes the analytic KL between
       p(z) and r(z|u), but u came from that z. Use ``Trace_ELBO`` or ``RenyiELBO``.

    Args:
        target: the Boltzmann density.
        coordinates: reduced coordinates of the same molecule.
        prior: p(z): a module whose call returns a distribution, a Pyro distribution, or a Pyro
            program with a site "z".
        decoder: q(u|z): a module whose call returns a distribution over u.
        encoder: r(z|u): a module whose call returns a distribution over z, or a program that
            has the prior program's sites.

    Raises:
        ValueError: target and coordinates do not fit each other.
        TypeError: the target is not a :class:`~pyrocg.target.BoltzmannTarget`.

    Example:
        >>> import torch, pyrocg
        >>> target = pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0)
        >>> coordinates = pyrocg.IdentityCoordinates(2)
        >>> cg = pyrocg.CoarseGrainedModel(
        ...     target,
        ...     coordinates,
        ...     prior=pyrocg.StandardNormalPrior(1),
        ...     decoder=pyrocg.GaussianDecoder(coordinates.circular, latent_dim=1),
        ...     encoder=pyrocg.GaussianEncoder(coordinates.circular, latent_dim=1),
        ... )
        >>> cg.sample(10).x.shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        target: BoltzmannTarget,
        coordinates: Coordinates,
        prior: Any,
        decoder: nn.Module,
        encoder: nn.Module,
    ) -> None:
        super().__init__()
        if not isinstance(target, BoltzmannTarget):
            raise TypeError(
                f"expected a BoltzmannTarget, got {type(target).__name__}; give an energy its "
                "temperature: pyrocg.BoltzmannTarget(energy, temperature=300)"
            )
        prior = as_prior(prior)
        self.guide = Generator(prior, decoder)
        self.model = ExtendedTarget(target, coordinates, encoder, prior)

    @classmethod
    def from_basins(
        cls,
        target: BoltzmannTarget,
        coordinates: Coordinates,
        basins: Basins | None = None,
        *,
        latent_dim: int = 2,
        share: float = 0.3,
        n_couplings: int = 6,
        hidden: Sequence[int] = (128, 128),
        n_modes: int = 4,
    ) -> CoarseGrainedModel:
        """Build the recommended model: a mixture latent with one component for each basin.

        The basins are found from the force field alone, and a fixed partition anchors each
        component to its own: :class:`~pyrocg.priors.StratifiedPrior`,
        :class:`~pyrocg.decoders.CouplingDecoder` and :class:`~pyrocg.encoders.PartitionEncoder`,
        all started at the Laplace approximation of the basins.

        Where more than three columns tell the basins apart there are many components. Then the
        networks are told of a component by the place of its centre, instead of one-hot, so that
        neighbours learn from each other, and by 16 learned numbers, so that they can differ. The
        torsions among the columns are drawn one after another, each knowing those before, so that z
        need not explain all their correlations; their networks have two hidden layers of 128 units,
        in place of 64.

        Args:
            target: the Boltzmann density.
            coordinates: reduced coordinates of the same molecule.
            basins: default :func:`~pyrocg.basins.find_basins`.
            latent_dim: dimension of z in each component.
            share: fraction of the basins' variance that z explains at the start, in (0, 1).
            n_couplings: coupling layers of the decoder.
            hidden: hidden layers of each coupling, and of the encoder.
            n_modes: Gaussians of the encoder.
        """
        basins = basins or find_basins(target, coordinates)
        circular, columns, dtype = coordinates.circular, basins.columns, coordinates.origin.dtype
        loadings, residual = basins.linear_gaussian(latent_dim, circular, share)
        labels, chain = None, columns[:0]
        sizes: dict[str, Any] = {"hidden": hidden}
        if len(columns) > 3:
            labels = CircularFeatures(circular[columns])(basins.centres.to(dtype))
            chain = columns[circular[columns]]
            sizes |= {"torsion_hidden": (128, 128), "embedding": 16}
        decoder = CouplingDecoder(
            circular, latent_dim, len(basins), n_couplings, labels=labels, chain=chain, **sizes
        )
        decoder.start_linear(basins.u, loadings, residual)
        reads = circular.nonzero()[:, 0] if bool(circular.any()) else None  # where z shows itself
        encoder = MixtureEncoder(circular, latent_dim, n_modes, hidden, len(basins), reads, labels)
        at_once = circular.index_fill(0, chain, False)
        dropped = (at_once[:, None] & at_once).fill_diagonal_(False)
        gain = torch.linalg.solve(residual[:, chain][:, :, chain], residual[:, chain])
        residual = torch.where(dropped, residual[:, chain].mT @ gain, residual)  # the decoder's
        encoder.start_posterior(basins.u, loadings, residual)
        partition = BasinPartition(
            basins.centres.to(dtype), columns, circular, basins.concentration.to(dtype)
        )
        return cls(
            target,
            coordinates,
            prior=StratifiedPrior(len(basins), StandardNormalPrior(latent_dim)),
            decoder=decoder,
            encoder=PartitionEncoder(partition, encoder),
        ).to(circular.device)

    @property
    def target(self) -> BoltzmannTarget:
        """The Boltzmann density."""
        return self.model.target

    @property
    def coordinates(self) -> Coordinates:
        """The map from reduced coordinates to configurations."""
        return self.model.coordinates

    @property
    def prior(self) -> nn.Module:
        """p(z)."""
        return self.guide.prior

    @property
    def decoder(self) -> nn.Module:
        """q(u|z)."""
        return self.guide.decoder

    @property
    def encoder(self) -> nn.Module:
        """r(z|u)."""
        return self.model.encoder

    @property
    def temper(self) -> float:
        """The tempering factor t of the model's Boltzmann factor."""
        return float(self.model.temper)

    @temper.setter
    def temper(self, t: float) -> None:
        if not 0 < t <= 1:
            raise ValueError(f"expected a tempering factor in (0, 1], got {t}")
        self.model.temper.fill_(t)

    @torch.no_grad()
    def sample(self, num_samples: int, exact: bool = True, encoder_draws: int = 0) -> Samples:
        r"""Draw from the generator and weight by the extended target at the current t.

        The weights come from tracing the guide and replaying the model on it, so they hold for
        every prior, decoder and encoder, the user's included. With K encoder draws,

        .. math:: \frac{1}{w} = \frac{1}{K + 1}
                  \sum_{j=0}^{K} \frac{p(z_j)\, q(u|z_j)}{\pi(u)\, r(z_j|u)}, \quad
                  z_0, u \sim p\, q, \quad z_1, \ldots, z_K \sim r(z|u),

        the weight is averaged over latents that could have given the same u. Its mean is Z for
        every K, or less where r(z|u) leaves the support of the prior; the mean of its logarithm
        rises with K towards the bound of the marginal q(u), and it costs no energies. Source:
        Sobolev and Vetrov (2019), "Importance weighted hierarchical variational inference".

        Args:
            num_samples: number of samples n; one batch, so memory grows with it.
            exact: weigh with the uncapped energy, the default.
            encoder_draws: K; each costs one density of the decoder.

        Raises:
            ValueError: the encoder has other sites than the prior.
        """
        guide = poutine.trace(self.guide).get_trace(num_samples)
        capped = self.model.target
        self.model.target = capped.exact if exact else capped
        try:
            model = poutine.trace(poutine.replay(self.model, trace=guide)).get_trace(num_samples)
        finally:
            self.model.target = capped
        check_sites(guide, model)
        log_model, log_guide = (
            site_log_probs(model, num_samples),
            site_log_probs(guide, num_samples),
        )
        latents = {name: v for name, v in drawn_values(guide).items() if name != "u"}
        log_boltzmann: Any = model.nodes["log_boltzmann"]["value"]
        u: Any = guide.nodes["u"]["value"]
        log_target: Any = sum(v for name, v in log_model.items() if name not in latents)
        ratio: Any = sum(log_guide.values()) - sum(log_model[name] for name in latents)
        ratios = [ratio] + [self._log_ratio(u) for _ in range(encoder_draws)]
        _warn_of_draws_outside(ratios[1:])
        return Samples(
            u=u,
            x=model.nodes["x"]["value"],
            latents=latents,
            log_weights=log_target - log_mean_exp(torch.stack(ratios)),
            joint_log_weights=log_target - ratio,
            reduced_energy=-log_boltzmann,
            latent_log_ratio=log_model["z"] - log_guide["z"],
        )

    def _log_ratio(self, u: Tensor) -> Tensor:
        """log p(z) q(u|z) / r(z|u) at latents drawn from r(z|u), shape (n,)."""
        n = len(u)

        def encode() -> None:
            with pyro.plate("samples", n, dim=-1):
                self.model.encode(u)

        encoded = poutine.trace(encode).get_trace()
        log_encoder = sum(site_log_probs(encoded, n).values())
        return log_generator(self.guide, u, drawn_values(encoded)) - log_encoder

    @torch.no_grad()
    def encode(self, x: Tensor, num_samples: int = 1) -> dict[str, Tensor]:
        """Draw collective variables r(z|u) of configurations, the "z" site and any others.

        Args:
            x: configurations, shape ``(n, *event_shape)``.
            num_samples: draws for each configuration.

        Returns:
            Site name to values, shape ``(num_samples, n, ...)``.
        """
        u, _ = self.coordinates.inverse(x)
        u = u.to(self.model.origin.dtype).expand(num_samples, *u.shape)

        def program() -> None:
            encoded = self.encoder(u)
            if isinstance(encoded, TorchDistributionMixin):
                pyro.sample("z", encoded)

        nodes = poutine.trace(program).get_trace().nodes
        return {n: s["value"] for n, s in nodes.items() if s["type"] == "sample"}


def _draw(name: str, prior: Any) -> tuple[Any, ...]:
    """Sample a site if the prior gave a distribution; else these are a program's latents."""
    latents = pyro.sample(name, prior) if isinstance(prior, TorchDistributionMixin) else prior
    return latents if isinstance(latents, tuple) else (latents,)


def _warn_of_draws_outside(ratios: Sequence[Tensor]) -> None:
    """Of draws of the encoder that the generator cannot give; rounding alone makes them rare."""
    outside = float((torch.stack([*ratios]) == -torch.inf).double().mean()) if ratios else 0.0
    if outside > 1e-3:
        warnings.warn(
            f"about {100 * outside:.0f} % of the encoder's draws are where prior or decoder have "
            "no density, so weights and log Z are too small; give the encoder the support of the "
            "prior (on a torus circular_latent=True)",
            stacklevel=4,
        )


def _check_count(num_samples: int) -> None:
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"expected a number of samples of at least 1, got {num_samples!r}")
