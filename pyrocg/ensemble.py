"""Weighted samples of a model, and of draws of its decoder: what predictions are made from."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyrocg.arviz_compat import pareto_smooth
from pyrocg.bootstrap import Bootstrap, heavy_tails, merged_strata
from pyrocg.cgmodel import CoarseGrainedModel, Samples
from pyrocg.conditions import at_target, seeded
from pyrocg.networks import with_state
from pyrocg.priors import StratifiedPrior

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = ["Ensemble", "DrawsWeights", "draw_ensemble"]

_DEFENSIVE = 0.05  # share of the samples spread evenly over the components of a mixture latent


class DrawsWeights(Protocol):
    """Anything that draws decoder weights, such as the posteriors of :mod:`pyrocg.posterior`."""

    def draw(self, n: int, seed: int) -> list[dict[str, Tensor]]:
        """Return n partial state dictionaries of the decoder."""
        ...


@dataclass(frozen=True)
class Ensemble:
    """Samples with their weights.

    Attributes:
        positions: configurations, shape ``(n, *event_shape)``, nm for molecules.
        latents: latent sites by name, shape ``(n, ...)`` each.
        log_weights: log importance weights for the Boltzmann density, shape ``(n,)``; minus
            infinity where the energy is not finite.
        smoothed_log_weights: the same, Pareto-smoothed, up to a constant.
        pareto_k: Pareto k-hat of them; above 0.7 corrected results cannot be trusted, unless the
            weights are nearly equal.
        plain_log_weights: log weights for the generator itself, shape ``(n,)``; not all equal only
            for a mixture latent, whose rare components are oversampled.
        energies: U in kJ/mol, shape ``(n,)``.
        weight_draw: which draw of the decoder's weights made the sample, shape ``(n,)``, ascending.
        elbo: the evidence lower bound, at most log Z up to noise; of the generator restricted to
            finite energies, see :func:`pyrocg.weights.bound`. With a posterior, the mean of the
            bounds of its draws.
    """

    positions: NDArray[np.floating[Any]]
    latents: dict[str, NDArray[Any]]
    log_weights: Tensor = field(repr=False)
    smoothed_log_weights: Tensor = field(repr=False)
    pareto_k: float
    plain_log_weights: Tensor = field(repr=False)
    energies: NDArray[np.float64]
    weight_draw: NDArray[np.int64] = field(repr=False)
    elbo: float

    def weights(self, corrected: bool = True) -> Tensor:
        """Weights with mean 1, shape ``(n,)``: Pareto-smoothed, or the generator's own."""
        log_w = self.smoothed_log_weights if corrected else self.plain_log_weights
        return torch.softmax(log_w.double(), 0) * len(log_w)

    @property
    def component(self) -> Tensor:
        """Component that each sample was drawn from, shape ``(n,)``; 0 without a mixture latent."""
        found = self.latents.get("component")
        if found is None:
            return torch.zeros(len(self.log_weights), dtype=torch.long)
        return torch.from_numpy(found.astype(np.int64))

    def bootstrap(self, weights: Tensor, n_draws: int, seed: int, *, heavy: bool) -> Bootstrap:
        """Return the bootstrap of the samples within components and draws of the decoder.

        Args:
            weights: shape ``(n,)``.
            n_draws: of the bootstrap.
            seed: of its random numbers.
            heavy: whether the weights may have heavy tails.
        """
        group, component = torch.from_numpy(self.weight_draw), self.component
        tails = heavy_tails(weights, component, n_draws, seed) if heavy else ()
        return Bootstrap(weights, group, n_draws, seed, merged_strata(group, component), tails)

    def bounds(self) -> Tensor:
        """Lower bounds of log Z of each draw of the decoder's weights, shape ``(n_draws,)``.

        Of the weights averaged over encoder draws, so closer to log Z than :attr:`elbo`, and of
        finite energies, see :func:`pyrocg.weights.bound`; minus infinity without any.
        """
        draw = torch.from_numpy(self.weight_draw)
        found = []
        for d in range(int(draw.max()) + 1):
            log_w, plain = self.log_weights[draw == d], self.plain_log_weights[draw == d]
            found.append(_elbo(log_w, plain) if bool(log_w.isfinite().any()) else -math.inf)
        return torch.tensor(found, dtype=torch.float64)

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


