r"""Curvature of the KL divergence in the decoder's weights, and the noise of its gradient.

With the score :math:`s = \nabla_\theta \log q_\theta(u|z)` the divergence has the derivatives

.. math::
    \nabla KL &= E_q\Big[s \log\frac{q}{\pi}\Big], \\
    \nabla^2 KL &= E_q[s s^\top] + E_q\Big[\big(\nabla^2 \log q + s s^\top\big)
                   \log\frac{q}{\pi}\Big] .

Where q = π the last term vanishes (the expectation of the bracket is zero), so the Hessian is the
Fisher information :math:`F = E_q[s s^\top]`.

That is the curvature while the encoder stands still. But the encoder was trained too: what counts
is the divergence at the best encoder, and that of an encoder free enough is the divergence of the
*marginal* q(u) from the Boltzmann density. Its Fisher information is that of the marginal score,
which by Fisher's identity is an average over the encoder,

.. math:: \bar s = \nabla_\theta \log q_\theta(u) = E_{r(z|u)}[s], \qquad
          \bar F = E_q[\bar s \bar s^\top] \preceq F .

The difference is large where z explains much of u. With m draws of z from the encoder,
:math:`E[\bar s_m \bar s_m^\top] = \bar F + (F - \bar F)/m`, which is solved for :math:`\bar F`.
Here z is all that the encoder draws, but for the component of a mixture, which it knows from u.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import at_target, seeded
from pyrocg.objectives import PathGradientELBO
from pyrocg.priors import StratifiedPrior
from pyrocg.traces import drawn_values
from pyrocg.weight_priors import select
from pyrocg.weights import training_shares

__all__ = ["Fisher", "Rows", "has_score"]

_BLOCK = 64  # rows multiplied at a time
_FEW_WEIGHTS = 10_000  # fewer, and calls cost more than arithmetic


@dataclass(frozen=True)
class Rows:
    """Per-sample gradients of some samples, shape ``(n, n_weights)`` each.

    Attributes:
        score: of the decoder, with the z that u was drawn with.
        marginal: mean score over draws of z from the encoder; without draws the same as score.
        path: gradient of the loss along u alone; none unless asked for.
    """

    score: Tensor
    marginal: Tensor
    path: Tensor | None


@dataclass(frozen=True)
class Fisher:
    r"""Fisher information of a model's decoder, estimated from samples of its generator.

    The samples are drawn anew, from the same seed, whenever they are needed, so that memory does
    not grow with their number.

    Args:
        model: trained; used at t = 1, its components in the shares of its training.
        only: patterns of the names of the decoder's parameters θ, as in a shell.
        encoder_draws: draws m of z from the encoder for each sample, at least 2, for the marginal
            information; 0 for the information while the encoder stands still.
        num_draws: number of samples of the generator.
        seed: of the random numbers; the global generators are left as they were.

    Raises:
        ValueError: an argument is out of range, or no parameter is trained.
    """

    model: CoarseGrainedModel
    only: str | Sequence[str] = "*"
    encoder_draws: int = 16
    num_draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.encoder_draws < 2 and self.encoder_draws != 0:
            raise ValueError(f"expected encoder_draws of 0 or at least 2, got {self.encoder_draws}")
        if self.num_draws < 2:
            raise ValueError(f"expected num_draws of at least 2, got {self.num_draws}")
        if not self.parameters:
            raise ValueError(
                "expected a decoder with parameters that require gradients, got none; train it, "
                "or name others by `only`"
            )

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The decoder's trained parameters among those named."""
        chosen = select(dict(self.model.decoder.named_parameters()), self.only)
        return {name: p for name, p in chosen.items() if p.requires_grad}

    def diagonal(self) -> Tensor:
        """Return the diagonal of the information, at least 0, shape ``(n_weights,)``, float64."""
        total: Any = 0.0
        for rows in self.rows():
            for weight, part in self._weighted(rows):
                total = total + weight * part.double().square().sum(0)
        return total.clamp(min=0.0)

    def times(self, matrix: Tensor) -> Tensor:
        """Return the information times a matrix ``(n_weights, k)``, float64."""
        total = torch.zeros_like(matrix, dtype=torch.float64)
        waiting: dict[float, list[Tensor]] = {}  # few rows at a time would be slow
        left = self.num_draws
        for rows in self.rows():
            left -= len(rows.score)
            for weight, part in self._weighted(rows):
                parts = waiting.setdefault(weight, [])
                parts.append(part)
                if left == 0 or sum(map(len, parts)) >= _BLOCK:
                    block = torch.cat(parts)
                    total += weight * (block.T @ (block @ matrix.to(block)))
                    parts.clear()
        return total

    def noise(self, square: Callable[[Tensor], Tensor], loss: ELBO | None = None) -> float:
        r"""Return :math:`tr(M C)`, C the covariance of the gradient of one sample.

        Samples without finite energies are left out.

        Args:
            square: of rows g ``(n, n_weights)``, float64, the squares :math:`g^\top M g`.
            loss: whose gradient, ``PathGradientELBO``, the default, or ``Trace_ELBO``; see
                :meth:`pyrocg.laplace.LaplacePosterior.fit`.

        Raises:
            TypeError: another loss.
            ValueError: fewer than two samples have finite energies.
        """
        with_score = has_score(loss)
        n, total, squares = 0, torch.zeros(()).double(), torch.zeros(3).double()
        for rows in self.rows(with_path=True):
            assert rows.path is not None
            finite = rows.path.isfinite().all(1)
            score, averaged, path = (
                part[finite].double() for part in (rows.score, rows.marginal, rows.path)
            )
            gradient = path + averaged if with_score else path + averaged - score
            n += len(gradient)
            total = total.to(gradient) + gradient.sum(0)
            sums = [square(part).sum().cpu() for part in (gradient, score, averaged)]
            squares += torch.stack(sums)
        if n < 2:
            raise ValueError(f"expected samples with finite energies, got {n}; train the model")
        gradients, scores, averages = (squares / n).tolist()
        spread = (gradients - float(square(total[None] / n))) * n / (n - 1)
        if self.encoder_draws:  # the noise that the finite number of draws adds
            spread -= (scores - averages) / (self.encoder_draws - 1)
        return max(spread, 0.0)

    def rows(self, with_path: bool = False) -> Iterator[Rows]:
        """Draw the samples and give their gradients, some at a time."""
        generator = torch.Generator().manual_seed(self.seed)
        tensors = list(self.parameters.values())
        few = sum(p.numel() for p in tensors) < _FEW_WEIGHTS
        chunk = (128 if few else 16) // (4 if self.encoder_draws else 1)  # cost is its square
        for start in range(0, self.num_draws, chunk):
            seed = int(torch.randint(2**62, (), generator=generator))
            n = min(chunk, self.num_draws - start)
            with seeded(seed, tensors), at_target(self.model, training_shares):
                rows = self._rows(n, tensors, with_path)
            yield rows

    def _rows(self, n: int, tensors: list[Tensor], with_path: bool) -> Rows:
        trace = poutine.trace(self.model.guide).get_trace(n)
        drawn = drawn_values(trace)
        values = {name: value.detach() for name, value in drawn.items()}
        score = _per_sample(self._log_q(values, 1).squeeze(0), tensors)
        marginal, path = score, None
        if self.encoder_draws:
            m = self.encoder_draws
            repeated = {k: v.expand(m, *v.shape) for k, v in values.items()}
            again = repeated | _encoder_draws(self.model, repeated)
            flat = {k: v.flatten(0, 1) for k, v in again.items()}
            marginal = _per_sample(self._log_q(flat, m).mean(0), tensors)
        if with_path:
            pull = _pull(self.model, values)
            path = _per_sample((drawn["u"] * pull).sum(-1), tensors)
        return Rows(score, marginal, path)

    def _log_q(self, values: dict[str, Tensor], repeats: int) -> Tensor:
        """Log density of the decoder, shape ``(repeats, n)``."""
        n = len(values["u"])
        trace = poutine.trace(poutine.condition(self.model.guide, data=values)).get_trace(n)
        trace.compute_log_prob()
        log_prob: Any = trace.nodes["u"]["log_prob"]
        return log_prob.expand(n).unflatten(0, (repeats, -1))

    def _weighted(self, rows: Rows) -> list[tuple[float, Tensor]]:
        """The information as a weighted sum of outer products."""
        n, m = self.num_draws, self.encoder_draws
        if not m:
            return [(1.0 / n, rows.score)]
        return [(m / ((m - 1) * n), rows.marginal), (-1.0 / ((m - 1) * n), rows.score)]


