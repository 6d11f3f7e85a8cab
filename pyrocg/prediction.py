"""Predictions with intervals: samples of a model, importance weights, observables."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyrocg.arviz_compat import inference_data, pareto_smooth
from pyrocg.bootstrap import (
    bootstrap_means,
    bootstrap_quantiles,
    bootstrap_sums,
    equal_tailed,
    weighted_quantiles,
)
from pyrocg.cgmodel import CoarseGrainedModel, Samples
from pyrocg.distributions import wrap
from pyrocg.observables import Observable
from pyrocg.priors import StratifiedPrior
from pyrocg.weights import ess, log_mean_exp

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = ["Estimate", "Histogram", "Prediction", "predict"]

_HISTOGRAM_DRAWS = 200  # enough for a band, and a histogram has many bins
_NEARLY_EQUAL = 0.95  # ESS above which weights differ too little for their tail to matter
_DEFENSIVE = 0.05  # share of the samples spread evenly over the components of a mixture latent


@dataclass(frozen=True)
class Estimate:
    """An equilibrium average.

    Attributes:
        mean: the average; for an angle the circular mean, in rad.
        interval: equal-tailed credible interval of the average (Bayesian bootstrap).
        level: probability that the interval holds.
        unit: of both.
    """

    mean: float
    interval: tuple[float, float]
    level: float
    unit: str


@dataclass(frozen=True)
class Histogram:
    """A probability density over one or two observables.

    Attributes:
        edges: bin edges of each observable.
        density: shape ``(n_bins,)`` or ``(n_bins, n_bins)``; integrates to 1 over the range.
        lower: lower end of each bin's interval.
        upper: upper end of each bin's interval.
    """

    edges: tuple[NDArray[np.float64], ...]
    density: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """What :func:`predict` returns.

    Attributes:
        positions: configurations, shape ``(n, *event_shape)``, nm for molecules; empty if it was
            read back from a run folder without them.
        latents: latent sites by name, shape ``(n, ...)`` each.
        log_weights: log importance weights for the Boltzmann density, shape ``(n,)``; minus
            infinity where the energy is not finite.
        smoothed_log_weights: the same, Pareto-smoothed, up to a constant.
        plain_log_weights: log weights of the samples for the generator itself, shape ``(n,)``; not
            all equal only for a mixture latent, whose rare components are oversampled.
        energies: U in kJ/mol, shape ``(n,)``.
        values: observable name to values, shape ``(n,)`` each.
        observables: the observables.
        level: of the intervals.
        log_z: log Z of the reduced coordinates, by importance sampling; nats.
        log_z_interval: its interval, by the Bayesian bootstrap.
        elbo: the evidence lower bound, at most log Z up to noise; of the generator restricted to
            finite energies, see :func:`pyrocg.weights.bound`.
        ess: effective sample size of the weights, a fraction of n.
        pareto_k: Pareto k-hat of the weights; above 0.7 corrected results cannot be trusted, unless
            the weights are nearly equal.
        energy_calls: configurations whose energy was evaluated here.
        nonfinite: how many of them had no finite energy.
        seed: of samples and intervals.
        n_draws: draws of the Bayesian bootstrap behind each interval; at most 200 in histograms.
        warnings: when not to trust this, in words.
    """

    positions: NDArray[np.floating[Any]]
    latents: dict[str, NDArray[Any]]
    log_weights: Tensor = field(repr=False)
    smoothed_log_weights: Tensor = field(repr=False)
    plain_log_weights: Tensor = field(repr=False)
    energies: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]
    observables: tuple[Observable, ...]
    level: float
    log_z: float
    log_z_interval: tuple[float, float]
    elbo: float
    ess: float
    pareto_k: float
    energy_calls: int
    nonfinite: int
    seed: int
    n_draws: int
    warnings: tuple[str, ...]

    def weights(self, corrected: bool = True) -> Tensor:
        """Weights with mean 1, shape ``(n,)``: Pareto-smoothed, or the generator's own."""
        log_w = self.smoothed_log_weights if corrected else self.plain_log_weights
        return torch.softmax(log_w.double(), 0) * len(log_w)

    def estimate(self, name: str, corrected: bool = True) -> Estimate:
        """Return the equilibrium average of an observable with its interval.

        Args:
            name: of the observable.
            corrected: by importance weights; if not, the generator's own average.
        """
        return self._averages([self._observable(name)], corrected)[name]

    def estimates(self, corrected: bool = True) -> dict[str, Estimate]:
        """Return :meth:`estimate` of every observable, by name."""
        return self._averages(self.observables, corrected)

    def _averages(self, observables: Sequence[Observable], corrected: bool) -> dict[str, Estimate]:
        """Averages of several observables on the same bootstrap draws."""
        columns = []
        for observable in observables:
            values = torch.from_numpy(self.values[observable.name])
            columns += [values.cos(), values.sin()] if observable.circular else [values]
        if not columns:
            return {}
        weights, table = self.weights(corrected), torch.stack(columns, 1)
        means = iter((weights[:, None] * table).mean(0))
        draws = iter(bootstrap_means(weights, table, self.n_draws, self.seed)[0].T)
        found = {}
        for observable in observables:
            centre, spread = next(means), next(draws)
            if observable.circular:
                centre, spread = torch.atan2(next(means), centre), torch.atan2(next(draws), spread)
                spread = centre + wrap(spread - centre)
            found[observable.name] = self._estimate(centre, spread, observable.unit)
        return found

    def quantiles(
        self, name: str, probs: Sequence[float], corrected: bool = True
    ) -> list[Estimate]:
        """Return quantiles of an observable's distribution, each with its interval.

        Quantiles of an angle are those of its values in [-π, π].

        Raises:
            ValueError: a probability is not between 0 and 1.
        """
        if not all(0 < p < 1 for p in probs):
            raise ValueError(f"expected probabilities between 0 and 1, got {list(probs)}")
        observable, weights = self._observable(name), self.weights(corrected)
        values, p = torch.from_numpy(self.values[name]), torch.tensor(probs, dtype=torch.float64)
        centres = weighted_quantiles(weights, values, p)
        draws = bootstrap_quantiles(weights, values, p, self.n_draws, self.seed)
        return [
            self._estimate(c, d, observable.unit) for c, d in zip(centres, draws.T, strict=True)
        ]

    def histogram(
        self,
        *names: str,
        bins: int = 50,
        limits: tuple[float, float] | None = None,
        corrected: bool = True,
    ) -> Histogram:
        """Return the density of one or two observables, with an interval in each bin.

        Args:
            names: one or two observables.
            bins: number of bins of each.
            limits: of each; default -π to π for angles, else all values.
            corrected: by importance weights.

        Raises:
            ValueError: other than one or two names, or no sample within the limits.
        """
        if len(names) not in (1, 2):
            raise ValueError(f"expected one or two observables, got {len(names)}")
        edges = tuple(self._edges(name, bins, limits) for name in names)
        index, inside = np.zeros(len(self.log_weights), dtype=np.int64), True
        for name, edge in zip(names, edges, strict=True):
            values = self.values[name]
            if self._observable(name).circular:
                values = edge[0] + (values - edge[0]) % (2 * math.pi)
            place = np.searchsorted(edge, values, side="right") - 1
            place[values == edge[-1]] = bins - 1
            inside = inside & (place >= 0) & (place < bins)
            index = index * bins + np.clip(place, 0, bins - 1)
        weights = self.weights(corrected) * torch.from_numpy(inside)
        if not float(weights.sum()) > 0:
            raise ValueError(f"expected samples between {limits}, got none; widen the limits")
        totals = torch.zeros(bins ** len(names), dtype=torch.float64)
        n_draws = min(self.n_draws, _HISTOGRAM_DRAWS)
        draws = bootstrap_sums(weights, torch.from_numpy(index), len(totals), n_draws, self.seed)
        totals.index_add_(0, torch.from_numpy(index), weights)
        volume = math.prod(float(edge[1] - edge[0]) for edge in edges)
        bounds = equal_tailed(draws / draws.sum(1, keepdim=True), self.level)
        parts = (totals / totals.sum(), *bounds)
        return Histogram(edges, *((p / volume).reshape([bins] * len(names)).numpy() for p in parts))

    def summary(self, corrected: bool = True) -> dict[str, Any]:
        """Return everything as plain values, for JSON.

        Keys: ``log_z``, ``log_z_interval``, ``elbo``, ``ess`` (fraction), ``pareto_k`` (None if it
        is infinite: all weights equal, or too few that are finite), ``num_samples``,
        ``energy_calls``, ``nonfinite``, ``corrected``, ``warnings`` and ``observables``: name to
        ``mean``, ``interval``, ``level``, ``unit``.
        """
        return {
            "log_z": self.log_z,
            "log_z_interval": list(self.log_z_interval),
            "elbo": self.elbo,
            "ess": self.ess,
            "pareto_k": self.pareto_k if math.isfinite(self.pareto_k) else None,
            "num_samples": len(self.log_weights),
            "energy_calls": self.energy_calls,
            "nonfinite": self.nonfinite,
            "corrected": corrected,
            "warnings": list(self.warnings),
            "observables": {
                name: {
                    "mean": e.mean,
                    "interval": list(e.interval),
                    "level": e.level,
                    "unit": e.unit,
                }
                for name, e in self.estimates(corrected).items()
            },
        }

    def to_arviz(self, corrected: bool = True, num_draws: int = 4000) -> Any:
        """Return an ArviZ container: observables and latents as draws of one chain.

        ArviZ knows no weights, so the configurations are resampled by them; the sample statistics
        hold each draw's energy, log weight and index into :attr:`positions`.

        Args:
            corrected: resample by importance weights; if not, by the generator's own.
            num_draws: number of draws.

        Returns:
            ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x.
        """
        generator = torch.Generator().manual_seed(self.seed)
        index = torch.multinomial(
            self.weights(corrected), num_draws, replacement=True, generator=generator
        ).numpy()
        posterior = {o.name: self.values[o.name][index][None] for o in self.observables}
        posterior |= {name: value[index][None] for name, value in self.latents.items()}
        statistics = {
            "energy": self.energies[index][None],
            "log_weight": self.log_weights.numpy()[index][None],
            "index": index[None],
        }
        units = {f"unit_{o.name}": o.unit for o in self.observables}
        return inference_data(
            {"posterior": posterior, "sample_stats": statistics},
            {"log_z": self.log_z, "ess": self.ess, "pareto_k": self.pareto_k, **units},
        )

    def save_trajectory(self, path: str | Path, molecule: Molecule) -> Path:
        """Write the configurations as a trajectory, and their weights beside it.

        Args:
            path: its suffix is the format: ``.dcd``, ``.xtc``, ``.pdb``, or another of MDTraj's.
            molecule: whose configurations they are.

        Returns:
            The file of the weights (mean 1, importance-corrected), ``<name>.weights.txt``.

        Raises:
            ValueError: the prediction has no positions.
        """
        import mdtraj

        if len(self.positions) != len(self.log_weights):
            raise ValueError(
                "expected the positions of the samples, got a prediction that was saved without "
                "them; predict again with save_samples"
            )
        path = Path(path)
        weights = path.with_suffix(".weights.txt")
        header = "importance weight of each frame, mean 1"
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            frames, beside = Path(folder, path.name), Path(folder, weights.name)
            mdtraj.Trajectory(self.positions, molecule.mdtraj_topology).save(str(frames))
            np.savetxt(beside, self.weights().numpy(), header=header)
            frames.replace(path)
            beside.replace(weights)
        return weights

    def _observable(self, name: str) -> Observable:
        for observable in self.observables:
            if observable.name == name:
                return observable
        known = ", ".join(o.name for o in self.observables) or "none"
        raise KeyError(f"expected one of the predicted observables ({known}), got {name!r}")

    def _estimate(self, centre: Tensor, draws: Tensor, unit: str) -> Estimate:
        low, high = equal_tailed(draws, self.level).tolist()
        return Estimate(float(centre), (low, high), self.level, unit)

    def _edges(
        self, name: str, bins: int, limits: tuple[float, float] | None
    ) -> NDArray[np.float64]:
        if limits is None:
            values = self.values[name]
            circular = self._observable(name).circular
            limits = (-math.pi, math.pi) if circular else (values.min(), values.max())
            if limits[0] == limits[1]:  # all the same: a bar of width 1
                limits = (limits[0] - 0.5, limits[1] + 0.5)
        return np.linspace(*limits, bins + 1)


