"""The predictive distribution of a model, and of draws of its decoder's weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pyrocg.agreement import of_weight_draws
from pyrocg.bootstrap import equal_tailed, mixed_seed
from pyrocg.cautions import Caution
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.ensemble import DrawsWeights, Ensemble, draw_ensemble
from pyrocg.observables import Observable
from pyrocg.posterior import EnsemblePosterior
from pyrocg.prediction import Prediction
from pyrocg.weights import ess, log_mean_exp

__all__ = ["PosteriorPrediction", "predict"]


@dataclass(frozen=True)
class PosteriorPrediction(Prediction):
    """A prediction over draws of the decoder's weights, and one of the trained weights beside it.

    Its warnings say, too, where the draws are worse than the trained weights, or shifted from them:
    see :func:`~pyrocg.agreement.of_weight_draws`.

    Attributes:
        trained: of the trained weights alone, from fewer samples.
        expected_excess: how many nats farther from the Boltzmann density than the trained weights
            the posterior expects its draws to be; NaN if it does not say.

    ``energy_calls`` counts both, ``nonfinite`` only the draws'.
    """

    trained: Prediction
    expected_excess: float

    def _cautions(self) -> Iterator[Caution]:
        yield from super()._cautions()
        yield from of_weight_draws(self, self.trained, self.expected_excess)


def predict(
    model: CoarseGrainedModel,
    observables: Sequence[Observable] = (),
    num_samples: int = 100_000,
    *,
    posterior: DrawsWeights | None = None,
    n_weight_draws: int = 20,
    trained_samples: int | None = None,
    encoder_draws: int = 4,
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

    Intervals come from the Bayesian bootstrap within components, whose numbers of samples are
    fixed: a latent site named ``component`` is taken as one of
    :class:`~pyrocg.priors.StratifiedPrior`. The tail of each component's weights is generalised
    Pareto with unknown shape (:func:`pyrocg.bootstrap.heavy_tails`), since few samples miss the
    largest weights. The generator's own averages depend on the components' shares, which are
    estimates too: they are taken to be as uncertain as these samples' weights leave them.

    With a posterior over the decoder's weights the samples are shared out evenly over draws of
    them. Each draw is an exact importance sampler, so corrected averages pool all samples. How
    the spread over draws, Monte Carlo noise and weights add up: see :mod:`pyrocg.estimates`.
    A few more samples, of the trained weights, show whether the draws agree with them.

    Args:
        model: trained, see :func:`pyrocg.fit`.
        observables: functions of configurations, see :mod:`pyrocg.observables`.
        num_samples: number of samples n; each costs one energy call. ESS and k-hat flatter small
            samples: use 1e5 or more.
        posterior: what draws decoder weights; default the model's own weights alone.
        n_weight_draws: draws of the decoder's weights. A spread smaller than the noise of one
            draw's average cannot be seen; more samples lower that noise.
        trained_samples: samples of the trained weights that two or more draws are compared with,
            beside the n; 0 for no comparison. Default: as many as a draw has, so of 20 draws 5 %
            more energy calls, and none for an :class:`~pyrocg.posterior.EnsemblePosterior`, whose
            members are not draws around this model.
        encoder_draws: further draws of the latents that each weight is averaged over, see
            :meth:`CoarseGrainedModel.sample`; they raise the ESS and cost no energies.
        level: of the intervals.
        batch: samples drawn at a time.
        n_draws: draws of the Bayesian bootstrap behind each interval.
        seed: of the random numbers; the global generators are left as they were.
        progress: show a progress bar.

    Returns:
        With a posterior whose draws are compared, a :class:`PosteriorPrediction`.

    Raises:
        ValueError: an argument is out of range, two observables have the same name, or no sample
            has a finite energy.
    """
    names = [o.name for o in observables]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"expected observables with different names, got {', '.join(repeated)} more than once; "
            "give each its own: dataclasses.replace(observable, name=...)"
        )
    draws = 1 if posterior is None else n_weight_draws
    _check(num_samples, draws, encoder_draws, level, batch, n_draws)
    beside = _beside(posterior, draws, num_samples, trained_samples)
    given = partial(
        _predicted,
        model,
        observables,
        encoder_draws=encoder_draws,
        level=level,
        batch=batch,
        n_draws=n_draws,
    )
    drawn = given(num_samples, posterior, draws, seed=seed, progress=progress)
    if not beside:
        return drawn
    trained = given(beside, None, 1, seed=mixed_seed(seed, 4), progress=False)
    return PosteriorPrediction(
        **vars(drawn) | {"energy_calls": drawn.energy_calls + trained.energy_calls},
        trained=trained,
        expected_excess=getattr(posterior, "excess", math.nan),
    )


