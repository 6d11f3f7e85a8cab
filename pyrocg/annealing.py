"""Annealed importance sampling from the generator to the Boltzmann density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrocg.arviz_compat import pareto_smooth
from pyrocg.bootstrap import merged_strata, mixed_seed
from pyrocg.bridges import Bridge, check_counts, check_fraction, find_bridge
from pyrocg.cgmodel import CoarseGrainedModel, Samples
from pyrocg.conditions import at_target, seeded
from pyrocg.observables import Observable
from pyrocg.prediction import Prediction
from pyrocg.priors import StratifiedPrior
from pyrocg.transitions import ExtendedSpace, resample
from pyrocg.weights import bound, ess, log_mean_exp

__all__ = ["Annealed", "anneal"]


@dataclass(frozen=True)
class Annealed:
    r"""What :func:`anneal` returns.

    Attributes:
        samples: with the annealed weights as ``log_weights`` (and ``joint_log_weights``).
        family: number of the sample of the generator that each comes from, shape ``(n,)``; all
            different without resampling.
        component: of a mixture latent (:class:`~pyrocg.priors.StratifiedPrior`), that each sample
            of the generator was drawn from, shape ``(n,)``; else 0.
        bridge: that was crossed.
        acceptance: mean probability of acceptance of the moves of u at each level below 1.
        latent_acceptance: the same for the latents.
        beta: 1/kT in mol/kJ.
        energy_calls: of these samples and of finding the bridge, where that was done here.
        seed: of the random numbers.
    """

    samples: Samples
    family: Tensor = field(repr=False)
    component: Tensor = field(repr=False)
    bridge: Bridge
    acceptance: tuple[float, ...]
    latent_acceptance: tuple[float, ...]
    beta: float
    energy_calls: int
    seed: int

    @property
    def log_weights(self) -> Tensor:
        """Log importance weights, shape ``(n,)``; the mean weight is Z."""
        return self.samples.log_weights

    @property
    def log_z(self) -> float:
        """Estimate of log Z; that of Z has no bias."""
        return float(log_mean_exp(self.log_weights))

    @property
    def ess(self) -> float:
        r"""Effective sample size as a fraction, of the weights summed over families.

        Without resampling it is that of the weights. With it, samples of one family count as one,
        though their last moves have made them different.
        """
        return float(ess(self._family_log_weights()))

    @property
    def log_z_error(self) -> float:
        r"""Standard error of log Z, as that of :meth:`average` with f - mean = 1."""
        return self._error(torch.softmax(self.log_weights, 0))

    def log_z_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return log Z minus and plus its error times the normal quantile of a level.

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        check_fraction("level", level)
        margin = NormalDist().inv_cdf(0.5 + 0.5 * level) * self.log_z_error
        return self.log_z - margin, self.log_z + margin

    def average(self, values: Tensor) -> tuple[float, float]:
        r"""Return the equilibrium average of values of the samples, and its standard error.

        .. math:: \bar f = \frac{\sum_i w_i f_i}{\sum_i w_i}, \quad
                  s^2 = \sum_k \frac{n_k}{n_k - 1} \sum_{a \in k} (y_a - \bar y_k)^2, \quad
                  y_a = \frac{\sum_{i \in a} w_i (f_i - \bar f)}{\sum_i w_i},

        for families a in the components k that they were drawn from, whose numbers are fixed; those
        of fewer than 25 share one. Source: Chan and Lai (2013), "A general theory of particle
        filters in hidden Markov models and some applications"; Lee and Whiteley (2018), "Variance
        estimation in the particle filter".

        Args:
            values: f, shape ``(n,)``.
        """
        w = torch.softmax(self.log_weights, 0)
        f = torch.where(w > 0, values.to(w), 0.0)
        mean = (w * f).sum()
        return float(mean), self._error(w * (f - mean))

    def _error(self, terms: Tensor) -> float:
        """Standard error of a sum over the samples."""
        families = torch.zeros_like(terms).index_add_(0, self.family, terms)
        stratum = merged_strata(torch.zeros_like(self.component), self.component)
        sizes = torch.bincount(stratum).to(terms)
        means = torch.zeros_like(sizes).index_add_(0, stratum, families) / sizes
        scale = sizes / (sizes - 1).clamp(min=1)
        return float((scale[stratum] * (families - means[stratum]).square()).sum().sqrt())

    def predict(
        self, observables: Sequence[Observable] = (), *, level: float = 0.95, n_draws: int = 500
    ) -> Prediction:
        """Predict equilibrium averages, as :func:`pyrocg.predict` does.

        What that calls the generator's own averages are here those of the annealed samples without
        their weights; its latent site ``component`` is :attr:`component`.

        Args:
            observables: functions of configurations, see :mod:`pyrocg.observables`.
            level: of the intervals.
            n_draws: draws of the Bayesian bootstrap behind each interval.

        Raises:
            ValueError: samples were resampled, an argument is out of range, or no weight is finite.
        """
        if len(self.family.unique()) < len(self.family):
            raise ValueError(
                "expected independent samples, got some that were resampled; use average(), or "
                "anneal with resample_below=None"
            )
        check_fraction("level", level)
        if n_draws < 2:
            raise ValueError(f"expected n_draws of at least 2, got {n_draws}")
        log_w, s = self.log_weights, self.samples
        if not bool(log_w.isfinite().any()):
            raise ValueError("expected samples with finite energies, got none; train the model")
        smoothed, pareto_k = pareto_smooth(log_w.numpy())
        x, latents = s.x.numpy(), s.latents
        if "component" in latents:
            latents = latents | {"component": self.component}
        return Prediction(
            positions=x,
            latents={name: value.numpy() for name, value in latents.items()},
            log_weights=log_w,
            smoothed_log_weights=torch.from_numpy(smoothed),
            pareto_k=pareto_k,
            plain_log_weights=torch.zeros_like(log_w),
            energies=s.reduced_energy.double().numpy() / self.beta,
            weight_draw=torch.zeros(len(log_w), dtype=torch.long).numpy(),
            elbo=float(bound(log_w)),
            values={o.name: o(x) for o in observables},
            observables=tuple(observables),
            beta=self.beta,
            level=level,
            log_z=self.log_z,
            log_z_interval=self.log_z_interval(level),
            ess=self.ess,
            energy_calls=self.energy_calls,
            nonfinite=int((~log_w.isfinite()).sum()),
            seed=self.seed,
            n_draws=n_draws,
        )

    def _family_log_weights(self) -> Tensor:
        w = torch.softmax(self.log_weights, 0)
        return torch.zeros_like(w).index_add_(0, self.family, w).log()


def anneal(
    model: CoarseGrainedModel,
    num_samples: int,
    bridge: Bridge | None = None,
    *,
    resample_below: float | None = None,
    batch: int = 5000,
    seed: int = 0,
    progress: bool = True,
) -> Annealed:
    r"""Carry samples of the generator to the Boltzmann density, with exact weights.

    Along the bridge :math:`\rho_0 = q, \ldots, \rho_1 = \pi` each sample collects

    .. math:: \log W = \sum_{j=1}^{J} (s_j - s_{j-1})\, \log w(u_{j-1}, h_{j-1}), \quad
              w = \frac{\pi(u, h)}{q(u, h)},

    and is moved at every :math:`s_j < 1` by transitions that leave :math:`\rho_{s_j}` invariant:
    the latents by proposals of the encoder, which cost no energies, then u by Hamiltonian Monte
    Carlo. The mean of W estimates Z without bias, whatever the moves do; good moves make the
    weights equal. With resampling this is a sequential Monte Carlo sampler. Basins that the
    generator does not reach are hardly reached by short moves either.

    A sample costs one energy call, and ``leapfrog`` calls for each level below 1. Unless the
    generator's own ESS is low, so many more samples of it, by :func:`pyrocg.predict`, give smaller
    errors: see the benchmarks.

    Source: Neal (2001), "Annealed importance sampling"; Del Moral, Doucet and Jasra (2006),
    "Sequential Monte Carlo samplers".

    Args:
        model: trained, see :func:`pyrocg.fit`.
        num_samples: number of samples n.
        bridge: default :func:`find_bridge` with its own defaults and this seed.
        resample_below: resample a batch (systematically) whenever its ESS falls below this
            fraction; default never.
        batch: samples carried at a time.
        seed: of the random numbers; the global generators are left as they were.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import pyrocg
        >>> target = pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0)
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     target, pyrocg.IdentityCoordinates(2), latent_dim=1, hidden=(8,)
        ... )
        >>> annealed = anneal(cg, 1000, progress=False)
        >>> abs(annealed.log_z - target.energy.log_z()) < 0.1
        True
    """
    check_counts(num_samples=num_samples, batch=batch)
    if resample_below is not None:
        check_fraction("resample_below", resample_below)
    energy = model.target.energy.exact
    before = energy.calls
    bridge = bridge or find_bridge(model, seed=seed)
    parts: list[_Crossing] = []
    with (
        seeded(mixed_seed(seed, 3), model.parameters()),
        at_target(model),
        tqdm(total=num_samples, disable=not progress, unit="sample") as bar,
    ):
        space = ExtendedSpace(model, bridge.scales)
        for start in range(0, num_samples, batch):
            size = min(batch, num_samples - start)
            parts.append(_cross(space, bridge, size, start, resample_below))
            bar.update(size)
    sizes = torch.tensor([len(p.family) for p in parts], dtype=torch.float64)
    share = (sizes / sizes.sum())[:, None]
    acceptance = (share * torch.stack([p.acceptance for p in parts])).sum(0)
    return Annealed(
        samples=_joined([p.samples for p in parts]),
        family=torch.cat([p.family for p in parts]),
        component=torch.cat([p.component for p in parts]),
        bridge=bridge,
        acceptance=tuple(acceptance[0::2].tolist()),
        latent_acceptance=tuple(acceptance[1::2].tolist()),
        beta=model.target.beta,
        energy_calls=energy.calls - before,
        seed=seed,
    )


@dataclass(frozen=True)
class _Crossing:
    """One batch at the end of the bridge, on the CPU."""

    samples: Samples
    family: Tensor
    component: Tensor
    acceptance: Tensor


def _cross(
    space: ExtendedSpace, bridge: Bridge, n: int, first: int, resample_below: float | None
) -> _Crossing:
    particles = space.draw(n)
    log_w = torch.zeros(n, dtype=torch.float64, device=particles.u.device)
    family = torch.arange(first, first + n, device=log_w.device)
    component = torch.zeros_like(family)
    if isinstance(space.model.prior, StratifiedPrior):
        component = particles.latents["component"]
    accepted: list[Tensor] = []
    last = 0.0
    for s, angle in zip(bridge.levels, (*bridge.angles, None), strict=True):
        log_w, last = log_w + (s - last) * particles.log_weight, s
        if angle is None:
            break
        if resample_below is not None and ess(log_w) < resample_below:
            particles, log_w, index = resample(particles, log_w)
            family = family[index]
        particles, of_latents = space.move_latents(particles, s)
        particles, of_u = space.move_coordinates(particles, s, angle, bridge.leapfrog)
        accepted += [of_u.mean(), of_latents.mean()]
    rates = torch.stack(accepted).double() if accepted else log_w.new_zeros(0)
    samples = space.samples(particles, log_w).to("cpu")
    return _Crossing(samples, family.cpu(), component.cpu(), rates.cpu())


def _joined(parts: list[Samples]) -> Samples:
    columns = {
        name: torch.cat([getattr(p, name) for p in parts])
        for name in vars(parts[0])
        if name != "latents"
    }
    latents = {k: torch.cat([p.latents[k] for p in parts]) for k in parts[0].latents}
    return Samples(latents=latents, **columns)