def predict(
    model: CoarseGrainedModel,
    observables: Sequence[Observable] = (),
    num_samples: int = 100_000,
    *,
    level: float = 0.95,
    batch: int = 5000,
    n_draws: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> Prediction:
    r"""Predict equilibrium averages with credible intervals.

    Draws samples of the generator, weighs them in the extended space by
    :math:`w = e^{-\beta U} |\partial T/\partial u|\, r / (p\, q)` at t = 1 with the uncapped
    energy, and evaluates the observables. Of a mixture latent, 5 % of the samples are spread evenly
    over the components, so that rare basins get precise averages too.

    Args:
        model: trained, see :func:`pyrocg.fit`.
        observables: functions of configurations, see :mod:`pyrocg.observables`.
        num_samples: number of samples n; each costs one energy call. ESS and k-hat flatter small
            samples: use 1e5 or more.
        level: of the intervals.
        batch: samples drawn at a time.
        n_draws: draws of the Bayesian bootstrap behind each interval.
        seed: of the random numbers; the global generators are left as they were.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range, or no sample has a finite energy.
    """
    if num_samples < 1 or batch < 1 or n_draws < 2:
        raise ValueError(
            "expected num_samples and batch of at least 1 and n_draws of at least 2, "
            f"got {num_samples}, {batch} and {n_draws}"
        )
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    energy = model.target.energy.exact
    before = energy.calls
    parts = list(_batches(model, num_samples, batch, seed, progress))
    log_w = torch.cat([p.log_weights for p in parts]).double()
    finite = torch.isfinite(log_w)
    if not bool(finite.any()):
        raise ValueError(
            f"expected samples with finite energies, got none of {num_samples}; "
            "train the model first"
        )
    log_w = torch.where(finite, log_w, -math.inf)
    smoothed, pareto_k = pareto_smooth(log_w.numpy())
    latents = {k: torch.cat([p.latents[k] for p in parts]).numpy() for k in parts[0].latents}
    positions = torch.cat([p.x for p in parts]).numpy()
    plain = _plain_log_weights(model, latents, num_samples)
    ones = torch.ones(num_samples, 1, dtype=torch.float64)
    scaled = (log_w - log_w.max()).exp()
    _, totals = bootstrap_means(scaled, ones, n_draws, seed)
    log_z_low, log_z_high = (equal_tailed(totals.log(), level) + log_w.max()).tolist()
    share = torch.softmax(torch.where(finite, plain, -math.inf), 0)
    return Prediction(
        positions=positions,
        latents=latents,
        log_weights=log_w,
        smoothed_log_weights=torch.from_numpy(smoothed),
        plain_log_weights=plain,
        energies=torch.cat([p.reduced_energy for p in parts]).double().numpy() / model.target.beta,
        values={o.name: o(positions) for o in observables},
        observables=tuple(observables),
        level=level,
        log_z=float(log_mean_exp(log_w)),
        log_z_interval=(log_z_low, log_z_high),
        elbo=_elbo(log_w, plain, share),
        ess=float(ess(log_w)),
        pareto_k=pareto_k,
        energy_calls=energy.calls - before,
        nonfinite=int((~finite).sum()),
        seed=seed,
        n_draws=n_draws,
        warnings=_warnings(float(ess(log_w)), pareto_k, int((~finite).sum()), num_samples),
    )


def _batches(
    model: CoarseGrainedModel, num_samples: int, batch: int, seed: int, progress: bool
) -> Iterator[Samples]:
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    t = model.temper
    with (
        torch.random.fork_rng(devices=devices),
        _defensive_shares(model),
        tqdm(total=num_samples, disable=not progress, unit="sample") as bar,
    ):
        torch.manual_seed(seed)
        model.temper = 1.0
        try:
            for start in range(0, num_samples, batch):
                samples = model.sample(min(batch, num_samples - start))
                bar.update(len(samples.u))
                yield samples.to("cpu")
        finally:
            model.temper = t


@contextmanager
def _defensive_shares(model: CoarseGrainedModel) -> Iterator[None]:
    """Spread a small part of the samples evenly over the components."""
    if not isinstance(model.prior, StratifiedPrior):
        yield
        return
    shares = model.prior.shares.clone()
    model.prior.set_shares((1 - _DEFENSIVE) * shares + _DEFENSIVE / len(shares))
    try:
        yield
    finally:
        model.prior.shares.copy_(shares)


def _plain_log_weights(
    model: CoarseGrainedModel, latents: dict[str, NDArray[Any]], num_samples: int
) -> Tensor:
    """Log of the generator's density of each sample's component over that it was drawn with."""
    if not isinstance(model.prior, StratifiedPrior):
        return torch.zeros(num_samples, dtype=torch.float64)
    shares = model.prior.shares.double().cpu()
    drawn = (1 - _DEFENSIVE) * shares + _DEFENSIVE / len(shares)
    return (shares / drawn).log()[torch.from_numpy(latents["component"])]


def _elbo(log_weights: Tensor, plain: Tensor, share: Tensor) -> float:
    """ELBO of the generator with its own shares, where energies are finite.

    The weights are relative to the shares drawn with; see :func:`pyrocg.weights.bound`.
    """
    terms = torch.where(share > 0, log_weights - plain, 0.0)
    reached = plain[torch.isfinite(log_weights)].logsumexp(0) - plain.logsumexp(0)
    return float((share * terms).sum() + reached)


def _warnings(ess: float, pareto_k: float, nonfinite: int, n: int) -> tuple[str, ...]:
    found = []
    if pareto_k > 0.7 and ess < _NEARLY_EQUAL:
        found.append(
            f"Pareto k-hat is {pareto_k:.2f}, above 0.7: corrected averages and their intervals "
            "cannot be trusted; train longer"
        )
    if ess * n < 400:
        found.append(
            f"the effective sample size is {ess * n:.0f} of {n}: intervals are rough; "
            "train longer or draw more samples"
        )
    if nonfinite:
        found.append(f"{nonfinite} of {n} samples have no finite energy; they got weight 0")
    return tuple(found)
