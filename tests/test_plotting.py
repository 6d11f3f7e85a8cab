import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyrocg import plotting
from pyrocg.estimates import FreeEnergySurface
from pyrocg.observables import Observable
from pyrocg.pages import prediction_pages, training_page
from pyrocg.prediction import Prediction

N = 600


def prediction(latent_dim: int = 2, mixed: bool = True, angles: bool = True) -> Prediction:
    """A made-up prediction of a peptide, or of a toy."""
    random = np.random.default_rng(0)
    values = {"radius_of_gyration": random.normal(0.29, 0.01, N)}
    observables = [Observable("radius_of_gyration", "nm", len)]
    for name in ("phi", "psi") if angles else ():
        values[name] = random.uniform(-math.pi, math.pi, N)
        observables.append(Observable(name, "rad", len, circular=True))
    log_w = torch.from_numpy(random.normal(-3.0, 0.5, N))
    latents = {"z": random.normal(size=(N, latent_dim))}
    if mixed:
        latents["component"] = random.integers(0, 3, N)
    return Prediction(
        positions=np.zeros(0),
        latents=latents,
        log_weights=log_w,
        smoothed_log_weights=log_w,
        plain_log_weights=torch.zeros(N, dtype=torch.float64),
        energies=np.zeros(N),
        weight_draw=np.zeros(N, dtype=int),
        beta=1 / 2.74,
        values=values,
        observables=tuple(observables),
        level=0.95,
        log_z=-2.9,
        log_z_interval=(-2.95, -2.85),
        elbo=-3.0,
        ess=0.8,
        pareto_k=0.3,
        energy_calls=N,
        nonfinite=0,
        seed=0,
        n_draws=50,
    )


def axes(n: int = 1) -> list:
    return list(Figure().subplots(1, n, squeeze=False).flat)


def test_ramachandran_shows_minus_kt_log_p_in_degrees() -> None:
    counts = np.zeros((4, 4))
    counts[0, 3], counts[2, 1] = 80, 20
    (ax,) = axes()
    image = plotting.ramachandran(plotting.histogram_of_counts(counts), ax, kt=2.5)
    surface = image.get_array()  # rows are psi, columns phi
    assert surface[3, 0] == 0
    assert surface[1, 2] == pytest.approx(2.5 * math.log(4))
    assert np.ma.count(surface) == 2
    assert image.get_clim() == (0, 20.0)
    assert ax.get_xlim() == (-180, 180)
    assert ax.get_xlabel() == "φ (°)"


def test_panels_share_the_zero_of_energy() -> None:
    histogram = plotting.histogram_of_counts(np.ones((2, 2)))
    (ax,) = axes()
    image = plotting.ramachandran(histogram, ax, zero=math.e * histogram.density.max())
    np.testing.assert_allclose(image.get_array(), 1.0)


def test_counts_become_a_density() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (6, 6)).astype(float)
    histogram = plotting.histogram_of_counts(counts)
    assert histogram.density.sum() * (math.pi / 3) ** 2 == pytest.approx(1)


def test_training_history_keeps_the_numbers() -> None:
    history = {"step": [1, 2, 3], "elbo": [-9.0, 1.0, 1.5], "log_z": [0.0, 2.0, 2.1]}
    history |= {"ess": [0.1, 0.5, 0.9], "t": [0.1, 1.0, 1.0]}
    drawn = axes(3)
    plotting.training_history(history, drawn)
    np.testing.assert_array_equal(drawn[0].lines[1].get_ydata(), history["elbo"])
    np.testing.assert_allclose(drawn[1].lines[0].get_ydata(), [10, 50, 90])
    assert drawn[0].get_ylim()[0] > -9


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_training_page_of_a_short_or_broken_history(value: float) -> None:
    history = {name: [value] for name in ("elbo", "log_z", "ess")} | {"step": [1.0], "t": [1.0]}
    assert len(training_page(history).axes) == 2


def test_observable_histogram_in_degrees_keeps_the_area() -> None:
    (ax,) = axes()
    made = prediction()
    plotting.observable_histogram(
        made.histogram("phi"), ax, label="φ (°)", degrees=True, reference=1.0
    )
    values, edges, _ = ax.patches[0].get_data()
    assert (values * np.diff(edges)).sum() == pytest.approx(1)
    assert ax.lines[0].get_xdata()[0] == pytest.approx(math.degrees(1))


