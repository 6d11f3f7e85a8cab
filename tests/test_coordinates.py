import math

import mdtraj
import numpy as np
import pytest
import torch
from small_molecules import (
    MOLECULES,
    TETRAHEDRON,
    alanine_dipeptide,
    ammonia,
    drawn,
    ethane,
    halomethane,
    methanol,
    peroxide,
)

from pyrocg.coordinates import CartesianCoordinates, IdentityCoordinates, InternalCoordinates


def unfolded(molecule):
    return InternalCoordinates(molecule, fold_rotors=False)


KINDS = {"internal": InternalCoordinates, "unfolded": unfolded, "cartesian": CartesianCoordinates}
CASES = [(kind, name) for kind in KINDS for name in MOLECULES]


@pytest.fixture(params=CASES, ids="-".join)
def coordinates(request):
    kind, name = request.param
    torch.manual_seed(0)
    return KINDS[kind](MOLECULES[name]())


def reduced(coordinates, *batch):
    """Random u: everything that is real moves a few units, torsions all the way round."""
    u = 1.5 * torch.randn(*batch, coordinates.n_coordinates, dtype=torch.float64)
    angle = math.pi * (2 * torch.rand_like(u) - 1)
    return torch.where(coordinates.circular, angle, u)


def rotation(vector):
    x, y, z = vector
    zero = torch.zeros_like(x)
    return torch.matrix_exp(torch.stack((zero, -z, y, z, zero, -x, -y, x, zero)).view(3, 3))


def test_log_abs_det_is_that_of_all_positions_over_rigid_motion(coordinates):
    u = reduced(coordinates, 1)[0]

    def positions(rigid_and_u):
        x, _ = coordinates(rigid_and_u[6:])
        return (x @ rotation(rigid_and_u[3:6]).T + rigid_and_u[:3]).flatten()

    at = torch.cat((torch.zeros(6, dtype=u.dtype), u))
    jacobian = torch.autograd.functional.jacobian(positions, at)
    # the map reaches one of three equal images of every rotor, the volume counts all
    images = getattr(coordinates, "n_rotors", 0) * math.log(3)
    expected = torch.linalg.slogdet(jacobian).logabsdet + images
    assert coordinates(u)[1].item() == pytest.approx(expected.item(), abs=1e-8)


def test_round_trip(coordinates):
    u = reduced(coordinates, 4, 3)
    x, log_abs_det = coordinates(u)
    back, log_abs_det_back = coordinates.inverse(x)
    assert x.shape == (4, 3, *coordinates.event_shape)
    assert log_abs_det.shape == (4, 3)
    torch.testing.assert_close(back, u, atol=1e-9, rtol=0)
    torch.testing.assert_close(log_abs_det_back, log_abs_det, atol=1e-9, rtol=0)


def test_inverse_does_not_see_rigid_motion(coordinates):
    u = reduced(coordinates, 5)
    x, _ = coordinates(u)
    turn = rotation(torch.randn(3, dtype=u.dtype))
    moved = x @ turn.T + torch.randn(3, dtype=u.dtype)
    torch.testing.assert_close(coordinates.inverse(moved)[0], u, atol=1e-9, rtol=0)


def test_gradients(coordinates):
    u = reduced(coordinates, 2).requires_grad_()
    assert torch.autograd.gradcheck(coordinates, (u,))


def test_single_precision_follows_double(coordinates):
    u = reduced(coordinates, 20)
    x, log_abs_det = coordinates(u)
    x_single, log_abs_det_single = coordinates(u.float())
    assert x_single.dtype == log_abs_det_single.dtype == torch.float32
    assert (x - x_single).abs().max() < 2e-6
    assert (log_abs_det - log_abs_det_single).abs().max() < 3e-4


def test_a_single_configuration_and_an_empty_batch(coordinates):
    x, log_abs_det = coordinates(reduced(coordinates, 1)[0])
    assert (x.shape, log_abs_det.shape) == (coordinates.event_shape, ())
    assert coordinates.inverse(x)[0].shape == (coordinates.n_coordinates,)
    assert coordinates(reduced(coordinates, 0))[0].shape == (0, *coordinates.event_shape)


