"""Predict from a trained run, with the posterior over the weights that its options ask for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.config import Config
from pyrocg.laplace import LaplacePosterior
from pyrocg.prediction import Prediction
from pyrocg.predictive import predict
from pyrocg.swag import SWAGPosterior
from pyrocg.system import System
from pyrocg.weight_draws import WeightPosterior

__all__ = ["RunPrediction", "predict_run", "samples_of_training"]


@dataclass(frozen=True)
class RunPrediction:
    """A prediction from a run, and how it was made.

    Attributes:
        prediction: the results, with a posterior a
            :class:`~pyrocg.predictive.PosteriorPrediction`.
        posterior: ``method`` and its options; with a posterior also ``gibbs_scale``, N (None for
            SWAG, whose width is that of its learning rate), and of a Laplace approximation
            ``training_samples``, which N comes from, ``prior_scale`` and ``expected_excess``, see
            :class:`~pyrocg.laplace.LaplacePosterior`.
        energy_calls: of the ``posterior``, if there is one, and of the ``prediction``.
        seconds: wall time of both.
    """

    prediction: Prediction
    posterior: dict[str, Any]
    energy_calls: dict[str, int]
    seconds: dict[str, float]


def predict_run(
    config: Config,
    model: CoarseGrainedModel,
    system: System,
    n_samples: int,
    *,
    progress: bool,
    say: Callable[[str], None],
) -> RunPrediction:
    """Fit the posterior and predict.

    Args:
        config: of the run.
        model: trained; left as it was.
        system: of the run.
        n_samples: that the model was trained on, see :func:`samples_of_training`.
        progress: show progress bars.
        say: is told what takes long.

    Raises:
        ValueError: the model was not trained, has too many weights for a full covariance, or no
            sample has a finite energy.
    """
    energy, started = system.target.energy.exact, time.monotonic()
    before = energy.calls
    if config.posterior.kind != "none":
        say(f"fitting the posterior over the decoder's weights ({config.posterior.kind})")
    posterior = _fit_posterior(config, model, n_samples)
    fitted, fit_calls = time.monotonic(), energy.calls - before
    given = {k: v for k, v in vars(config.predict).items() if k != "state"}
    if posterior is not None:
        given |= {"posterior": posterior, "n_weight_draws": config.posterior.weight_draws}
    prediction = predict(model, system.observables, progress=progress, **given)
    seconds = {"prediction": time.monotonic() - fitted}
    calls = {"prediction": prediction.energy_calls}
    if posterior is not None:
        seconds = {"posterior": fitted - started, **seconds}
        calls = {"posterior": fit_calls, **calls}
    return RunPrediction(prediction, _described(config, posterior, n_samples), calls, seconds)


def samples_of_training(config: Config, counters: dict[str, Any]) -> int:
    """Return the number of samples that the weights rest on.

    Args:
        config: of the run; with ``predict.state`` "best" the samples up to the best step.
        counters: of its checkpoint.
    """
    steps = counters["step"] - counters["skipped"]
    if config.predict.state == "best" and counters["best_step"]:
        steps = min(steps, counters["best_step"])
    return steps * config.fit.num_samples


def _fit_posterior(
    config: Config, model: CoarseGrainedModel, n_samples: int
) -> WeightPosterior | None:
    options, seed = config.posterior, config.predict.seed
    if options.kind == "laplace":
        assert options.structure is not None
        assert options.num_samples is not None
        return LaplacePosterior.fit(
            model,
            n_samples,
            structure=options.structure,
            num_draws=options.num_samples,
            seed=seed,
        )
    if options.kind == "swag":
        assert options.steps is not None
        assert options.learning_rate is not None
        return SWAGPosterior.fit(
            model,
            options.steps,
            config.fit.num_samples,
            learning_rate=options.learning_rate,
            seed=seed,
        )
    return None


def _described(config: Config, posterior: WeightPosterior | None, n_samples: int) -> dict[str, Any]:
    options = {k: v for k, v in vars(config.posterior).items() if v is not None and k != "kind"}
    found: dict[str, Any] = {"method": config.posterior.kind, **options}
    if posterior is not None:
        found["gibbs_scale"] = None
    if isinstance(posterior, LaplacePosterior):
        found |= {
            "gibbs_scale": posterior.gibbs_scale,
            "training_samples": n_samples,
            "prior_scale": posterior.prior_scale,
            "expected_excess": posterior.excess,
        }
    return found
