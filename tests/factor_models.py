"""A factor model, u = W z + b + noise, 3 coordinates, 1 latent: everything in closed form.

Weights in the order W (3), b (3), log variances (3).
"""

import torch

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.toy import Harmonic
from pyrocg.priors import StandardNormalPrior
from pyrocg.target import BoltzmannTarget

W = torch.tensor([1.0, -0.8, 0.5], dtype=torch.float64)
NOISE = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)
TRUTH = torch.cat([W, torch.zeros(3), NOISE.log()])
PRECISION = 1.0 + float((W / NOISE) @ W)  # of z given u
ENCODER = torch.cat(
    [W / NOISE / PRECISION, torch.zeros(1), -torch.tensor([PRECISION]).double().log()]
)
COVARIANCE = torch.outer(W, W) + torch.diag(NOISE)
CORRELATED = COVARIANCE.clone()  # not one that the model can represent
CORRELATED[0, 1] = CORRELATED[1, 0] = COVARIANCE[0, 1] + 0.15


def flat(parameters):
    """No weight is more or less probable."""
    return sum(0.0 * p.sum() for p in parameters.values())


def factor_model(weights=TRUTH, encoder_weights=ENCODER, target=COVARIANCE):
    """Gaussian, exact unless told otherwise."""
    coordinates = IdentityCoordinates(3)
    decoder = GaussianDecoder(coordinates.circular, 1, (), (), variance="constant")
    encoder = GaussianEncoder(coordinates.circular, 1, (), (), variance="constant")
    w, b, log_variance = weights.split(3)
    gain, offset, encoder_log_variance = encoder_weights.split([3, 1, 1])
    with torch.no_grad():
        decoder.mean.layers[0].weight.copy_(w[:, None])
        decoder.mean.layers[0].bias.copy_(b)
        decoder.log_variance.value.copy_(log_variance + 0.5)
        encoder.mean.layers[0].weight.copy_(gain[None])
        encoder.mean.layers[0].bias.copy_(offset)
        encoder.log_variance.value.copy_(encoder_log_variance + 1.0)
    energy = BoltzmannTarget(Harmonic(3, torch.linalg.inv(target)), beta=1.0)
    cg = CoarseGrainedModel(energy, coordinates, StandardNormalPrior(1), decoder, encoder)
    return cg.double()


def marginal_kl(theta):
    """KL divergence of q(u) from the truth, but for a constant."""
    w, b, log_variance = theta.split(3)
    covariance = torch.outer(w, w) + torch.diag(log_variance.exp())
    inverse = torch.linalg.inv(COVARIANCE)
    return 0.5 * (torch.trace(inverse @ covariance) + b @ inverse @ b - torch.logdet(covariance))


def joint_kl(theta, target=COVARIANCE):
    """KL divergence of q(z, u) from π(u) r(z|u), but for a constant; of 9 weights, or of 14."""
    theta = theta if len(theta) == 14 else torch.cat([theta, ENCODER])
    w, b, log_variance, gain, offset, encoder_log_variance = theta.split([3, 3, 3, 3, 1, 1])
    covariance = torch.outer(w, w) + torch.diag(log_variance.exp())
    inverse = torch.linalg.inv(target)
    energy = 0.5 * (torch.trace(inverse @ covariance) + b @ inverse @ b)
    residual = (1 - gain @ w).square() + gain @ (log_variance.exp() * gain)
    residual = residual + (gain @ b + offset[0]).square()
    encoder = 0.5 * (encoder_log_variance + residual * (-encoder_log_variance).exp())[0]
    return energy + encoder - 0.5 * log_variance.sum()
