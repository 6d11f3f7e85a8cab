"""Models of toy potentials, for the tests of everything that takes a model."""

from __future__ import annotations

import torch
from torch import nn

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.toy import DoubleWell, GaussianMixture, Harmonic, ManyWell, MuellerBrown
from pyrocg.priors import StandardNormalPrior
from pyrocg.target import BoltzmannTarget

TOYS = {
    "harmonic": lambda: Harmonic(2, [1.0, 4.0], 0.5),
    "mixture": lambda: GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], [0.5, 1.0]),
    "double well": DoubleWell,
    "many well": lambda: ManyWell(4),
    "mueller-brown": MuellerBrown,
}

LOADINGS = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)  # u = LOADINGS z + noise
NOISE = torch.tensor([0.5, 0.5], dtype=torch.float64)  # variance of the noise
POSTERIOR_VARIANCE = 0.5  # 1 / (1 + LOADINGS^T NOISE^-1 LOADINGS)


def gaussian_model(
    prior=None, latent_dim=1, energy=None, encoder=None, hidden=(8,), circular_latent=False
):
    """A small model with Gaussian decoder and encoder; the double well unless told otherwise."""
    target = BoltzmannTarget(energy or DoubleWell(), beta=1.0)
    coordinates = IdentityCoordinates(target.event_shape[0])
    circular = coordinates.circular
    tanh, torus = [nn.Tanh] * len(hidden), {"circular_latent": circular_latent}
    return CoarseGrainedModel(
        target,
        coordinates,
        prior or StandardNormalPrior(latent_dim),
        GaussianDecoder(circular, latent_dim, hidden, **torus),
        encoder or GaussianEncoder(circular, latent_dim, hidden, tanh, **torus),
    )


def solved_model():
    """A harmonic target whose Gaussian model is exact: every log weight is log Z."""
    covariance = LOADINGS @ LOADINGS.T + torch.diag(NOISE)
    energy = Harmonic(dim=2, stiffness=torch.linalg.inv(covariance))
    coordinates = IdentityCoordinates(2)
    decoder = GaussianDecoder(coordinates.circular, 1, (), (), variance="constant")
    encoder = GaussianEncoder(coordinates.circular, 1, (), (), variance="constant")
    gain = POSTERIOR_VARIANCE * LOADINGS.T / NOISE
    with torch.no_grad():
        decoder.mean.layers[0].weight.copy_(LOADINGS)
        decoder.mean.layers[0].bias.zero_()
        decoder.log_variance.value.copy_(NOISE.log() + 0.5)
        encoder.mean.layers[0].weight.copy_(gain)
        encoder.mean.layers[0].bias.zero_()
        encoder.log_variance.value.fill_(1.0).add_(torch.tensor(POSTERIOR_VARIANCE).log())
    target = BoltzmannTarget(energy, beta=1.0)
    prior = StandardNormalPrior(1)
    return CoarseGrainedModel(target, coordinates, prior, decoder, encoder).double()


def shifted_model():
    """The generator of the solved model for a target with another mean and narrower density."""
    cg = solved_model()
    target = BoltzmannTarget(Harmonic(2, 2.0, [0.3, 0.0]), beta=1.0)
    return CoarseGrainedModel(target, cg.coordinates, cg.prior, cg.decoder, cg.encoder).double()


def roughened(module, size=0.3):
    """Give every parameter noise, so that nothing is at its special starting value."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module.double()