def has_score(loss: ELBO | None) -> bool:
    """Whether the gradient of a loss has the score of the guide in it.

    Raises:
        TypeError: neither ``PathGradientELBO``, the default, nor ``Trace_ELBO``.
    """
    if loss is None or type(loss) is PathGradientELBO:
        return False
    if type(loss) is Trace_ELBO:
        return True
    raise TypeError(
        f"expected PathGradientELBO or Trace_ELBO, got {type(loss).__name__}, whose gradient of "
        "one sample is not known; give gibbs_scale yourself"
    )


def _per_sample(values: Tensor, tensors: list[Tensor]) -> Tensor:
    """Gradient of every value in all tensors, shape ``(n, n_weights)``."""
    n = len(values)
    if not values.requires_grad:
        raise ValueError(
            "expected a decoder whose samples are reparametrised functions of its weights, got "
            "one without gradients; give it a distribution with rsample, or give gibbs_scale"
        )
    seeds = torch.eye(n, dtype=values.dtype, device=values.device)
    parts = torch.autograd.grad(values, tensors, seeds, is_grads_batched=True, allow_unused=True)
    flat = [
        values.new_zeros(n, p.numel()) if g is None else g.reshape(n, -1)
        for g, p in zip(parts, tensors, strict=True)
    ]
    return torch.cat(flat, 1)


def _encoder_draws(model: CoarseGrainedModel, values: dict[str, Tensor]) -> dict[str, Any]:
    """Latents from the encoder, given u; the components of a mixture, which it knows, as they are.

    A program's latents are drawn together: the score is averaged over all that the encoder learned.
    """
    u = values["u"]
    fixed = {"component"} if isinstance(model.prior, StratifiedPrior) else set()

    def program() -> None:
        encoded = model.encoder(u)
        if isinstance(encoded, TorchDistributionMixin):
            pyro.sample("z", encoded)

    given = {name: values[name] for name in fixed}
    with torch.no_grad():
        trace = poutine.trace(poutine.condition(program, data=given)).get_trace()
    return drawn_values(trace)


def _pull(model: CoarseGrainedModel, values: dict[str, Tensor]) -> Tensor:
    """Derivative of log q - log π along u, at every sample."""
    u = values["u"].clone().requires_grad_()
    given = values | {"u": u}
    n = len(u)
    log_q = poutine.trace(poutine.condition(model.guide, data=given)).get_trace(n).log_prob_sum()
    log_pi = poutine.trace(poutine.condition(model.model, data=given)).get_trace(n).log_prob_sum()
    return torch.autograd.grad(log_q - log_pi, u)[0]
