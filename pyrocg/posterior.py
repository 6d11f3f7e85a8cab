r"""Posteriors over the decoder's weights.

A posterior has one method that matters: ``draw(n, seed)`` gives n dictionaries, each a part of
``model.decoder.state_dict()``. :func:`pyrocg.networks.with_state` puts one into the decoder for a
while::

    for weights in posterior.draw(100, seed=0):
        with with_state(model.decoder, weights):
            samples = model.sample(1000)

There are three kinds: :class:`~pyrocg.laplace.LaplacePosterior`,
:class:`~pyrocg.swag.SWAGPosterior` and :class:`EnsemblePosterior`. See
:mod:`pyrocg.weight_priors` for the Gibbs posterior and its scale N.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from pyrocg.bootstrap import random_stream
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.checkpoint import load_state
from pyrocg.laplace import LaplacePosterior
from pyrocg.swag import SWAGPosterior
from pyrocg.weight_draws import WeightPosterior, check_draws

__all__ = [
    "EnsemblePosterior",
    "LaplacePosterior",
    "SWAGPosterior",
    "WeightPosterior",
    "load_posterior",
]


def load_posterior(path: str | Path) -> WeightPosterior:
    """Read a posterior that :meth:`WeightPosterior.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no posterior.
    """
    state = load_state(path)
    kinds = {k.__name__: k for k in (LaplacePosterior, SWAGPosterior, EnsemblePosterior)}
    kind = state.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"expected a posterior ({', '.join(kinds)}) in {path}, got kind {kind!r}")
    return kinds[kind](**state)


@dataclass(frozen=True)
class EnsemblePosterior(WeightPosterior):
    """Decoders that were trained separately, each as probable as the others.

    Their models must have the same prior p(z). Each was trained with an encoder of its own, so
    predictions of the generators are right, but importance weights with one model's encoder are
    poor: train all members against that encoder for those.

    Source: Lakshminarayanan, Pritzel and Blundell (2017), "Simple and scalable predictive
    uncertainty estimation using deep ensembles".

    Attributes:
        states: state dictionaries of the decoders.

    Example:
        >>> import torch
        >>> members = [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]
        >>> len(EnsemblePosterior.of(members).draw(5, seed=0))
        5
    """

    states: list[dict[str, Tensor]] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.states:
            raise ValueError("expected at least one member of the ensemble, got none")
        first = {name: value.shape for name, value in self.states[0].items()}
        for state in self.states[1:]:
            if {name: value.shape for name, value in state.items()} != first:
                raise ValueError(
                    "expected decoders of the same names and shapes, got others; build all "
                    "members alike"
                )

    @classmethod
    def of(
        cls, members: Iterable[CoarseGrainedModel | nn.Module | Mapping[str, Tensor]]
    ) -> EnsemblePosterior:
        """Build it from trained models, from decoders, or from state dictionaries of decoders."""
        states = []
        for member in members:
            decoder = member.decoder if isinstance(member, CoarseGrainedModel) else member
            state = decoder.state_dict() if isinstance(decoder, nn.Module) else decoder
            states.append({name: value.detach().cpu().clone() for name, value in state.items()})
        return cls(states)

    def draw(self, n: int, seed: int) -> list[dict[str, Tensor]]:
        """Draw n members, in random order and as evenly as n allows."""
        check_draws(n)
        generator, k = random_stream(seed, 5), len(self.states)
        rounds = [torch.randperm(k, generator=generator) for _ in range(-(-n // k))]
        chosen = torch.cat(rounds)[:n].tolist()
        return [{name: v.clone() for name, v in self.states[i].items()} for i in chosen]
