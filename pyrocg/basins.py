"""Basins of a target: where its mass is in reduced coordinates, found without data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocg.basin_search import BasinSearch, Points, heaviest
from pyrocg.coordinates import Coordinates
from pyrocg.target import BoltzmannTarget

__all__ = ["Basins", "find_basins"]

_FEW_COLUMNS = 3  # so many can be filled by starts


@dataclass(frozen=True)
class Basins:
    r"""A soft partition of the target into components, with their Laplace approximations.

    Component k is the part :math:`\pi(u)\, r(k|u)` of the target, r the partition around the
    centres. With :math:`V(u) = \beta U(T(u)) - \log|\partial T/\partial u|`, its potential is
    :math:`V_k(u) = V(u) - \log r(k|u)`.

    Attributes:
        u: the minimum of each :math:`V_k`, shape ``(n_basins, n_coordinates)``.
        value: :math:`V_k` there, in nats, shape ``(n_basins,)``.
        covariance: :math:`(\nabla^2 V_k)^{-1}` there, ``(n_basins, n_coordinates, n_coordinates)``.
        columns: the coordinates that tell components apart, shape ``(n_columns,)``.
        centres: centres of the partition in these columns, shape ``(n_basins, n_columns)``.
        concentration: of the partition, shape ``(n_columns,)``.
        n_minima: the first so many centres are minima of V, the others fill the gaps.
        energy_calls: configurations whose energy was evaluated for all this.

    Example:
        >>> from pyrocg.energies.toy import Harmonic
        >>> from pyrocg.coordinates import IdentityCoordinates
        >>> basins = find_basins(
        ...     BoltzmannTarget(Harmonic(2), beta=1.0), IdentityCoordinates(2), starts=4
        ... )
        >>> round(basins.log_z.item(), 4), round(math.log(2 * math.pi), 4)
        (1.8379, 1.8379)
    """

    u: Tensor
    value: Tensor
    covariance: Tensor
    columns: Tensor
    centres: Tensor
    concentration: Tensor
    n_minima: int
    energy_calls: int

    def __len__(self) -> int:
        return len(self.u)

    @property
    def log_z(self) -> Tensor:
        r"""Laplace estimate of each component's log Z, shape ``(n_basins,)``.

        .. math:: -V_k + \tfrac12 \log\det(2\pi \Sigma_k)
        """
        n = self.u.shape[-1]
        return 0.5 * (n * math.log(2 * math.pi) + torch.logdet(self.covariance)) - self.value

    def linear_gaussian(
        self, latent_dim: int, circular: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        r"""Split each covariance into what z explains and the rest, :math:`\Sigma = W^T W + R`.

        The leading ``latent_dim`` principal axes of the covariance of :attr:`columns` get the
        fraction ``share`` of their variance from z; the other coordinates follow by regression.
        Standard deviations of circular coordinates are bounded by 2.2 rad, where a wrapped normal
        density is flat to 18 %.

        Args:
            latent_dim: dimension of z.
            circular: which coordinates are circular, shape ``(n_coordinates,)``.
            share: in (0, 1).

        Returns:
            W, shape ``(n_basins, latent_dim, n_coordinates)``, and R, shape
            ``(n_basins, n_coordinates, n_coordinates)``.

        Raises:
            ValueError: the share is not in (0, 1).
        """
        if not 0 < share < 1:
            raise ValueError(f"expected a share in (0, 1), got {share}")
        scale = self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        shrink = torch.where(circular, (2.2 / scale).clamp(max=1.0), torch.ones_like(scale))
        covariance = shrink[:, :, None] * self.covariance * shrink[:, None, :]
        rows = covariance[:, self.columns]
        values, vectors = torch.linalg.eigh(rows[:, :, self.columns])
        n = min(latent_dim, len(self.columns))
        top = (share / values[:, -n:].flip(-1)).sqrt().unsqueeze(1) * vectors[:, :, -n:].flip(-1)
        loadings = self.covariance.new_zeros(len(self), latent_dim, len(circular))
        loadings[:, :n] = top.mT @ rows
        return loadings, covariance - loadings.mT @ loadings


def find_basins(
    target: BoltzmannTarget,
    coordinates: Coordinates,
    columns: Tensor | None = None,
    *,
    starts: Tensor | int = 128,
    spread: float = 3.0,
    steps: int = 200,
    separation: float = 0.5,
    max_free_energy: float = 12.0,
    cover: float | None = 0.9,
    max_energy: float = 9.0,
    max_basins: int = 256,
    concentration: float = 12.0,
    seed: int = 0,
    progress: bool = False,
) -> Basins:
    r"""Find where the mass of a target is by minimising V from many starts. No data is needed.

    The starts fill the space of ``columns`` (a scrambled Sobol sequence: the circle where a
    column is circular, a normal distribution of standard deviation ``spread`` elsewhere), the other
    coordinates start at their reference. All are minimised together with Adam, on an energy capped
    against overlaps, merged, and polished with Newton steps: these minima are the first centres.

    With up to three columns, all circular, and ``cover``, further centres fill the gaps between
    them: the starts are minimised again with their columns held fixed, and of those within
    ``max_energy`` of the lowest minimum the farthest from all centres becomes the next centre,
    until none is farther than ``cover``. So passes and flanks have components of their own too,
    trained with the same share of the samples.

    With more columns the starts cannot fill the space. Minima are recombined in its place: each
    further start takes every column from one of two minima, which are drawn by the square roots of
    their weights. Rounds of as many starts follow each other until one raises the log Z of all
    minima, by Laplace estimate, by less than 0.001. With ``cover`` and circular columns their
    flanks become centres too: points in which one column of a minimum is turned anywhere,
    minimised with all columns held fixed. Their weight is that of the minimum times
    :math:`e^{-\Delta V}`; the heaviest first, those farther than ``cover`` from all centres are
    added. Of all centres the ``max_basins`` heaviest stay.

    Args:
        target: the density.
        coordinates: reduced coordinates of its configurations.
        columns: indices of the coordinates that tell basins apart; default
            :attr:`Coordinates.rotatable`, or every coordinate if there is none.
        starts: how many in each round, or those of the first round, shape
            ``(n_starts, n_coordinates)``.
        spread: of the starts in columns that are not circular.
        steps: Adam steps of each minimisation; each costs one energy call per start, and one
            more at the end.
        separation: minima whose columns all agree within this (rad, or units of u) are one.
        max_free_energy: minima this many nats above the best by Laplace estimate are left out.
        cover: largest distance in rad of a populated point from a centre; None for minima alone.
            Used only if the columns are all circular.
        max_energy: a point is populated if V there is at most so many nats above the lowest; a
            flank if it is at most so many nats lighter than the heaviest minimum.
        max_basins: at most so many minima, and centres in all; it warns of what that leaves out.
        concentration: of the partition in circular columns, see
            :class:`~pyrocg.encoders.BasinPartition`; in others one over the minima's mean variance.
        seed: of the starts; the global generator is left alone.
        progress: show a progress bar for each stage.

    Raises:
        ValueError: no minimum was found.

    Example:
        >>> from pyrocg.coordinates import IdentityCoordinates
        >>> from pyrocg.energies.toy import DoubleWell
        >>> target = BoltzmannTarget(DoubleWell(), beta=1.0)
        >>> basins = find_basins(target, IdentityCoordinates(2), starts=16)
        >>> basins.u[:, 0].round(decimals=3).tolist()
        [-2.529, 2.361]
    """
    calls, columns = target.energy.exact.calls, _columns(coordinates, columns)
    if isinstance(starts, int):
        starts = _starts(coordinates, columns, starts, spread, seed)
    starts = starts.double()
    search = BasinSearch(target, coordinates, columns, separation, steps, progress)
    search.from_starts(starts)
    few, all_circular = len(columns) <= _FEW_COLUMNS, bool(coordinates.circular[columns].all())
    if not few:
        search.recombine(len(starts), seed)
    minima = search.best(max_free_energy)
    flanks = Points(minima.u[:0], minima.log_z[:0])
    if not few and cover is not None and all_circular:
        flanks = search.flanks(minima, 8 * len(starts), cover, max_energy, seed)
    minima, flanks = heaviest(minima, flanks, max_basins)
    points = torch.cat([minima.u, flanks.u])
    if few and cover is not None and all_circular:
        points = search.fill(minima.u, starts, cover, max_energy, max_basins)
    partition = search.partition(points, minima.u, concentration)
    if len(flanks.u):
        points = search.settle(points, partition)
    components = search.components(points, partition)
    return Basins(
        *components,
        columns=columns,
        centres=partition.centres,
        concentration=partition.concentration,
        n_minima=len(minima.u),
        energy_calls=target.energy.exact.calls - calls,
    )


def _columns(coordinates: Coordinates, columns: Tensor | None) -> Tensor:
    columns = coordinates.rotatable if columns is None else columns
    if len(columns) == 0:
        return torch.arange(coordinates.n_coordinates, device=coordinates.circular.device)
    return columns


def _starts(coordinates: Coordinates, columns: Tensor, n: int, spread: float, seed: int) -> Tensor:
    uniform = torch.quasirandom.SobolEngine(len(columns), scramble=True, seed=seed).draw(n).double()
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    normal = spread * math.sqrt(2.0) * torch.erfinv(2 * uniform - 1)
    angle = math.pi * (2 * uniform - 1)
    starts = coordinates.origin.double().cpu().repeat(n, 1)
    columns = columns.cpu()
    starts[:, columns] = torch.where(coordinates.circular.cpu()[columns], angle, normal)
    return starts.to(coordinates.origin.device)
