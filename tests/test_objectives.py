import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from toy_models import gaussian_model, solved_model

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.energies.toy import DoubleWell
from pyrocg.objectives import PathGradientELBO
from pyrocg.target import BoltzmannTarget


def gradients(cg, loss, n, seed=0):
    torch.manual_seed(seed)
    parameters = list(cg.guide.parameters()) + list(cg.model.parameters())
    value = loss(cg.model, cg.guide)(n) / n
    return value, torch.autograd.grad(value, parameters)


def test_value_is_that_of_trace_elbo():
    torch.manual_seed(0)
    cg = gaussian_model()
    path, _ = gradients(cg, PathGradientELBO(), 32)
    plain, _ = gradients(cg, Trace_ELBO(), 32)
    torch.testing.assert_close(path, plain)


def test_gradient_is_unbiased():
    torch.manual_seed(0)
    cg = gaussian_model().double()
    _, path = gradients(cg, PathGradientELBO(), 400_000)
    _, plain = gradients(cg, Trace_ELBO(), 400_000)
    path, plain = (torch.cat([g.flatten() for g in parts]) for parts in (path, plain))
    assert ((path - plain).norm() / plain.norm()).item() < 0.01


def test_gradient_is_unbiased_for_the_recommended_model():
    """A mixture latent with couplings, away from where it starts."""
    torch.manual_seed(0)
    target = BoltzmannTarget(DoubleWell(), beta=1.0)
    cg = CoarseGrainedModel.from_basins(
        target, IdentityCoordinates(2), latent_dim=1, n_couplings=2, hidden=(8,), n_modes=2
    ).double()
    with torch.no_grad():
        for parameter in cg.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    _, path = gradients(cg, PathGradientELBO(), 100_000)
    _, plain = gradients(cg, Trace_ELBO(), 100_000)
    n_guide = len(list(cg.guide.parameters()))
    torch.testing.assert_close(path[n_guide:], plain[n_guide:])  # the encoder: the same draws
    path, plain = (torch.cat([g.flatten() for g in part[:n_guide]]) for part in (path, plain))
    assert ((path - plain).norm() / plain.norm()).item() < 0.03


def test_noise_vanishes_where_the_guide_is_exact():
    cg = solved_model()
    decoder = list(cg.decoder.parameters())
    for loss, noisy in ((PathGradientELBO(), False), (Trace_ELBO(), True)):
        torch.manual_seed(0)
        parts = torch.autograd.grad(loss(cg.model, cg.guide)(16), decoder)
        assert (max(float(g.abs().max()) for g in parts) > 1e-3) == noisy


def test_svi_steps_with_path_gradients():
    torch.manual_seed(0)
    cg = gaussian_model()
    before = [p.clone() for p in cg.parameters()]
    svi = SVI(cg.model, cg.guide, pyro.optim.Adam({"lr": 1e-2}), loss=PathGradientELBO())
    for _ in range(3):  # layers behind a zero output learn from the second on
        svi.step(8)
    assert all(not torch.equal(a, b) for a, b in zip(before, cg.parameters(), strict=True))
    assert len(pyro.get_param_store()) == 0


def test_function_guides_and_score_functions_are_refused():
    cg = gaussian_model()
    with pytest.raises(TypeError, match="expected a guide that is a torch module"):
        PathGradientELBO().differentiable_loss(cg.model, lambda n: None, 4)

    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(2))

        def forward(self, n):
            with pyro.plate("samples", n):
                pyro.sample("k", dist.Categorical(logits=self.logits))

    with pytest.raises(ValueError, match="expected reparametrised samples at guide site 'k'"):
        PathGradientELBO().differentiable_loss(Learned(), Learned(), 4)