def _check(
    num_samples: int, draws: int, encoder_draws: int, level: float, batch: int, n_draws: int
) -> None:
    if num_samples < 1 or batch < 1 or n_draws < 2:
        raise ValueError(
            "expected num_samples and batch of at least 1 and n_draws of at least 2, "
            f"got {num_samples}, {batch} and {n_draws}"
        )
    if not 1 <= draws <= num_samples:
        raise ValueError(
            f"expected from 1 to {num_samples} weight draws, as there are samples, got {draws}"
        )
    if encoder_draws < 0:
        raise ValueError(f"expected encoder_draws of at least 0, got {encoder_draws}")
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")


def _beside(posterior: DrawsWeights | None, draws: int, num_samples: int, asked: int | None) -> int:
    """How many samples of the trained weights the draws are compared with."""
    if asked is None:
        around = posterior is not None and not isinstance(posterior, EnsemblePosterior)
        return max(num_samples // draws, 2) if around and draws > 1 else 0
    if asked < 0 or asked == 1:
        raise ValueError(f"expected trained_samples of 0 or at least 2, got {asked}")
    if asked and draws < 2:
        raise ValueError(
            f"expected a posterior and two or more weight draws with trained_samples, got {asked} "
            "of them; leave them out"
        )
    return asked


def _predicted(
    model: CoarseGrainedModel,
    observables: Sequence[Observable],
    num_samples: int,
    posterior: DrawsWeights | None,
    n_weight_draws: int,
    *,
    encoder_draws: int,
    level: float,
    batch: int,
    n_draws: int,
    seed: int,
    progress: bool,
) -> Prediction:
    energy = model.target.energy.exact
    before = energy.calls
    ensemble = draw_ensemble(
        model,
        num_samples,
        posterior=posterior,
        n_weight_draws=n_weight_draws,
        encoder_draws=encoder_draws,
        batch=batch,
        seed=seed,
        progress=progress,
    )
    log_w = ensemble.log_weights
    finite = torch.isfinite(log_w)
    if not bool(finite.any()):
        raise ValueError(
            f"expected samples with finite energies, got none of {num_samples}; "
            "train the model first"
        )
    return Prediction(
        **vars(ensemble),
        values={o.name: o(ensemble.positions) for o in observables},
        observables=tuple(observables),
        beta=model.target.beta,
        level=level,
        log_z=float(log_mean_exp(log_w)),
        log_z_interval=_log_z_interval(ensemble, level, n_draws, seed),
        ess=float(ess(log_w)),
        energy_calls=energy.calls - before,
        nonfinite=int((~finite).sum()),
        seed=seed,
        n_draws=n_draws,
    )


def _log_z_interval(
    ensemble: Ensemble, level: float, n_draws: int, seed: int
) -> tuple[float, float]:
    log_w = ensemble.log_weights
    scaled = ensemble.bootstrap((log_w - log_w.max()).exp(), n_draws, seed, heavy=True)
    totals = scaled.sums(torch.ones(len(log_w), 1)).pooled()[1][:, 0] / len(log_w)
    low, high = (equal_tailed(totals.log(), level) + log_w.max()).tolist()
    return low, high
