"""Batched minimisers and roots against SciPy and against their optimality conditions."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize

from simbandit.solvers import (
    Local,
    Proposal,
    ball_minimiser,
    box_correction,
    box_minimiser,
    corrected,
    increasing_root,
    minimise,
    minimise_lbfgs,
    newton_local,
    project_ball,
)

R, N, D = 7, 24, 4


def tensor(array):
    return torch.as_tensor(np.asarray(array, dtype=float))


def quadratics(rng, singular=False):
    """R problems 1/2 x'Hx - b'x whose conditioning differs by orders of magnitude."""
    factor = rng.normal(size=(R, D, D)) * 10 ** rng.uniform(-1.5, 1.5, size=(R, 1, D))
    if singular:
        factor[:, :, 0] = factor[:, :, 1]
    return tensor(factor.transpose(0, 2, 1) @ factor), tensor(rng.normal(size=(R, D)) * 5)


def logistic(rng):
    z, y = rng.normal(size=(R, N, D)) * rng.uniform(0.3, 4, size=(R, 1, 1)), rng.random((R, N))
    return tensor(z), tensor(y)


def quadratic_local(H, b, ball):
    def local(x):
        gradient = (H @ x[..., None]).squeeze(-1) - b
        value = (x * (gradient - b)).sum(-1) / 2
        return newton_local(value, gradient, lambda: H, x, ball)

    return local


def logistic_local(z, y, ball=None, ridge=0.1):
    def local(x):
        value, gradient = logistic_value(z, y, ridge)(x)
        p = torch.sigmoid((z @ x[..., None]).squeeze(-1))
        eye = ridge * torch.eye(D, dtype=torch.float64)
        return newton_local(value, gradient, lambda: (z.mT * (p * (1 - p))[:, None]) @ z + eye, x, ball)

    return local


def logistic_value(z, y, ridge=0.1):
    def value_and_gradient(x):
        m = (z @ x[..., None]).squeeze(-1)
        value = (torch.nn.functional.softplus(m) - y * m).sum(-1) + ridge / 2 * (x * x).sum(-1)
        return value, (z.mT @ (torch.sigmoid(m) - y)[..., None]).squeeze(-1) + ridge * x

    return value_and_gradient


def scipy_logistic(z, y, ball=None, ridge=0.1):
    def value(x):
        m = z @ x
        return (np.logaddexp(0, m) - y * m).sum() + ridge / 2 * x @ x

    constraints = [] if ball is None else [{"type": "ineq", "fun": lambda x: ball**2 - x @ x}]
    return optimize.minimize(value, np.zeros(D), method="SLSQP", constraints=constraints, options={"ftol": 1e-15}).x


@pytest.mark.parametrize("singular", [False, True])
def test_a_quadratic_is_minimised_within_the_ball(singular):
    H, b = quadratics(np.random.default_rng(0), singular)
    ball = torch.logspace(-2, 4, R, dtype=torch.float64)[:, None]  # binds for the first, not for the last
    solution = minimise(quadratic_local(H, b, ball), torch.zeros(R, D, dtype=torch.float64), tolerance=1e-9)
    assert solution.converged.all()
    assert (solution.argmin.norm(dim=-1) <= ball[:, 0] * (1 + 1e-12)).all()
    x = solution.argmin
    gradient = (H @ x[..., None]).squeeze(-1) - b
    # KKT: the gradient is -mu x with mu >= 0, and mu = 0 inside the ball
    mu = -(gradient * x).sum(-1) / (x * x).sum(-1)
    torch.testing.assert_close(gradient, -mu[:, None] * x, atol=2e-8, rtol=0.0)
    inside = x.norm(dim=-1) < ball[:, 0] * (1 - 1e-9)
    assert inside.sum() == 0 if singular else 0 < inside.sum() < R  # unbounded below without the ball
    assert (mu[inside].abs() < 1e-7).all()
    assert mu.min() > -1e-7
    assert mu.max() > 0.1
    for r in range(R):
        h, c, limit = H[r].numpy(), b[r].numpy(), float(ball[r])
        peer = optimize.minimize(
            lambda v, h=h, c=c: v @ h @ v / 2 - c @ v,
            np.zeros(D),
            jac=lambda v, h=h, c=c: h @ v - c,
            method="SLSQP",
            constraints=[{"type": "ineq", "fun": lambda v, limit=limit: 1 - v @ v / limit**2}],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert solution.value[r] <= peer.fun + 1e-9 * (1 + abs(peer.fun))


@pytest.mark.parametrize("ball", [None, 0.15], ids=["free", "ball"])
def test_a_logistic_loss_agrees_with_scipy(ball):
    z, y = logistic(np.random.default_rng(1))
    solution = minimise(logistic_local(z, y, ball), torch.zeros(R, D, dtype=torch.float64), tolerance=1e-10)
    assert solution.converged.all()
    assert solution.residual.max() <= 1e-10
    assert solution.iterations.max() <= 12  # Newton, not gradient descent
    peers = np.stack([scipy_logistic(z[r].numpy(), y[r].numpy(), ball) for r in range(R)])
    np.testing.assert_allclose(solution.argmin, peers, atol=3e-6)  # SLSQP's own accuracy with numerical gradients
    if ball is not None:
        binding = solution.argmin.norm(dim=-1) > ball - 1e-9
        assert 0 < binding.sum() < R


def test_an_answer_does_not_depend_on_who_else_is_in_the_batch():
    z, y = logistic(np.random.default_rng(2))
    start = tensor(np.random.default_rng(3).normal(size=(R, D)) * np.logspace(-3, 1, R)[:, None])
    start[0] = minimise(logistic_local(z, y), start, tolerance=1e-12).argmin[0]  # converged before it starts
    for ball in (None, 0.15):
        first = start if ball is None else project_ball(start, ball)
        together = minimise(logistic_local(z, y, ball), first, tolerance=1e-9)
        assert len(together.iterations.unique()) > 2  # some freeze early
        for r in range(R):
            rows = slice(r, r + 1)
            alone = minimise(logistic_local(z[rows], y[rows], ball), first[rows], tolerance=1e-9)
            torch.testing.assert_close(alone.argmin[0], together.argmin[r], atol=1e-12, rtol=1e-12)
            assert alone.iterations[0] == together.iterations[r]
    assert together.residual.max() <= 1e-9


def test_what_has_not_converged_is_reported():
    z, y = logistic(np.random.default_rng(4))
    start = torch.zeros(R, D, dtype=torch.float64)
    short = minimise(logistic_local(z, y), start, tolerance=1e-10, max_iterations=2)
    assert not short.converged.any()
    torch.testing.assert_close(short.residual, logistic_value(z, y)(short.argmin)[1].norm(dim=-1))
    assert short.iterations.tolist() == [2] * R
    assert not minimise_lbfgs(logistic_value(z, y), start, tolerance=1e-10, max_iterations=3).converged.any()


def test_a_search_that_finds_no_decrease_stays_where_it_is():
    start = tensor([[2.0], [3.0]])

    def uphill(x):  # proposes the wrong direction
        value, gradient = (x[:, 0] - 1) ** 2, 2 * (x - 1)
        return Local(value, gradient.norm(dim=-1), lambda: Proposal(gradient, -(gradient**2).sum(-1)))

    solution = minimise(uphill, start, tolerance=1e-9)
    assert torch.equal(solution.argmin, start)
    assert not solution.converged.any()
    torch.testing.assert_close(solution.residual, tensor([2.0, 4.0]))


def test_a_full_newton_step_that_overshoots_is_halved():
    # sqrt(1 + x^2): from |x| > 1 the full Newton step -x (1 + x^2) diverges
    def local(x):
        root = torch.sqrt(1 + x**2)
        return newton_local(root[:, 0], x / root, lambda: (1 / root**3)[..., None], x, None)

    solution = minimise(local, tensor([[5.0], [0.5], [-40.0]]), tolerance=1e-10)
    assert solution.converged.all()
    assert solution.argmin.abs().max() < 1e-9


def scalar_newton(derivative, curvature):
    """x -> the end of a Newton step with its legs, and the distance that it tells."""

    def step(x):
        q = x - derivative(x) / curvature(x)
        return corrected(x, q, derivative(x), lambda p: p - derivative(p) / curvature(x), legs=2)

    return step


def test_a_step_with_two_legs_is_of_fourth_order_and_tells_how_far_it_ends():
    """softplus(x) - .3 x, minimised at logit .3: the error falls from e to about e^4, and what is told lies between it
    and thrice it; an exact step tells rounding, a leg that grows is not taken."""
    logit = float(np.log(0.3 / 0.7))
    step = scalar_newton(lambda x: torch.sigmoid(x) - 0.3, lambda x: torch.sigmoid(x) * torch.sigmoid(-x))
    errors = tensor([0.2, 0.1, 0.05, 0.025])
    q, told = step(logit + errors[:, None])
    ends = (q - logit).abs().squeeze(-1)
    order = torch.log(ends[:-1] / ends[1:]) / np.log(2)
    assert ((order > 3.5) & (order < 4.2)).all(), order
    assert ((told > ends) & (told < 3 * ends)).all(), told / ends
    q, told = scalar_newton(lambda x: 3 * (x - 1), lambda x: 0 * x + 3)(tensor([[7.0]]))
    assert q.item() == 1
    assert told.item() <= 1e-13
    far = tensor([[4.0]])  # sqrt(1 + x^2): Newton's step overshoots to -64, and the next leg with it
    root = scalar_newton(lambda x: x / torch.sqrt(1 + x**2), lambda x: (1 + x**2) ** -1.5)
    assert root(far)[0].item() == pytest.approx(-64.0)
    assert root(far)[1].item() > 1


def test_legs_never_lead_back_nor_uphill():
    """Between two faces of a box a leg may be as long as the step before it, and end where that began; and legs whose
    sum no longer descends are dropped altogether."""
    x, q, gradient = tensor([[0.0, 0.0]]), tensor([[8.0, 0.0]]), tensor([[-1.0, 4.0]])
    end, left = corrected(x, q, gradient, lambda point: x if point is q else q)
    assert torch.equal(end, q)
    assert left.item() == 8
    end, left = corrected(x, q, gradient, lambda point: point + tensor([[0.0, 5.0]]) * (point == q).all())
    assert torch.equal(end, q)
    assert left.item() == 8


def test_accuracy_asks_for_a_step_where_the_gradient_says_nothing():
    """1e-9 (x - 5)^2 / 2 and a stiff one: the gradient at 0 is below any tolerance, the minimiser is 5 away."""
    H, b = torch.diag(tensor([1e-9, 2.0])).expand(R, 2, 2), tensor([5e-9, 0.0]).expand(R, 2)
    start = torch.zeros(R, 2, dtype=torch.float64)

    def local(x):
        gradient = (H @ x[..., None]).squeeze(-1) - b
        value = (x * (gradient - b)).sum(-1) / 2
        return newton_local(value, gradient, lambda: H, x, None, lambda q: (H @ q[..., None]).squeeze(-1) - b)

    assert minimise(local, start, tolerance=1e-8).iterations.max() == 0
    found = minimise(local, start, tolerance=1e-8, accuracy=1e-8)
    assert found.iterations.tolist() == [1] * R
    torch.testing.assert_close(found.argmin[:, 0], torch.full((R,), 5.0).double(), rtol=1e-9, atol=0)


def test_a_leg_in_the_box_solves_the_model_on_its_face():
    rng, A, high = np.random.default_rng(9), 5, 1.0
    movable = torch.ones(1, A, dtype=torch.bool)
    H = tensor(laplacians(rng, 1, A, movable.numpy()) + 3 * (np.eye(A) - 1 / A))
    q, gradient = tensor([[0.0, 0.4, 0.5, high, 0.3]]), tensor([[0.0, 0.02, -0.05, 0.0, 0.03]])
    end = box_correction(H, q, high, movable)(q, gradient)
    assert torch.equal(end[:, [0, 3]], q[:, [0, 3]])  # on a face
    slope = gradient + (H @ (end - q)[..., None]).squeeze(-1)
    assert slope[:, [1, 2, 4]].abs().max() < 1e-14
    assert box_correction(H, q, high, movable)(q, 1e3 * gradient).amax() <= high


def test_lbfgs_agrees_with_newton():
    z, y = logistic(np.random.default_rng(5))
    z = z * tensor([0.1, 0.5, 2.0, 8.0])  # curvatures that differ by thousands
    start = torch.zeros(R, D, dtype=torch.float64)
    newton = minimise(logistic_local(z, y), start, tolerance=1e-10)
    lbfgs = minimise_lbfgs(logistic_value(z, y), start, tolerance=1e-9)
    assert lbfgs.converged.all()
    assert lbfgs.residual.max() <= 1e-9
    torch.testing.assert_close(lbfgs.argmin, newton.argmin, atol=1e-8, rtol=0.0)  # residual / smallest curvature .1
    assert lbfgs.iterations.max() < 60  # as SciPy's; steepest descent, or a wrong sign in the recursion, needs more
    for r in (0, R - 1):
        alone = minimise_lbfgs(logistic_value(z[r : r + 1], y[r : r + 1]), start[:1], tolerance=1e-9)
        torch.testing.assert_close(alone.argmin[0], lbfgs.argmin[r], atol=1e-12, rtol=1e-12)
        assert alone.iterations[0] == lbfgs.iterations[r]


def test_the_ball_step_solves_its_model_exactly():
    H, b = quadratics(np.random.default_rng(6))
    x = tensor(np.random.default_rng(7).normal(size=(R, D)))
    x = 0.03 * x / x.norm(dim=-1, keepdim=True)
    gradient = (H @ x[..., None]).squeeze(-1) - b
    q = ball_minimiser(gradient, H, x, 0.03)
    torch.testing.assert_close(q.norm(dim=-1), torch.full((R,), 0.03, dtype=torch.float64), rtol=1e-12, atol=0.0)
    slope = (H @ q[..., None]).squeeze(-1) - b
    mu = -(slope * q).sum(-1, keepdim=True) / (q * q).sum(-1, keepdim=True)
    assert mu.min() > 0
    torch.testing.assert_close(slope, -mu * q, rtol=1e-9, atol=1e-9)


def test_projection_on_the_ball():
    x = tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    expected = tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(project_ball(x, 1.0), expected)
    torch.testing.assert_close(project_ball(x, tensor([[5.0], [0.25], [1.0]])), x * tensor([[1.0], [0.5], [1.0]]))


def laplacians(rng, n, A, movable):
    """Weighted graph Laplacians, some graphs disconnected, + a small mean-free part: the Hessians of tables."""
    H = np.zeros((n, A, A))
    for i in range(n):
        for _ in range(int(rng.integers(0, 3 * A))):
            a, b = rng.choice(np.flatnonzero(movable[i]), 2)
            edge = np.zeros(A)
            edge[a], edge[b] = 1, -1
            H[i] += (a != b) * 10 ** rng.uniform(-1, 3) * np.outer(edge, edge)
    centre = movable[:, :, None] * (np.eye(A) - 1 / movable.sum(1)[:, None, None]) * movable[:, None, :]
    return H + 1e-5 * centre


@pytest.mark.parametrize("high", [0.01, 1.0, 30.0])
def test_the_box_step_solves_its_model_exactly(high):
    rng, n, A = np.random.default_rng(8), 60, 6
    movable = rng.random((n, A)) > 0.2
    movable[:, :2] = True
    H = laplacians(rng, n, A, movable)
    x = np.where(movable, np.clip(rng.uniform(-0.5, 1.5, size=(n, A)) * high, 0, high), 0.0)
    gradient = (H @ (movable * rng.normal(size=(n, A)) * 3)[..., None])[..., 0]
    q = box_minimiser(tensor(gradient), tensor(H), tensor(x), high, torch.as_tensor(movable)).numpy()
    assert (q >= 0).all()
    assert (q <= high).all()
    np.testing.assert_array_equal(q[~movable], x[~movable])
    slope = gradient + (H @ (q - x)[..., None])[..., 0]
    rounding = 1e-9 * np.abs(gradient).max(1, keepdims=True) * movable
    assert (np.abs(slope) <= rounding + 1e9 * ((q == 0) | (q == high)))[movable].all()
    assert (slope[movable & (q == 0)] >= -np.broadcast_to(rounding, q.shape)[movable & (q == 0)]).all()
    assert (slope[movable & (q == high)] <= np.broadcast_to(rounding, q.shape)[movable & (q == high)]).all()
    alone = box_minimiser(tensor(gradient[9]), tensor(H[9]), tensor(x[9]), high, torch.as_tensor(movable[9]))
    np.testing.assert_allclose(alone, q[9], atol=1e-12)


FUNCTIONS = {
    "cubic": (lambda x: x**3 - 2, lambda x: 3 * x**2),
    "steep": (lambda x: torch.expm1(40 * (x - 1.3)), lambda x: 40 * torch.exp(40 * (x - 1.3))),
    "flat then steep": (
        lambda x: (x - 1).clamp_min(0) ** 2 - 0.25,
        lambda x: 2 * (x - 1).clamp_min(0),
    ),
    "saturating": (lambda x: torch.tanh(50 * (x - 0.123)), lambda x: 50 / torch.cosh(50 * (x - 0.123)) ** 2),
    "at the lower end": (lambda x: x + 3, lambda x: torch.ones_like(x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_root_of_an_increasing_function(name):
    function, derivative = FUNCTIONS[name]
    low, high = tensor([-3.0, -3.0]), tensor([2.0, 7.0])
    calls = []

    def value_and_derivative(x):
        calls.append(x)
        return function(x), derivative(x)

    root = increasing_root(value_and_derivative, low, high)
    assert len(calls) <= (9 if name in ("cubic", "at the lower end") else 53)  # Newton; bisection alone needs 53
    peer: Any = optimize.brentq(lambda x: float(function(torch.tensor(x, dtype=torch.float64))), -3, 7, xtol=1e-15)
    np.testing.assert_allclose(root, [peer, peer], rtol=1e-13)