def surface(shape: tuple[int, ...]) -> FreeEnergySurface:
    """A made-up free energy; its last bin has no samples, its first no upper end."""
    energy = np.arange(float(np.prod(shape))).reshape(shape)
    energy.flat[-1] = np.inf
    lower, upper = energy - 1.0, energy + 3.0
    lower.flat[-1] = upper.flat[-1] = np.nan
    upper.flat[0] = np.inf
    edges = tuple(np.linspace(-math.pi, math.pi, n + 1) for n in shape)
    return FreeEnergySurface(edges, energy, lower, upper, energy, energy, energy)


def test_free_energy_profile_has_a_band_and_leaves_empty_bins_out() -> None:
    (ax,) = axes()
    plotting.free_energy_profile(surface((4,)), ax, label="φ (°)", degrees=True)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [-135, -45, 45, 135])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0, 1, 2, np.nan])
    corners = ax.collections[0].get_paths()[0].vertices
    assert {(-45.0, 0.0), (-45.0, 4.0), (45.0, 1.0), (45.0, 5.0)} <= set(map(tuple, corners))
    assert ax.get_ylim()[1] == pytest.approx(1.15 * 2)
    plotting.free_energy_profile(surface((4,)), ax, label="φ (°)", highest=1.5)
    assert ax.get_ylim()[1] == pytest.approx(1.15 * 1.5)


def test_free_energy_map_of_energy_and_of_its_error() -> None:
    first, second = axes(2)
    energy = plotting.free_energy_map(surface((2, 2)), first).get_array()  # rows are psi
    np.testing.assert_array_equal(energy.filled(-1), [[0, 2], [1, -1]])
    error = plotting.free_energy_map(surface((2, 2)), second, error=True).get_array()
    np.testing.assert_array_equal(error.filled(-1), [[-1, 2], [2, -1]])


def test_weights_histogram_is_relative_to_log_z() -> None:
    (ax,) = axes()
    plotting.weights_histogram(prediction(), ax)
    assert "ESS 80.0 % of 600" in ax.get_title()
    low, high = ax.get_xlim()
    assert low < 0 < high


def test_component_populations_add_up() -> None:
    (ax,) = axes()
    plotting.component_populations(prediction(), ax)
    assert len(ax.lines) == 2
    for line in ax.lines:
        assert sum(line.get_ydata()) == pytest.approx(100)


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("angles", [True, False])
def test_pages_for_every_kind_of_prediction(latent_dim: int, mixed: bool, angles: bool) -> None:
    made = prediction(latent_dim, mixed, angles)
    counts = np.random.default_rng(0).integers(0, 9, (12, 12)).astype(float)
    pages = prediction_pages(made, kt=2.74, phi_psi=counts)
    expected = {"weights.png", "observables.png", "latent.png", "uncertainty.png"}
    expected |= {"ramachandran.png", "free_energy.png"} if angles else set()
    expected |= {"components.png"} if mixed else set()
    assert set(pages) == expected
    for figure in pages.values():
        figure.draw_without_rendering()
        labels = [label for ax in figure.axes for label in (ax.get_xlabel(), ax.get_ylabel())]
        assert any(labels)


def test_the_parts_of_the_variance_add_up_to_all_of_it() -> None:
    made = prediction(1, mixed=False, angles=True)
    figure = prediction_pages(made)["uncertainty.png"]
    names = [o.name for o in made.observables]
    for ax, corrected in zip(figure.axes, (False, True), strict=True):
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
        assert len(ax.patches) == 3 * len(names)
        for i, name in enumerate(names):
            found = made.estimate(name, corrected)
            shares = [bar.get_width() for bar in ax.patches[i :: len(names)]]
            parts = [found.posterior, found.monte_carlo, found.weights]
            expected = [100 * (part / found.standard_deviation) ** 2 for part in parts]
            assert shares == pytest.approx(expected)
            assert sum(shares) == pytest.approx(100)


def test_importing_the_package_loads_no_matplotlib() -> None:
    code = "import sys, pyrocg, pyrocg.plotting; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
