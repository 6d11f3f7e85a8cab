"""SWAG, whose width for a factor model at a constant rate is known in closed form."""

import pytest
import torch
from factor_models import ENCODER, TRUTH, factor_model, flat, joint_kl
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.autograd.functional import hessian
from toy_models import gaussian_model

from pyrocg.swag import SWAGPosterior
from pyrocg.weight_priors import GaussianWeightPrior

SWAG = {"steps": 40, "num_samples": 16, "collect_every": 2, "rank": 5}


def test_swag_moments_and_draws():
    torch.manual_seed(0)
    cg, seen = gaussian_model(), []

    class Watched(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            weights = [p.detach().double().flatten() for p in cg.decoder.parameters()]
            seen.append(torch.cat(weights))

    posterior = SWAGPosterior.fit(cg, **SWAG, optimizer=lambda p: Watched(p, lr=1e-2))
    collected = torch.stack(seen[1::2])
    torch.testing.assert_close(posterior.mean, collected.mean(0))
    torch.testing.assert_close(posterior.variance, collected.var(0, correction=0))
    deviations = (collected - collected.mean(0))[-5:]
    torch.testing.assert_close(posterior.deviations, deviations.T)
    draws = posterior.draw(4000, seed=0)
    vectors = torch.stack([torch.cat([d[n].flatten() for n in posterior.names]) for d in draws])
    expected = 0.5 * posterior.variance + deviations.square().sum(0) / 8
    ratio = vectors.double().var(0) / expected
    assert (ratio - 1).abs().max() < 0.15


def test_swag_leaves_gradients_as_they_were():
    cg = gaussian_model()
    first, *others = cg.parameters()
    first.grad = torch.ones_like(first)
    SWAGPosterior.fit(cg, **SWAG)
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 1}, "expected a rank of at least 2"),
        ({"steps": 5}, "expected a rank of at least 2 and steps"),
        ({"gibbs_scale": 3.0}, "expected weight_prior and gibbs_scale together"),
        ({"weight_prior": flat}, "expected weight_prior and gibbs_scale together"),
    ],
)
def test_arguments_of_swag_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SWAGPosterior.fit(gaussian_model(), **(SWAG | options))


def test_swag_refuses_the_losses_that_training_refuses():
    with pytest.raises(ValueError, match="got TraceMeanField_ELBO, which is wrong for this pair"):
        SWAGPosterior.fit(gaussian_model(), **SWAG, loss=TraceMeanField_ELBO())


def test_swag_takes_the_weight_prior():
    cg = gaussian_model()
    prior = {"weight_prior": GaussianWeightPrior(1e-2), "gibbs_scale": 1.0}
    plain, shrunk = SWAGPosterior.fit(cg, **SWAG), SWAGPosterior.fit(cg, **SWAG, **prior)
    assert shrunk.mean.norm() < plain.mean.norm()


def test_swag_is_as_wide_as_the_stationary_state_of_sgd():
    """At a perfect fit the noise of a sample's gradient has the curvature H as its covariance.

    So theta <- theta - eta g of batches of B is stationary at (eta / B) (2 - eta H)^-1.
    """
    eta, batch = 0.1, 4096  # a bias, of third derivatives, is small beside the width
    best = torch.cat([TRUTH, ENCODER])
    curvature = hessian(joint_kl, best)
    exact = eta / batch * torch.linalg.inv(2 * torch.eye(14).double() - eta * curvature)
    torch.manual_seed(0)
    start = best + torch.linalg.cholesky(exact) @ torch.randn(14).double()
    posterior = SWAGPosterior.fit(
        factor_model(start[:9], start[9:]),
        1000,
        batch,
        optimizer=lambda p: torch.optim.SGD(p, lr=eta),
        loss=Trace_ELBO(),
        collect_every=5,
        rank=150,
        clip_norm=1e9,
    )
    spread = exact.diagonal()[:6]  # the log variances forget too slowly for so few steps
    assert float((posterior.variance[:6] / spread).mean()) == pytest.approx(1.0, abs=0.2)
    draws = posterior.draw(1000, seed=0)
    vectors = torch.stack([torch.cat([d[n].flatten() for n in posterior.names]) for d in draws])
    ratio = vectors.var(0)[:6] / spread
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.2)
    assert 0.6 < ratio.min() < ratio.max() < 1.5
