"""Markov transitions that leave a density between generator and target invariant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrocg.cgmodel import CoarseGrainedModel, Samples
from pyrocg.distributions import wrap
from pyrocg.frames import Scales, draw_values
from pyrocg.traces import drawn_values, log_generator, shaped_like, site_log_probs
from pyrocg.weights import log_mean_exp

__all__ = ["ExtendedSpace", "Particles", "resample"]


@dataclass(frozen=True)
class Particles:
    r"""Points (u, h) of the extended space, h the latents, with densities and gradients in u.

    Attributes:
        u: reduced coordinates, shape ``(n, n_coordinates)``.
        latents: values of the other sites, shape ``(n, ...)`` each.
        log_boltzmann: :math:`-\beta U + \log|\partial T/\partial u|`, shape ``(n,)``; minus
            infinity where it is not finite.
        log_encoder: :math:`\log r(h|u)`, shape ``(n,)``.
        log_generator: :math:`\log q(u, h)`, shape ``(n,)``.
        slopes: gradients of these three, zero where they are not finite, shape
            ``(n, 3, n_coordinates)``.
    """

    u: Tensor
    latents: dict[str, Tensor]
    log_boltzmann: Tensor
    log_encoder: Tensor
    log_generator: Tensor
    slopes: Tensor

    @property
    def log_weight(self) -> Tensor:
        """Log weights of target against generator in float64, minus infinity where not finite."""
        log_w = (self.log_boltzmann + self.log_encoder - self.log_generator).double()
        return torch.where(log_w.isfinite(), log_w, -torch.inf)

    def log_density(self, s: float) -> Tensor:
        r"""Return :math:`(1-s) \log q + s \log \pi`, shape ``(n,)``."""
        return (1 - s) * self.log_generator + s * (self.log_boltzmann + self.log_encoder)

    def slope(self, s: float) -> Tensor:
        """Gradient of :meth:`log_density` in u, shape ``(n, n_coordinates)``."""
        boltzmann, encoder, generator = self.slopes.unbind(1)
        return (1 - s) * generator + s * (boltzmann + encoder)

    def where(self, mask: Tensor, other: Particles) -> Particles:
        """These where the mask ``(n,)`` holds, the others elsewhere."""
        return self._combined(other, lambda a, b: torch.where(shaped_like(mask, a), a, b))

    def take(self, index: Tensor) -> Particles:
        """The particles of an index."""
        return self._combined(self, lambda a, _: a.index_select(0, index))

    def _combined(
        self, other: Particles, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Particles:
        latents = {k: function(v, other.latents[k]) for k, v in self.latents.items()}
        names = [f.name for f in fields(self) if f.name != "latents"]
        return Particles(
            latents=latents, **{n: function(getattr(self, n), getattr(other, n)) for n in names}
        )


def resample(particles: Particles, log_w: Tensor) -> tuple[Particles, Tensor, Tensor]:
    """Resample systematically; the weights become their mean, which keeps Z unbiased.

    Args:
        particles: n of them.
        log_w: their log weights, shape ``(n,)``.

    Returns:
        The new particles, their log weights, and which particle each was, shape ``(n,)``.
    """
    n = len(log_w)
    edges = torch.softmax(log_w, 0).cumsum(0)
    offsets = torch.arange(n, device=log_w.device) + torch.rand((), dtype=log_w.dtype).to(log_w)
    index = torch.searchsorted(edges / edges[-1], offsets / n, right=True).clamp(max=n - 1)
    return particles.take(index), torch.full_like(log_w, float(log_mean_exp(log_w))), index


class ExtendedSpace:
    r"""Densities of generator and target over (u, h) and transitions between them.

    The target is the Boltzmann density itself, t = 1 and the uncapped energy, times the encoder.

    Args:
        model: its parameters are left alone.
        scales: the frame of :meth:`move_coordinates`.
    """

    def __init__(self, model: CoarseGrainedModel, scales: Scales) -> None:
        self.model, self.scales = model, scales
        self.target = model.target.exact

    def draw(self, n: int) -> Particles:
        """Draw n particles of the generator; an energy call each."""
        values = draw_values(self.model, n)
        u = values.pop("u")
        return self._particles(u, values)

    def move_coordinates(
        self, particles: Particles, s: float, angle: float, leapfrog: int
    ) -> tuple[Particles, Tensor]:
        r"""Move u at fixed latents by Hamiltonian Monte Carlo, an energy call for each step.

        In the frame e of :class:`Scales`, with momenta p, a step is a kick, the exact motion in the
        standard normal density, a rotation of (e, p), and a kick,

        .. math:: p \to p + \tan(\tfrac{\alpha}{2}) (\nabla_e \log\rho_s + e), \quad
                  (e, p) \to (e \cos\alpha + p \sin\alpha,\; p \cos\alpha - e \sin\alpha),

        exact for every normal density with unit covariance, wherever its mean. Circular
        coordinates, where no full turn may matter, drift freely in place of the rotation:
        :math:`e \to e + 2 \tan(\alpha/2)\, p` between kicks without the term e. The end is
        accepted with probability :math:`\min(1, e^{-\Delta H})`. Source: Neal (2011), "MCMC using
        Hamiltonian dynamics"; Shahbaba, Lan, Johnson and Neal (2014), "Split Hamiltonian Monte
        Carlo".

        Args:
            particles: of the density :math:`\rho_s`.
            s: which density, from 0 (generator) to 1 (target).
            angle: :math:`\alpha` in (0, π).
            leapfrog: number of steps.

        Returns:
            The new particles, and the probability with which each was accepted.
        """
        frame = self.scales.frame(particles.latents, len(particles.u))
        e = frame.inverse(particles.u)
        p = torch.randn_like(e)
        before = particles.log_density(s) - 0.5 * p.square().sum(-1)
        new, kick = particles, math.tan(angle / 2)
        for _ in range(leapfrog):
            p = p + kick * (frame.pull(new.slope(s)) + torch.where(frame.circular, 0.0, e))
            e, p = _drift(e, p, angle, frame.circular)
            u = frame(e)
            known = u.isfinite().all(-1, keepdim=True)
            new = self._particles(torch.where(known, u, particles.u), particles.latents)
            p = p + kick * (frame.pull(new.slope(s)) + torch.where(frame.circular, 0.0, e))
        log_ratio = new.log_density(s) - 0.5 * p.square().sum(-1) - before
        log_ratio = torch.where(known[:, 0] & ~log_ratio.isnan(), log_ratio, -torch.inf)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        moved = new.where(accepted, particles)
        return moved, log_ratio.clamp(max=0.0).exp()

    def move_latents(self, particles: Particles, s: float) -> tuple[Particles, Tensor]:
        r"""Propose latents h' from the encoder r(h|u); no energy call.

        They are accepted with probability

        .. math:: \min\Big(1, \Big(\frac{q(u, h')\, r(h|u)}{q(u, h)\, r(h'|u)}\Big)^{1-s}\Big),

        the energy being that of the same u; at s = 1 always. Arguments and result as
        :meth:`move_coordinates`.
        """
        with torch.no_grad():
            latents = drawn_values(poutine.trace(self._encode).get_trace(particles.u))
        new = self._with_latents(particles, latents)
        log_ratio = (1 - s) * (
            (new.log_generator - new.log_encoder)
            - (particles.log_generator - particles.log_encoder)
        )
        log_ratio = torch.where(log_ratio.isnan(), -torch.inf, log_ratio)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        return new.where(accepted, particles), log_ratio.clamp(max=0.0).exp()

    @torch.no_grad()
    def samples(self, particles: Particles, log_weights: Tensor) -> Samples:
        """Return particles as samples with these weights; no energy call."""
        u, n = particles.u, len(particles.u)
        x, log_abs_det = self.model.coordinates(u)
        given: Any = poutine.condition(self.model.guide, data=particles.latents | {"u": u})
        log_prior = site_log_probs(poutine.trace(given).get_trace(n), n)["z"]
        return Samples(
            u=u,
            x=x,
            latents=particles.latents,
            log_weights=log_weights,
            joint_log_weights=log_weights,
            reduced_energy=log_abs_det - particles.log_boltzmann,
            latent_log_ratio=self._log_encoders(u, particles.latents)["z"] - log_prior,
        )

    def _particles(self, u: Tensor, latents: dict[str, Tensor]) -> Particles:
        circular = self.model.coordinates.circular
        u = torch.where(circular, wrap(u), u).detach()
        log_boltzmann, slope = _with_slope(self._log_boltzmann, u)
        log_boltzmann = torch.where(log_boltzmann.isfinite(), log_boltzmann, -torch.inf)
        none = torch.zeros_like(log_boltzmann)
        slopes = slope.unsqueeze(1).expand(-1, 3, -1)
        bare = Particles(u, latents, log_boltzmann, none, none, slopes)
        return self._with_latents(bare, latents)

    def _with_latents(self, particles: Particles, latents: dict[str, Tensor]) -> Particles:
        """The same u with other latents."""
        u = particles.u
        log_r, encoder = _with_slope(lambda v: self._log_encoder(v, latents), u)
        log_q, generator = _with_slope(lambda v: log_generator(self.model.guide, v, latents), u)
        slopes = torch.stack([particles.slopes[:, 0], encoder, generator], 1)
        return Particles(u, latents, particles.log_boltzmann, log_r, log_q, slopes)

    def _log_boltzmann(self, u: Tensor) -> Tensor:
        x, log_abs_det = self.model.coordinates(u)
        return self.target.log_prob(x) + log_abs_det

    def _log_encoder(self, u: Tensor, latents: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(self._log_encoders(u, latents).values())).sum(0)

    def _log_encoders(self, u: Tensor, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Log density of each latent site, shape (n,) each."""
        given: Any = poutine.condition(self._encode, data=latents)
        found = site_log_probs(poutine.trace(given).get_trace(u), len(u))
        if found.keys() != latents.keys():
            raise ValueError(
                f"expected an encoder with the sites of the prior, {sorted(latents)}, got "
                f"{sorted(found)}; give the encoder program a site for each of the prior's"
            )
        return found

    def _encode(self, u: Tensor) -> None:
        with pyro.plate("samples", len(u), dim=-1):
            self.model.model.encode(u)


def _drift(e: Tensor, p: Tensor, angle: float, circular: Tensor) -> tuple[Tensor, Tensor]:
    """Motion without kicks: free where circular, else in the standard normal density."""
    cos, sin = math.cos(angle), math.sin(angle)
    free = e + 2 * math.tan(angle / 2) * p
    return (
        torch.where(circular, free, cos * e + sin * p),
        torch.where(circular, p, cos * p - sin * e),
    )


def _with_slope(function: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """A function of every row, and its gradient, zero where it is not finite."""
    v = u.detach().requires_grad_()
    with torch.enable_grad():
        value = function(v)
        (slope,) = torch.autograd.grad(value.sum() + 0.0 * v.sum(), v)  # v may have no part
    known = value.isfinite().unsqueeze(-1) & slope.isfinite().all(-1, keepdim=True)
    return value.detach(), torch.where(known, slope, 0.0)
