"""A prediction: what weighted samples of a model say about observables, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyrocg import cautions
from pyrocg.arviz_compat import resampled_chains
from pyrocg.cautions import Caution
from pyrocg.distributions import wrap
from pyrocg.ensemble import Ensemble
from pyrocg.estimates import Estimate, FreeEnergySurface, Histogram
from pyrocg.estimators import WeightedSample, bin_edges, bin_index
from pyrocg.observables import Observable
from pyrocg.weights import ess

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction(Ensemble):
    """What :func:`pyrocg.predict <pyrocg.predictive.predict>` returns: samples and what they say.

    For intervals of another level: ``dataclasses.replace(prediction, level=0.9)``.

    Attributes:
        values: observable name to values, shape ``(n,)`` each.
        observables: the observables.
        beta: 1/kT in mol/kJ.
        level: of the intervals of observables; ``log_z_interval`` keeps that of ``predict``.
        log_z: log Z of the reduced coordinates, by importance sampling; nats.
        log_z_interval: its interval, by the Bayesian bootstrap.
        ess: effective sample size of the weights, a fraction of n.
        energy_calls: configurations whose energy was evaluated here.
        nonfinite: how many of them had no finite energy.
        seed: of samples and intervals.
        n_draws: draws of the Bayesian bootstrap behind each interval; at most 200 in histograms.
    """

    values: dict[str, NDArray[np.float64]]
    observables: tuple[Observable, ...]
    beta: float
    level: float
    log_z: float
    log_z_interval: tuple[float, float]
    ess: float
    energy_calls: int
    nonfinite: int
    seed: int
    n_draws: int

    @cached_property
    def warnings(self) -> tuple[Caution, ...]:
        """When not to trust this: ``str`` of each is a sentence, see :mod:`pyrocg.cautions`."""
        return tuple(self._cautions())

    def estimate(self, name: str, corrected: bool = True) -> Estimate:
        """Return the equilibrium average of an observable with its interval.

        Args:
            name: of the observable.
            corrected: by importance weights; if not, the generator's own average.
        """
        return self.estimates(corrected)[self._observable(name).name]

    def estimates(self, corrected: bool = True) -> dict[str, Estimate]:
        """Return :meth:`estimate` of every observable, by name."""
        return dict(self._corrected if corrected else self._plain)

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
        observable, p = self._observable(name), torch.tensor(probs, dtype=torch.float64)
        values = torch.from_numpy(self.values[name])
        values = wrap(values) if observable.circular else values
        return self._sample(corrected).quantiles(values, p, observable.unit)

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
        edges, index = [], np.zeros(len(self.log_weights), dtype=np.int64)
        for name in names:
            circular, values = self._observable(name).circular, self.values[name]
            edges.append(bin_edges(values, circular, bins, limits))
            place = bin_index(values, circular, edges[-1])
            index = np.where((index < 0) | (place < 0), -1, index * bins + place)
        flat = torch.from_numpy(index)
        if not float(self.weights(corrected)[flat >= 0].sum()) > 0:
            raise ValueError(f"expected samples between {limits}, got none; widen the limits")
        return self._sample(corrected).histogram(tuple(edges), flat)

    def free_energy(
        self,
        *names: str,
        bins: int = 50,
        limits: tuple[float, float] | None = None,
        corrected: bool = True,
    ) -> FreeEnergySurface:
        """Return the free energy over one or two observables in kJ/mol, with bands.

        Arguments and errors as :meth:`histogram`, whose bands it has.
        """
        found = self.histogram(*names, bins=bins, limits=limits, corrected=corrected)
        return FreeEnergySurface.of(found, 1.0 / self.beta)

    def free_energy_difference(self, first: str, second: str, corrected: bool = True) -> Estimate:
        r"""Return :math:`-k_B T \log(p_2/p_1)` of two states in kJ/mol, with its interval.

        Args:
            first: a population, an observable of zeros and ones.
            second: another one; a positive result says that it is the less populated.
            corrected: by importance weights.

        Raises:
            ValueError: one is no population, or has no samples.
        """
        inside, other = (torch.from_numpy(self._state(n, corrected)) for n in (first, second))
        return self._sample(corrected).free_energy_difference(inside, other, 1.0 / self.beta)

    def summary(self, corrected: bool = True) -> dict[str, Any]:
        """Return everything as plain values, for JSON.

        Keys: ``log_z``, ``log_z_interval``, ``elbo``, ``ess`` (fraction), ``pareto_k`` (None if it
        is infinite: all weights equal, or too few that are finite), ``num_samples``,
        ``weight_draws``, ``energy_calls``, ``nonfinite``, ``corrected``, ``warnings``: a list of
        ``code``, ``text`` and ``observable``; and ``observables``: name to ``mean``, ``interval``,
        ``level``, ``unit`` and the standard deviations ``posterior``, ``monte_carlo``, ``weights``.
        """
        return {
            "log_z": self.log_z,
            "log_z_interval": list(self.log_z_interval),
            "elbo": self.elbo,
            "ess": self.ess,
            "pareto_k": self.pareto_k if math.isfinite(self.pareto_k) else None,
            "num_samples": len(self.log_weights),
            "weight_draws": int(self.weight_draw.max()) + 1,
            "energy_calls": self.energy_calls,
            "nonfinite": self.nonfinite,
            "corrected": corrected,
            "warnings": [dict(vars(warning)) for warning in self.warnings],
            "observables": {
                name: {k: v for k, v in vars(e).items() if k != "draws"}
                | {"interval": list(e.interval)}
                for name, e in self.estimates(corrected).items()
            },
        }

    def to_arviz(
        self,
        corrected: bool = True,
        num_draws: int | None = None,
        observed: Mapping[str, ArrayLike] | None = None,
    ) -> Any:
        """Return an ArviZ container: observables and latents as draws.

        The chains are the draws of the decoder's weights, or without a posterior four equal parts
        of the samples, so that R-hat compares what is independent. ArviZ knows no weights, so the
        configurations of each chain are resampled by them, which repeats some of them.

        Groups: ``posterior``, with the unit of each variable as attribute ``units``;
        ``sample_stats``: ``energy``, ``log_weight``, and ``index`` into :attr:`positions`;
        ``constant_data``: ``beta``. With ``observed`` also ``observed_data``, and
        ``posterior_predictive``: for each chain its configurations as replicated data, for
        predictive checks.

        Args:
            corrected: resample by importance weights; if not, by the generator's own.
            num_draws: number of draws of all chains together; default the effective sample size,
                from one for each chain to 4000, so that ArviZ does not take repeats for
                information.
            observed: known samples of some observables, for instance of a simulation, shape
                ``(n_known,)`` each, all of one length.

        Returns:
            ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x.

        Raises:
            KeyError: ``observed`` has a name that is not among the observables.
            ValueError: ``num_draws`` gives no draw to a chain, or an observable has the name of a
                latent.
        """
        weights = self.weights(corrected)
        effective = int(float(ess(weights.log())) * len(weights))
        chain = self.weight_draw
        if not chain.any():
            chain = np.arange(len(weights)) % 4
        if num_draws is None:
            num_draws = max(min(effective, 4000), int(chain.max()) + 1)
        for name in observed or {}:
            self._observable(name)
        for name in self.latents:
            if name in self.values:
                raise ValueError(f"expected observables named otherwise than latents, got {name!r}")
        return resampled_chains(
            {o.name: self.values[o.name] for o in self.observables} | self.latents,
            {"energy": self.energies, "log_weight": self.log_weights.numpy()},
            chain,
            weights.numpy(),
            num_draws=num_draws,
            units={o.name: o.unit for o in self.observables} | {"energy": "kJ/mol"},
            constants={"beta": self.beta},
            attributes={"log_z": self.log_z, "ess": self.ess, "pareto_k": self.pareto_k},
            observed=observed or {},
            seed=self.seed,
        )

    def _cautions(self) -> Iterator[Caution]:
        yield from cautions.of_weights(self.log_weights, self.pareto_k)
        component = self.latents.get("component")
        if component is not None:
            yield from cautions.of_components(component, self.log_weights)
        yield from cautions.of_populations(self.values, self.smoothed_log_weights)
        yield from cautions.of_model_bias(self._averages(self._own_sample), self.estimates())

    @cached_property
    def _corrected(self) -> dict[str, Estimate]:
        return self._averages(self._corrected_sample)

    @cached_property
    def _plain(self) -> dict[str, Estimate]:
        return self._averages(self._plain_sample)

    def _averages(self, sample: WeightedSample) -> dict[str, Estimate]:
        if not self.observables:
            return {}
        values = [torch.from_numpy(self.values[o.name]) for o in self.observables]
        found = sample.means(self.observables, values)
        return {o.name: e for o, e in zip(self.observables, found, strict=True)}

    def _sample(self, corrected: bool) -> WeightedSample:
        return self._corrected_sample if corrected else self._plain_sample

    @cached_property
    def _corrected_sample(self) -> WeightedSample:
        weights = self.weights(corrected=True)
        made = self.bootstrap(weights, self.n_draws, self.seed, heavy=True)
        return WeightedSample(made, self.level, shared_truth=True)

    @cached_property
    def _own_sample(self) -> WeightedSample:
        """With the generator's shares as they are."""
        weights = self.weights(corrected=False)
        made = self.bootstrap(weights, self.n_draws, self.seed, heavy=False)
        return WeightedSample(made, self.level, shared_truth=False)

    @cached_property
    def _plain_sample(self) -> WeightedSample:
        """With shares as uncertain as the weights leave them."""
        own, component = self._own_sample, self.component
        if int(component.max()) == 0:
            return own
        shares = self._corrected_sample.bootstrap.relative_totals(component)
        made = replace(own.bootstrap, component=component, shares=shares)
        return replace(own, bootstrap=made)

    def _observable(self, name: str) -> Observable:
        for observable in self.observables:
            if observable.name == name:
                return observable
        known = ", ".join(o.name for o in self.observables) or "none"
        raise KeyError(f"expected one of the predicted observables ({known}), got {name!r}")

    def _state(self, name: str, corrected: bool) -> NDArray[np.bool_]:
        """Which samples are in a population."""
        values = self.values[self._observable(name).name]
        if not np.isin(values, (0.0, 1.0)).all():
            raise ValueError(
                f"expected a population, of zeros and ones, got {name!r}; make one by "
                "pyrocg.observables.population or window, and predict it"
            )
        inside = values == 1
        if not float(self.weights(corrected)[torch.from_numpy(inside)].sum()) > 0:
            raise ValueError(f"expected samples in both states, got none in {name!r}")
        return inside
