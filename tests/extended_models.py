"""Models whose extended space is known, for the tests of moves in it."""

import math

import pyro.distributions as dist
import torch
from torch import nn
from toy_models import solved_model

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import Coordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.toy import ToyEnergy
from pyrocg.frames import Scales
from pyrocg.priors import StandardNormalPrior
from pyrocg.target import BoltzmannTarget
from pyrocg.transitions import ExtendedSpace


def space_of(model, seed=0):
    torch.manual_seed(seed)
    return ExtendedSpace(model, Scales.of_generator(model))


def poor_model():
    """Linear and Gaussian like the exact one, with another generator and another encoder."""
    cg = solved_model()
    with torch.no_grad():
        cg.decoder.mean.layers[0].bias.copy_(torch.tensor([0.6, -0.3]))
        cg.decoder.mean.layers[0].weight.mul_(1.3)
        cg.decoder.log_variance.value.add_(torch.tensor([0.5, -0.4]))
        cg.encoder.mean.layers[0].weight.mul_(0.7)
        cg.encoder.log_variance.value.add_(0.5)
    return cg


def density(space, s):
    """The normal density on the path at s, over (z, u), by derivatives of its logarithm."""

    def log_density(y):
        z, u = y[:, :1], y[:, 1:]
        log_q = dist.Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
        log_q = log_q + space.model.decoder(z).log_prob(u)
        log_pi = space.target.log_prob(u) + space.model.encoder(u).log_prob(z)
        return ((1 - s) * log_q + s * log_pi).sum()

    origin = torch.zeros(1, 3, dtype=torch.float64)
    precision = -torch.autograd.functional.hessian(log_density, origin).reshape(3, 3)
    slope = torch.autograd.functional.jacobian(log_density, origin)[0]
    covariance = torch.linalg.inv(precision)
    return covariance @ slope, covariance


class Rotor(ToyEnergy):
    """U = -k cos(x1) + (x2 - sin(x1))² / 2, x1 an angle."""

    def __init__(self, k):
        super().__init__(2)
        self.k = k

    def _energy(self, x):
        return -self.k * x[:, 0].cos() + 0.5 * (x[:, 1] - x[:, 0].sin()).square()

    def log_z(self, beta=1.0, temper=1.0):
        return math.log(2 * math.pi * torch.special.i0(torch.tensor(self.k).double()))


class AngleAndNumber(Coordinates):
    def __init__(self):
        super().__init__((2,), ["angle", "number"], torch.tensor([True, False]))

    def _forward(self, u):
        return u, u.new_zeros(u.shape[:-1])

    def _inverse(self, x):
        return x, x.new_zeros(x.shape[:-1])


def rotor_model(k):
    torch.manual_seed(0)
    coordinates = AngleAndNumber()
    circular = coordinates.circular
    return CoarseGrainedModel(
        BoltzmannTarget(Rotor(k), beta=1.0),
        coordinates,
        StandardNormalPrior(1),
        GaussianDecoder(circular, 1, (4,), (nn.Tanh,), "constant", 1.0),
        GaussianEncoder(circular, 1, (4,), (nn.Tanh,)),
    )