def draw_ensemble(
    model: CoarseGrainedModel,
    num_samples: int,
    *,
    posterior: DrawsWeights | None,
    n_weight_draws: int,
    encoder_draws: int,
    batch: int,
    seed: int,
    progress: bool,
) -> Ensemble:
    """Draw samples of the generator at t = 1; arguments as :func:`pyrocg.predict`.

    With a posterior the samples are shared out evenly over draws of the decoder's weights. The
    model and the global random numbers are left as they were.
    """
    states: list[dict[str, Tensor]] = [{}]
    if posterior is not None:
        states = posterior.draw(n_weight_draws, seed)
    sizes = [len(part) for part in np.array_split(np.arange(num_samples), len(states))]
    parts: list[Samples] = []
    with (
        seeded(seed, model.parameters()),
        at_target(model, _defensive),
        tqdm(total=num_samples, disable=not progress, unit="sample") as bar,
    ):
        for state, size in zip(states, sizes, strict=True):
            with with_state(model.decoder, state):
                for samples in _batches(model, size, encoder_draws, batch):
                    bar.update(len(samples.u))
                    parts.append(samples)
    return _joined(model, parts, np.repeat(np.arange(len(states)), sizes))


def _batches(
    model: CoarseGrainedModel, num_samples: int, encoder_draws: int, batch: int
) -> Iterator[Samples]:
    """Samples of the model as it is, some at a time."""
    for start in range(0, num_samples, batch):
        size = min(batch, num_samples - start)
        yield model.sample(size, encoder_draws=encoder_draws).to("cpu")


def _joined(
    model: CoarseGrainedModel, parts: list[Samples], weight_draw: NDArray[np.int64]
) -> Ensemble:
    log_w = torch.cat([p.log_weights for p in parts]).double()
    latents = {k: torch.cat([p.latents[k] for p in parts]).numpy() for k in parts[0].latents}
    plain = torch.zeros_like(log_w)
    if isinstance(model.prior, StratifiedPrior):
        component = torch.from_numpy(latents["component"])
        shares = model.prior.shares.double().cpu()
        plain = (shares / _defensive(shares)).log()[component]
    log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf)
    smoothed, pareto_k = pareto_smooth(log_w.numpy())
    return Ensemble(
        positions=torch.cat([p.x for p in parts]).numpy(),
        latents=latents,
        log_weights=log_w,
        smoothed_log_weights=torch.from_numpy(smoothed),
        pareto_k=pareto_k,
        plain_log_weights=plain,
        energies=torch.cat([p.reduced_energy for p in parts]).double().numpy() / model.target.beta,
        weight_draw=weight_draw,
        elbo=_elbo(torch.cat([p.joint_log_weights for p in parts]).double(), plain),
    )


def _elbo(log_weights: Tensor, plain: Tensor) -> float:
    """ELBO of the generator with its own shares, where energies are finite.

    The weights are relative to the shares drawn with; see :func:`pyrocg.weights.bound`.
    """
    share = torch.softmax(torch.where(torch.isfinite(log_weights), plain, -torch.inf), 0)
    terms = torch.where(share > 0, log_weights - plain, 0.0)
    reached = plain[torch.isfinite(log_weights)].logsumexp(0) - plain.logsumexp(0)
    return float((share * terms).sum() + reached)


def _defensive(shares: Tensor) -> Tensor:
    """A small part of the samples is spread evenly over the components."""
    return (1 - _DEFENSIVE) * shares + _DEFENSIVE / len(shares)