def test_u_zero_is_the_reference(coordinates):
    circular, zero = coordinates.circular, torch.zeros(coordinates.n_coordinates)
    u, _ = coordinates.inverse(coordinates(zero.double())[0])
    torch.testing.assert_close(u[~circular], zero[~circular].double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", MOLECULES)
def test_the_reference_structure_has_u_zero_except_for_torsions(name):
    molecule = MOLECULES[name]()
    coordinates = InternalCoordinates(molecule)
    u, _ = coordinates.inverse(torch.tensor(molecule.positions))
    modes = ("torsion", "bond_cos", "bond_sin", "angle_cos", "angle_sin", "phase_cos", "phase_sin")
    rest = [i for i, n in enumerate(coordinates.names) if not n.startswith(modes)]
    assert u[rest].abs().max() < 0.01
    assert u[~coordinates.circular].abs().max() < 1


def test_placement_is_that_of_the_frame(coordinates):
    frame = getattr(coordinates, "frame", None)
    if frame is None:
        one, zero = map(int, coordinates.names[0].split("_")[1:])
        two = int(coordinates.names[1].split("_")[1])
        frame = (zero, one, two)
    x, _ = coordinates(reduced(coordinates, 7))
    assert (x[:, frame[0]] == 0).all()
    assert (x[:, frame[1], :2] == 0).all()
    assert (x[:, frame[1], 2] > 0).all()
    assert (x[:, frame[2], 1].abs() < 1e-15).all()
    assert (x[:, frame[2], 0] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounded_coordinates_stay_bounded_and_finite_far_out(dtype):
    molecule = alanine_dipeptide()
    coordinates = InternalCoordinates(molecule)
    u = 60.0 * torch.randn(500, 60, dtype=dtype).requires_grad_()
    x, log_abs_det = coordinates(u)
    assert x.isfinite().all()
    assert log_abs_det.isfinite().all()
    (gradient,) = torch.autograd.grad(log_abs_det.sum() + x.square().sum(), u)
    assert gradient.isfinite().all()
    for i, j in ((0, 1), (6, 8)):
        lengths = (x[:, i] - x[:, j]).norm(dim=-1)
        reference = np.linalg.norm(molecule.positions[i] - molecule.positions[j])
        assert (lengths > 0.499 * reference).all()
        assert (lengths < 1.501 * reference).all()


def test_alanine_dipeptide_has_seven_circles():
    coordinates = InternalCoordinates(alanine_dipeptide())
    phases = [name for name in coordinates.names if name.startswith("phase")]
    assert coordinates.n_coordinates == 60
    assert int(coordinates.circular.sum()) == 7
    assert len(phases) == 12
    assert all(coordinates.circular[coordinates.index(k)] for k in ("phi", "psi", "omega_2"))
    with pytest.raises(KeyError, match="such as phi_1"):
        coordinates.index("chi")


def test_phi_psi_omega_are_those_of_mdtraj():
    molecule = alanine_dipeptide()
    coordinates = InternalCoordinates(molecule)
    u = reduced(coordinates, 200)
    u = torch.where(coordinates.circular, u, 2 * u)
    x, _ = coordinates(u)
    trajectory = mdtraj.Trajectory(x.numpy(), molecule.mdtraj_topology)
    omega_1 = mdtraj.compute_dihedrals(trajectory, [[1, 4, 6, 8]])
    for name, angle in (
        ("phi", mdtraj.compute_phi(trajectory)[1]),
        ("psi", mdtraj.compute_psi(trajectory)[1]),
        ("omega_1", omega_1),
    ):
        difference = u[:, coordinates.index(name)].numpy() - angle[:, 0]
        assert np.abs(np.angle(np.exp(1j * difference))).max() < 1e-4


def test_torsions_are_circles(coordinates):
    circular = coordinates.circular
    u = reduced(coordinates, 3)
    x, log_abs_det = coordinates(u)
    once_more = torch.where(circular, u + 2 * math.pi, u)
    around, log_abs_det_around = coordinates(once_more)
    torch.testing.assert_close(log_abs_det_around, log_abs_det)
    torch.testing.assert_close(coordinates.inverse(around)[0], u, atol=1e-9, rtol=0)
    if getattr(coordinates, "n_rotors", 0):
        around = coordinates.relabel(around)
    torch.testing.assert_close(around, x)


def cycle(x, hydrogens):
    """Relabel three atoms in a circle."""
    x = x.clone()
    x[..., hydrogens, :] = x[..., np.roll(hydrogens, 1), :]
    return x


@pytest.mark.parametrize(
    ("make", "hydrogens"),
    [(ethane, [5, 6, 7]), (methanol, [1, 2, 3]), (alanine_dipeptide, [0, 2, 3])],
)
def test_relabelled_hydrogens_of_a_rotor_are_the_same_point(make, hydrogens):
    coordinates = InternalCoordinates(make())
    hydrogens = next(g for g in coordinates.rotors.T.tolist() if set(g) == set(hydrogens))
    u = reduced(coordinates, 50)
    x, log_abs_det = coordinates(u)
    for relabelled in (cycle(x, hydrogens), cycle(cycle(x, hydrogens), hydrogens)):
        assert (relabelled - x).abs().max() > 0.05
        back, log_abs_det_back = coordinates.inverse(relabelled)
        torch.testing.assert_close(back, u, atol=1e-8, rtol=0)
        torch.testing.assert_close(log_abs_det_back, log_abs_det)
        torch.testing.assert_close(coordinates.relabel(relabelled), x)


def test_inverse_is_exact_for_the_relabelled_configuration():
    molecule = alanine_dipeptide()
    plain, folded = InternalCoordinates(molecule, fold_rotors=False), InternalCoordinates(molecule)
    x, _ = plain(reduced(plain, 100))
    image, _ = folded(folded.inverse(x)[0])
    relabelled = folded.relabel(x)
    torch.testing.assert_close(torch.cdist(image, image), torch.cdist(relabelled, relabelled))
    moved = (relabelled != x).any(-1).any(0).nonzero().flatten().tolist()
    assert sorted(moved) == sorted(folded.rotors.flatten().tolist())


@pytest.mark.parametrize("kind", [InternalCoordinates, CartesianCoordinates])
@pytest.mark.parametrize("make", [halomethane, alanine_dipeptide])
def test_the_mirror_image_is_refused(kind, make):
    coordinates = kind(make())
    x, _ = coordinates(reduced(coordinates, 10))
    with pytest.raises(ValueError, match="mirror image"):
        coordinates.inverse(-x)


@pytest.mark.parametrize("kind", [InternalCoordinates, CartesianCoordinates])
def test_chirality_is_kept_for_every_u(kind):
    molecule = alanine_dipeptide()
    coordinates = kind(molecule)
    x, _ = coordinates(5.0 * torch.randn(2000, 60, dtype=torch.float64))
    a, b, c = (x[:, i] - x[:, 8] for i in (6, 14, 10))  # N, C and CB as seen from CA
    handedness = torch.linalg.det(torch.stack((a, b, c), 1)).sign()
    n, carbonyl, beta = (molecule.positions[i] - molecule.positions[8] for i in (6, 14, 10))
    assert (handedness == np.sign(np.linalg.det([n, carbonyl, beta]))).all()


def test_amine_nitrogen_may_invert():
    molecule = ammonia()
    inverted = torch.tensor(molecule.positions * [1, 1, -1])
    for coordinates in (InternalCoordinates(molecule), CartesianCoordinates(molecule)):
        x, _ = coordinates(coordinates.inverse(inverted)[0])
        torch.testing.assert_close(torch.cdist(x, x), torch.cdist(inverted, inverted))


def log_partition_function(coordinates, energy, mean, factor, n=200_000):
    """Importance sampling of the volume with a Gaussian over u: estimate and its error."""
    normal = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
    u = normal.sample((n,))
    x, log_abs_det = coordinates(u)
    weight = log_abs_det - energy(x) - normal.log_prob(u)
    top = weight.max()
    relative = (weight - top).exp()
    return top + relative.mean().log(), relative.std() / relative.mean() / math.sqrt(n)


def chain_energy(x):
    """A chain of four atoms with separable bonds, angles and torsion, in kT."""
    b1, b2, b3 = (x[:, i + 1] - x[:, i] for i in range(3))
    bonds = sum((b.norm(dim=-1) - 0.12).square() / (2 * 0.01**2) for b in (b1, b2, b3))
    n1, n2 = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
    angles = sum(
        (torch.atan2(n.norm(dim=-1), -(a * b).sum(-1)) - 1.8).square() / (2 * 0.1**2)
        for n, a, b in ((n1, b1, b2), (n2, b2, b3))
    )
    torsion = (n1 * n2).sum(-1) / (n1.norm(dim=-1) * n2.norm(dim=-1))
    return bonds + angles + 40 * (1 - torsion)


def exact_log_partition_function():
    """The same by quadrature of every coordinate on its own."""

    def integral(a, b, f):
        v = torch.linspace(a, b, 20_001, dtype=torch.float64)
        return torch.trapezoid(f(v), v).log().item()

    bond = integral(0.06, 0.18, lambda r: r**2 * (-((r - 0.12) ** 2) / (2 * 0.01**2)).exp())
    angle = integral(0.0, math.pi, lambda a: a.sin() * (-((a - 1.8) ** 2) / (2 * 0.1**2)).exp())
    torsion = integral(-math.pi, math.pi, lambda t: (-40 * (1 - t.cos())).exp())
    return 3 * bond + 2 * angle + torsion


@pytest.mark.parametrize("kind", [InternalCoordinates, CartesianCoordinates])
def test_all_coordinates_have_the_same_volume(kind):
    torch.manual_seed(1)
    angle, r = 1.8, 0.12
    positions = np.array(
        [
            [r * np.cos(angle), r * np.sin(angle), 0.0],
            [0.0, 0.0, 0.0],
            [r, 0.0, 0.0],
            [r - r * np.cos(angle), r * np.sin(angle), 0.0],
        ]
    )
    molecule = drawn("chain", "HOOH", [(0, 1), (1, 2), (2, 3)], positions)
    coordinates, internal = kind(molecule), InternalCoordinates(molecule)
    scale = torch.tensor([0.01 / 0.003] * 3 + [0.1 / 0.06] * 2 + [1 / math.sqrt(40)])
    typical = scale * torch.randn(20_000, 6, dtype=torch.float64)
    u, _ = coordinates.inverse(internal(typical)[0])
    factor = torch.linalg.cholesky(1.5 * torch.cov(u.T))
    estimate, error = log_partition_function(coordinates, chain_energy, u.mean(0), factor)
    assert error < 0.01
    assert abs(estimate - exact_log_partition_function()) < 5 * error


def test_a_folded_rotor_has_the_volume_of_the_full_circle():
    torch.manual_seed(0)
    molecule = ethane()
    reference = torch.tensor(molecule.positions)
    i, j = torch.triu_indices(8, 8, 1)
    distance = (reference[i] - reference[j]).norm(dim=-1)
    near = distance < 0.222  # 1-2 and 1-3, the rest turns
    i, j, distance = i[near], j[near], distance[near]

    def strain(x):
        return ((x[..., i, :] - x[..., j, :]).norm(dim=-1) - distance) / 0.003

    def log_z(coordinates, n=100_000):
        zero = torch.zeros(coordinates.n_coordinates, dtype=torch.float64)
        slopes = torch.autograd.functional.jacobian(lambda u: strain(coordinates(u)[0]), zero)
        slopes = slopes[:, ~coordinates.circular]
        precision = slopes.T @ slopes / 1.2
        mean = torch.zeros(len(precision), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
        real = normal.sample((n,))
        turn = math.pi * (2 * torch.rand(n, 1, dtype=torch.float64) - 1)
        x, log_abs_det = coordinates(torch.cat((real, turn), 1))
        barrier = torch.cdist(x[:, 2:5], x[:, 5:8]).sub(0.2).square().sum((1, 2)) / 0.1**2
        weight = log_abs_det - strain(x).square().sum(-1) / 2 - barrier - normal.log_prob(real)
        relative = (weight - weight.max()).exp()
        error = relative.std() / relative.mean() / math.sqrt(n)
        return weight.max() + relative.mean().log(), error

    assert InternalCoordinates(molecule).n_rotors == 1
    (plain, error), (folded, other) = (
        log_z(unfolded(molecule)),
        log_z(InternalCoordinates(molecule)),
    )
    assert max(error, other) < 0.01
    assert abs(plain - folded) < 4 * math.hypot(error, other)


def test_a_linear_group_is_refused():
    positions = [[-0.05, 0.1, 0], [0, 0, 0], [0.14, 0, 0], [0.26, 0, 0]]
    molecule = drawn("nitrile", "HNCN", [(0, 1), (1, 2), (2, 3)], positions)
    with pytest.raises(ValueError, match=r"bent angles, got N3-C2-N1 \(angle_3_2_1\) = 180\.0"):
        InternalCoordinates(molecule)
    coordinates = CartesianCoordinates(molecule)
    x, _ = coordinates(reduced(coordinates, 3))
    assert x.isfinite().all()


def test_coincident_atoms_are_refused():
    positions = [[0.09, 0, 0], [0, 0, 0], [0, 0.1, 0], [0, 0.1, 0]]
    with pytest.raises(ValueError, match="bonds longer than"):
        InternalCoordinates(drawn("twice", "HOOH", [(0, 1), (1, 2), (2, 3)], positions))


def test_fragments_are_refused():
    with pytest.raises(ValueError, match="connected"):
        InternalCoordinates(drawn("two", "HHOO", [(0, 1), (2, 3)], TETRAHEDRON))


def test_broken_bonds_and_nan_are_refused():
    molecule = alanine_dipeptide()
    internal, cartesian = InternalCoordinates(molecule), CartesianCoordinates(molecule)
    x = torch.tensor(molecule.positions)
    with pytest.raises(ValueError, match="of the reference, got 1 of 1 configurations"):
        internal.inverse(2.0 * x)
    for coordinates in (internal, cartesian):
        with pytest.raises(ValueError, match="finite positions"):
            coordinates.inverse(x * float("nan"))


@pytest.mark.parametrize(
    ("frame", "message"),
    [((0, 1, 1), "three different atoms"), ((0, 1, 9), "from 0 to 3"), ((0, 1), "three different")],
)
def test_a_wrong_frame_is_refused(frame, message):
    with pytest.raises(ValueError, match=message):
        CartesianCoordinates(peroxide(), frame=frame)


def test_a_frame_in_line_and_a_scale_of_zero_are_refused():
    positions = [[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.2, 0.1, 0]]
    straight = drawn("straight", "HOOH", [(0, 1), (1, 2), (2, 3)], positions)
    with pytest.raises(ValueError, match="in line"):
        CartesianCoordinates(straight, frame=(0, 1, 2))
    with pytest.raises(ValueError, match="scale > 0 nm"):
        CartesianCoordinates(straight, scale=0.0)


@pytest.mark.parametrize("frame", [(1, 14, 20), (14, 8, 6), (4, 6, 8)])
def test_any_frame_gives_the_same_volume(frame):
    """log|det dx/du'| - log|det dx/du| = log|det du/du'|, at a distorted structure."""
    torch.manual_seed(0)
    molecule = alanine_dipeptide()
    x = torch.tensor(molecule.positions)
    x = x + 0.005 * torch.randn_like(x)
    default, other = CartesianCoordinates(molecule), CartesianCoordinates(molecule, frame)
    assert default.frame == (6, 8, 14)
    u, log_abs_det = other.inverse(x)
    torch.testing.assert_close(torch.cdist(other(u)[0], other(u)[0]), torch.cdist(x, x))
    jacobian = torch.autograd.functional.jacobian(lambda v: default.inverse(other(v)[0])[0], u)
    found = log_abs_det - default.inverse(x)[1]
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert abs(expected) > 0.01
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_wrong_shapes_are_refused(coordinates):
    with pytest.raises(ValueError, match="expected reduced coordinates of shape"):
        coordinates(torch.zeros(2, coordinates.n_coordinates + 1))
    with pytest.raises(ValueError, match="expected positions of shape"):
        coordinates.inverse(torch.zeros(2, coordinates.event_shape[0], 2))


def test_identity():
    coordinates = IdentityCoordinates(3)
    u = torch.randn(4, 3)
    assert coordinates(u)[0] is u
    assert coordinates.inverse(u)[1].tolist() == [0.0] * 4


def test_a_state_dict_carries_the_reference():
    molecule = alanine_dipeptide()
    twisted = InternalCoordinates(molecule)(torch.randn(60, dtype=torch.float64))[0]
    other = InternalCoordinates(
        type(molecule)("other", molecule.topology, molecule.system, twisted.numpy())
    )
    coordinates = InternalCoordinates(molecule)
    u = reduced(coordinates, 2)
    other.load_state_dict(coordinates.state_dict())
    torch.testing.assert_close(other(u), coordinates(u))
