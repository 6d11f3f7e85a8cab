r"""Priors over the decoder's weights θ, and the objective that has one.

A weight prior is a function from named parameters to a log density. The Gibbs posterior is

.. math:: p(\theta \mid N) \propto p(\theta)\, e^{-N\, KL(\theta)}

with KL in nats and N, the *Gibbs scale*, the number of observations that the divergence is worth.
Its mode minimises, per sample, :math:`-ELBO(\theta) - \tfrac1N \log p(\theta)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "ARDWeightPrior",
    "GaussianWeightPrior",
    "WeightPrior",
    "count_switched_off",
    "log_prior",
    "prior_precision",
    "select",
]

WeightPrior = Callable[[Mapping[str, Tensor]], Tensor]
"""From named parameters to the log of their density, a scalar."""


@dataclass(frozen=True)
class GaussianWeightPrior:
    r"""Independent normal weights, :math:`p(\theta) = \prod_i N(\theta_i \mid 0, \sigma^2)`.

    Args:
        scale: the standard deviation σ.
        only: patterns of the names of the parameters that have this prior, as in a shell; the
            others have a flat one.

    Raises:
        ValueError: the scale is not above 0.

    Example:
        >>> import torch
        >>> prior = GaussianWeightPrior(scale=2.0)
        >>> round(prior({"weight": torch.tensor([2.0])}).item(), 4)
        -2.1121
    """

    scale: float = 1.0
    only: str | Sequence[str] = ("*",)

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"expected a scale above 0, got {self.scale}")

    def __call__(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the log density, a scalar."""
        constant = -math.log(self.scale) - 0.5 * math.log(2 * math.pi)
        parts = select(parameters, self.only).values()
        return _sum(p.numel() * constant - 0.5 * (p / self.scale).square().sum() for p in parts)

    def precision(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Minus the second derivatives of the log density, of the shape of each parameter."""
        chosen = select(parameters, self.only)
        return {
            name: torch.full_like(p, self.scale**-2 if name in chosen else 0.0)
            for name, p in parameters.items()
        }


@dataclass(frozen=True)
class ARDWeightPrior:
    r"""Automatic relevance determination: it switches off the weights that are not needed.

    The precision τ of a group of m weights has a Gamma hyper-prior,
    :math:`\theta \mid \tau \sim N(0, \tau^{-1} I_m)`, :math:`\tau \sim Gamma(a_0, b_0)`, and is
    integrated out,

    .. math:: p(\theta) = \int N(\theta \mid 0, \tau^{-1}) Gamma(\tau \mid a_0, b_0)\, d\tau
              = \frac{\Gamma(a_0 + m/2)}{\Gamma(a_0)} \frac{b_0^{a_0}}{(2\pi)^{m/2}}
              \Big(b_0 + \tfrac12 \sum\theta^2\Big)^{-(a_0 + m/2)},

    a Student-t density. Expectation maximisation over τ, as in the paper, has the E-step

    .. math:: E[\tau] = \frac{a_0 + m/2}{b_0 + \sum\theta^2/2}

    and the M-step objective :math:`-E[\tau] \sum\theta^2 / 2`, whose gradient is that of
    :math:`\log p(\theta)` above: a gradient step on either is the same. This class uses the exact
    density, which is also the same number at every step. Source: Schöberl, Zabaras and
    Koutsourelakis (2020), arXiv:2002.10148; MacKay (1994), "Bayesian nonlinear modeling for the
    prediction competition".

    Args:
        a0: shape of the Gamma density; the paper has 1e-5.
        b0: its rate; the paper has 1e-5. Weights below :math:`\sqrt{2 b_0}` are pulled to zero
            like a ridge, larger ones by a force that falls as 1/θ.
        per: "weight", a precision for each weight, or "unit", one for all weights that leave a
            unit (a column of the weight matrix of a linear layer), which switches off whole units,
            and latent variables in the first layer. Parameters that are not matrices, such as
            biases, have one for each weight.
        only: patterns of the names of the parameters that have this prior, as in a shell; the
            others have a flat one.

    Raises:
        ValueError: a0 or b0 is not above 0, or ``per`` is another word.

    Example:
        >>> import torch
        >>> prior = ARDWeightPrior()
        >>> weights = {"weight": torch.tensor([0.0, 1.0])}
        >>> prior.precision(weights)["weight"]
        tensor([5.0001e+04, 1.0000e+00])
    """

    a0: float = 1e-5
    b0: float = 1e-5
    per: str = "weight"
    only: str | Sequence[str] = ("*",)

    def __post_init__(self) -> None:
        if not (self.a0 > 0 and self.b0 > 0):
            raise ValueError(f"expected a0 and b0 above 0, got {self.a0} and {self.b0}")
        if self.per not in ("weight", "unit"):
            raise ValueError(f'expected per "weight" or "unit", got {self.per!r}')

    def __call__(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the log density, a scalar."""
        return _sum(self._log_prob(p) for p in select(parameters, self.only).values())

    def precision(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Return :math:`E[\tau]` of each weight, of the shape of each parameter.

        This is the precision of the Gaussian that EM puts in the place of the prior. The second
        derivative of the log density itself is negative at large weights, so no precision.
        """
        chosen = select(parameters, self.only)
        return {
            name: self._expected_precision(p) if name in chosen else torch.zeros_like(p)
            for name, p in parameters.items()
        }

    def _half_squares(self, p: Tensor) -> tuple[Tensor, int]:
        """Half the sum of squares of each group, and its number of weights."""
        squares = 0.5 * p.square()
        if self.per == "unit" and p.dim() == 2:
            return squares.sum(0, keepdim=True), len(p)
        return squares, 1

    def _log_prob(self, p: Tensor) -> Tensor:
        half, m = self._half_squares(p)
        a, b = self.a0, self.b0
        constant = math.lgamma(a + m / 2) - math.lgamma(a) + a * math.log(b)
        constant -= 0.5 * m * math.log(2 * math.pi)
        return half.numel() * constant - (a + m / 2) * (b + half).log().sum()

    def _expected_precision(self, p: Tensor) -> Tensor:
        half, m = self._half_squares(p.detach())
        return ((self.a0 + m / 2) / (self.b0 + half)).expand_as(p).clone()


def select(parameters: Mapping[str, Tensor], only: str | Sequence[str]) -> dict[str, Tensor]:
    """Return the parameters whose names match the pattern, or one of several, as in a shell.

    Raises:
        ValueError: a pattern matches no name.

    Example:
        >>> import torch
        >>> list(select(dict(torch.nn.Linear(1, 1).named_parameters()), ["w*"]))
        ['weight']
    """
    patterns = (only,) if isinstance(only, str) else tuple(only)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ValueError(
                f"expected patterns that match names of parameters, got {pattern!r}, which "
                f"matches none of {', '.join(parameters) or 'no parameters'}"
            )
    return {
        name: p
        for name, p in parameters.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def count_switched_off(
    parameters: Mapping[str, Tensor] | nn.Module, threshold: float = 1e-4
) -> tuple[int, int]:
    r"""Count the weights with :math:`|\theta| < 10^{-4}`, as the paper does, and all weights.

    Args:
        parameters: by name, or a module with them.
        threshold: below it a weight is off.

    Returns:
        The number switched off, and the number of weights.

    Example:
        >>> import torch
        >>> count_switched_off({"weight": torch.tensor([0.0, 5e-5, -0.3])})
        (2, 3)
    """
    if isinstance(parameters, nn.Module):
        parameters = dict(parameters.named_parameters())
    off = sum(int((p.detach().abs() < threshold).sum()) for p in parameters.values())
    return off, sum(p.numel() for p in parameters.values())


def log_prior(weight_prior: WeightPrior, parameters: Mapping[str, Tensor]) -> Tensor:
    """Evaluate a weight prior, yours included, and check what it returns.

    Raises:
        TypeError: it returned no tensor.
        ValueError: it returned more than one number.
    """
    value = weight_prior(parameters)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"expected a weight prior that returns a tensor, got {type(value).__name__}"
        )
    if value.shape != ():
        raise ValueError(
            "expected a weight prior that returns one log density, a scalar, got shape "
            f"{tuple(value.shape)}; add up over the weights"
        )
    return value


def prior_precision(
    weight_prior: WeightPrior, parameters: Mapping[str, Tensor], probes: int = 16
) -> dict[str, Tensor]:
    r"""Return the diagonal of minus the Hessian of the log density, at least 0.

    From the prior's own method ``precision`` if it has one. Otherwise by Hutchinson's estimate
    :math:`E[v \odot Hv]` with random signs v, which is exact for independent weights with a single
    probe. Source: Bekas, Kokiopoulou and Saad (2007), "An estimator for the diagonal of a matrix".

    Args:
        weight_prior: a prior.
        parameters: where to evaluate it.
        probes: number of random sign vectors.

    Example:
        >>> import torch
        >>> prior_precision(lambda p: -2.0 * p["weight"].square().sum(), {"weight": torch.ones(2)})
        {'weight': tensor([4., 4.])}
    """
    known: Any = getattr(weight_prior, "precision", None)
    if known is not None:
        return known(parameters)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    tensors = list(leaves.values())
    value = log_prior(weight_prior, leaves)
    gradients = _gradients(value, tensors, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    total = [torch.zeros_like(p) for p in tensors]
    for _ in range(probes):
        signs = [2.0 * torch.randint(2, p.shape, generator=generator).to(p) - 1.0 for p in tensors]
        product = _sum((g * v).sum() for g, v in zip(gradients, signs, strict=True))
        curved = _gradients(product, tensors, retain_graph=True)
        total = [t - v * h / probes for t, v, h in zip(total, signs, curved, strict=True)]
    return {name: t.clamp(min=0.0) for name, t in zip(leaves, total, strict=True)}


def _gradients(value: Tensor, tensors: list[Tensor], **options: bool) -> list[Tensor]:
    if not value.requires_grad:  # a constant
        return [torch.zeros_like(p) for p in tensors]
    found = torch.autograd.grad(value, tensors, allow_unused=True, **options)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, tensors, strict=True)]


def _sum(terms: Any) -> Tensor:
    """Add up tensors; nothing is zero."""
    return sum(terms, torch.zeros(()))
