"""Batched minimisation and root finding. Every problem of a batch is frozen once *it* has converged, so that no answer
depends on who else is in the batch, and every answer comes with the residual that it achieved."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LEGS, CONTRACTION = 6, 0.9  # of `corrected`


class Proposal(NamedTuple):
    """A step (R, n), the slope (R,) along it, and, where it can be told, about how far from the minimiser the whole
    step ends (R,)."""

    step: Tensor
    slope: Tensor
    left: Tensor | None = None


class Local(NamedTuple):
    """A convex objective around a point: value (R,), optimality residual (R,), and `propose`, which computes a step. It
    is asked for only where the search goes on: it costs a Hessian."""

    value: Tensor
    residual: Tensor
    propose: Callable[[], Proposal]


class Solution(NamedTuple):
    """Per problem: the point, its value and residual, whether the residual met the tolerance, the iterations, and
    whether the search had ended. `propose` is the step that it would have tried next."""

    argmin: Tensor
    value: Tensor
    residual: Tensor
    converged: Tensor
    iterations: Tensor
    ended: Tensor
    propose: Callable[[], Proposal]


def minimise(
    local: Callable[[Tensor], Local],
    start: Tensor,
    *,
    tolerance: Tensor | float,
    accuracy: float | None = None,
    max_iterations: int = 100,
) -> Solution:
    """Damped Newton (Armijo backtracking by halving) until `residual <= tolerance`, per problem.

    `local` proposes the step; a constrained problem proposes steps that stay inside its convex set. Where the gradient
    says little about the distance to the minimiser (directions of small curvature), `accuracy` asks for a step at
    least, and for further ones until a whole step is told to end this near, or no longer halves the residual.
    """
    x, here = start, local(start)
    iterations, stalled = torch.zeros_like(here.value), torch.zeros_like(here.value, dtype=torch.bool)
    far = torch.full_like(stalled, accuracy is not None)
    for _ in range(max_iterations):
        active = ((here.residual > tolerance) | far) & ~stalled
        if not active.any():
            break
        iterations += active
        step, slope, left = here.propose()
        size, candidate, there = active.to(x.dtype), x, here
        # Rounding: near the optimum the true decrease is below the value's last digits.
        slack = 1e-14 * (1.0 + here.value.abs())
        rejected = active
        for _ in range(30):
            candidate = torch.where(active[:, None], x + size[:, None] * step, x)
            there = local(candidate)
            rejected = active & ~(there.value <= here.value + 1e-4 * size * slope + slack)
            if not rejected.any():
                break
            size = torch.where(rejected, size / 2, size)
        if rejected.any():  # no decrease left above rounding: stay
            stalled = stalled | rejected
            candidate = torch.where(rejected[:, None], x, candidate)
            there = local(candidate)
        if accuracy is not None:
            assert left is not None
            far = active & ((left > accuracy) | (size < 1)) & (2 * there.residual < here.residual)
        x, here = candidate, there
    converged = here.residual <= tolerance
    return Solution(x, here.value, here.residual, converged, iterations, (converged & ~far) | stalled, here.propose)


def newton_local(
    value: Tensor,
    gradient: Tensor,
    hessian: Callable[[], Tensor],
    x: Tensor,
    ball: Tensor | float | None,
    gradient_at: Callable[[Tensor], Tensor] | None = None,
    legs: int = LEGS,
) -> Local:
    """A convex objective with the Newton step, x (R, d); with `ball` the exact minimiser of the quadratic model within
    ||x|| <= ball (a number or (R, 1)). The residual is the gradient's norm, or the projected gradient's. `gradient_at`
    makes the step one of higher order (`corrected`)."""

    def within(free: Tensor, gradient: Tensor, H: Tensor, x: Tensor) -> Tensor:
        """The model's minimiser in the ball; `free` is the one without."""
        if ball is None or not (outside := free.norm(dim=-1) > torch.as_tensor(ball).squeeze(-1)).any():
            return free
        limit = ball[outside] if isinstance(ball, Tensor) else ball
        return free.index_put((outside,), ball_minimiser(gradient[outside], H[outside], x[outside], limit))

    def propose() -> Proposal:
        H = hessian()
        scale = H.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-300)
        ridge = 1e-13 * scale[:, None, None] * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        factor, failed = torch.linalg.cholesky_ex(H + ridge)
        step = -torch.cholesky_solve(gradient[..., None], factor).squeeze(-1)
        singular = failed > 0
        if singular.any():
            values, vectors = torch.linalg.eigh(H)
            floored = values.clamp_min(0.0) + 1e-8 * scale[:, None]
            safe = -(vectors @ ((vectors.mT @ gradient[..., None]) / floored[..., None])).squeeze(-1)
            step = torch.where(singular[:, None], safe, step)
        q, left = within(x + step, gradient, H, x), None
        if gradient_at is not None:

            def correction(q: Tensor, gradient_at: Callable[[Tensor], Tensor] = gradient_at) -> Tensor:
                slope = gradient_at(q)
                free = q - torch.cholesky_solve(slope[..., None], factor).squeeze(-1)
                return torch.where(singular[:, None], q, within(free, slope, H, q))

            q, left = corrected(x, q, gradient, correction, legs)
        step = q - x
        return Proposal(step, (gradient * step).sum(-1), left)

    moved = gradient if ball is None else x - project_ball(x - gradient, ball)
    return Local(value, moved.norm(dim=-1), propose)


def corrected(
    x: Tensor, q: Tensor, gradient: Tensor, correction: Callable[[Tensor], Tensor], legs: int = LEGS
) -> tuple[Tensor, Tensor]:
    """The end of a Newton step from x to q whose Hessian serves on for short legs, each with the gradient where the one
    before ended (Shamanskii 1967): `correction` leads from a point to the next. With m legs the order of convergence is
    m + 2 for one Hessian, m + 1 gradients and as many back-substitutions. A leg longer than CONTRACTION times the one
    before it shows that the Hessian is out of date, and is not taken (without this bound, legs between two faces of a
    box lead back to x); at rounding level they end. Where the whole is no longer a descent as the Newton step is, that
    one is taken. Not for objectives that are not convex (legs 0): there they often end in higher minima. Second: about
    how far the end is from the minimiser.
    """
    newton, whole = q, (q - x).abs().amax(-1, keepdim=True)
    ahead = left = whole
    for _ in range(legs):
        further = correction(q)
        leg = (further - q).abs().amax(-1, keepdim=True)
        going = (leg <= CONTRACTION * ahead) & (left > 1e-13)
        left = torch.where(going, 2 * leg.square() / ahead.clamp_min(1e-300), torch.minimum(left, leg))
        q, ahead = torch.where(going, further, q), torch.where(going, leg, 0.0)
        if not (going & (left > 1e-13)).any():
            break
    slope, newton_slope = ((gradient * (end - x)).sum(-1, keepdim=True) for end in (q, newton))
    descent = slope <= 0.1 * newton_slope
    return torch.where(descent, q, newton), torch.where(descent, left, whole).squeeze(-1)


def project_ball(x: Tensor, ball: Tensor | float) -> Tensor:
    return x * (ball / x.norm(dim=-1, keepdim=True).clamp_min(1e-300)).clamp_max(1.0)


def ball_minimiser(gradient: Tensor, hessian: Tensor, x: Tensor, ball: Tensor | float) -> Tensor:
    """argmin over ||q|| = ball of the quadratic model around x whose free minimiser lies outside: q = (H + mu)^-1 b.

    Newton on the secular equation 1/||q(mu)|| = 1/ball from mu = 0 increases monotonically to the root (More,
    Sorensen).
    """
    values, vectors = torch.linalg.eigh(hessian)
    values = values.clamp_min(0.0) + 1e-13 * values.amax(-1, keepdim=True).clamp_min(1e-300)
    b = (vectors.mT @ ((hessian @ x[..., None]) - gradient[..., None])).squeeze(-1)
    mu = torch.zeros_like(b[:, :1])
    for _ in range(60):
        q = b / (values + mu)
        norm2 = (q * q).sum(-1, keepdim=True).clamp_min(1e-300)
        derivative = (q * q / (values + mu)).sum(-1, keepdim=True).clamp_min(1e-300)
        change = norm2 / derivative * (norm2.sqrt() / ball - 1.0)
        mu = (mu + change).clamp_min(0.0)
        if not (change.abs() > 1e-13 * (values.amax(-1, keepdim=True) + mu)).any():
            break
    return project_ball((vectors @ (b / (values + mu))[..., None]).squeeze(-1), ball)


def box_minimiser(gradient: Tensor, hessian: Tensor, x: Tensor, high: float, movable: Tensor) -> Tensor:
    """argmin over 0 <= q <= high of the quadratic model around x, (..., n), which ignores a common shift of all movable
    coordinates (gradient and rows of the Hessian sum to 0); the others stay.

    Primal-dual active set method (Hintermueller, Ito, Kunisch 2003): pin coordinates, solve for the rest, pin those
    that leave the box, release those that are pulled inwards. Exact; a sweep or two from a warm start. While nothing is
    pinned the shift is free, and the smallest coordinate is put at 0.
    """
    shape, n = x.shape, x.shape[-1]
    gradient, hessian, x, movable = (
        gradient.reshape(-1, n),
        hessian.reshape(-1, n, n),
        x.reshape(-1, n),
        movable.reshape(-1, n),
    )
    at_low, at_high = movable & (x <= 0) & (gradient > 0), movable & (x >= high) & (gradient < 0)
    answer, todo = x.clone(), torch.arange(x.shape[0], device=x.device)
    for _ in range(50):
        scale = hessian.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True).clamp_min(1e-300)
        free = movable & ~at_low & ~at_high
        unpinned = (free == movable).all(-1, keepdim=True)
        pinned = torch.where(at_low, -x, torch.where(at_high, high - x, 0.0))
        force = torch.where(free, gradient + (hessian @ pinned[..., None]).squeeze(-1), 0.0)
        system = torch.where(free[:, :, None] & free[:, None, :], hessian + (unpinned * scale)[..., None], 0.0)
        system.diagonal(dim1=-2, dim2=-1).add_(torch.where(free, 1e-15 * scale, 1.0))
        factor, failed = torch.linalg.cholesky_ex(system)
        step = pinned - torch.cholesky_solve(force[..., None], factor).squeeze(-1)
        step = torch.where((failed > 0)[:, None], pinned - force / scale, step)
        q = torch.where(movable, x + step, x)
        q = torch.where(unpinned & movable, q - torch.where(movable, q, torch.inf).amin(-1, keepdim=True), q)
        answer[todo] = torch.where(movable, q.clamp(0.0, high), x)
        slope = gradient + (hessian @ (q - x)[..., None]).squeeze(-1)
        # With a single coordinate pinned its slope is 0 by the shift, and what is computed is rounding of H (q - x).
        moved = (q - x).abs().amax(-1, keepdim=True)
        rounding = 1e-12 * gradient.abs().amax(-1, keepdim=True) + 1e-13 * scale * moved
        low = (free & (q < 0)) | (at_low & (slope > -rounding))
        top = (free & (q > high)) | (at_high & (slope < rounding))
        left = ((low != at_low) | (top != at_high)).any(-1)
        if not left.any():
            break
        gradient, hessian, x, movable, todo = gradient[left], hessian[left], x[left], movable[left], todo[left]
        at_low, at_high = low[left], top[left]
    return answer.reshape(shape)


def box_correction(hessian: Tensor, q: Tensor, high: float, movable: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(point, gradient there) -> the minimiser of the quadratic model around the point, as in `box_minimiser`, whose
    coordinates that q has on the box's faces stay (of a model that ignores a common shift one always does, at 0)."""
    free = movable & (q > 0) & (q < high)
    scale = hessian.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True).clamp_min(1e-300)
    system = torch.where(free[..., :, None] & free[..., None, :], hessian, 0.0)
    system.diagonal(dim1=-2, dim2=-1).add_(torch.where(free, 1e-15 * scale, 1.0))
    factor, failed = torch.linalg.cholesky_ex(system)
    free = free & (failed == 0)[..., None]

    def correct(point: Tensor, gradient: Tensor) -> Tensor:
        step = torch.cholesky_solve(torch.where(free, gradient, 0.0)[..., None], factor).squeeze(-1)
        return torch.where(free, (point - step).clamp(0.0, high), point)

    return correct


def minimise_lbfgs(
    value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    tolerance: Tensor | float,
    memory: int = 10,
    max_iterations: int = 1000,
) -> Solution:
    """Batched L-BFGS, for dimensions where a Hessian (R, d, d) is too large. Smooth convex, unconstrained."""
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def local(x: Tensor) -> Local:
        value, gradient = value_and_gradient(x)
        direction, alphas = gradient, []
        for s, y, rho in reversed(pairs):
            alpha = rho * (s * direction).sum(-1, keepdim=True)
            alphas.append(alpha)
            direction = direction - alpha * y
        if pairs:
            s, y, rho = pairs[-1]
            usable = rho > 0
            scale = torch.where(usable, (s * y).sum(-1, keepdim=True) / (y * y).sum(-1, keepdim=True), 1.0)
            direction = direction * scale
        else:
            direction = direction / gradient.norm(dim=-1, keepdim=True).clamp_min(1.0)
        for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            direction = direction + s * (alpha - rho * (y * direction).sum(-1, keepdim=True))
        return Local(value, gradient.norm(dim=-1), lambda: Proposal(-direction, -(gradient * direction).sum(-1)))

    x, iterations = start, torch.zeros(start.shape[0], dtype=start.dtype, device=start.device)
    solution = minimise(local, x, tolerance=tolerance, max_iterations=0)
    for _ in range(max_iterations):
        if bool(solution.converged.all()):
            break
        old_x, old_gradient = x, value_and_gradient(x)[1]
        solution = minimise(local, x, tolerance=tolerance, max_iterations=1)
        iterations, x = iterations + solution.iterations, solution.argmin
        s, y = x - old_x, value_and_gradient(x)[1] - old_gradient
        curvature = (s * y).sum(-1, keepdim=True)
        rho = torch.where(curvature > 1e-300, 1.0 / curvature.clamp_min(1e-300), 0.0)
        pairs = [*pairs, (s, y, rho)][-memory:]
        solution = minimise(local, x, tolerance=tolerance, max_iterations=0)
    return solution._replace(iterations=iterations)


def increasing_root(function: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor) -> Tensor:
    """Root of an increasing function with f(low) <= 0 <= f(high): Newton inside a shrinking bracket, else bisection.

    `function` returns value and derivative. Stops when every bracket or step is at rounding level.
    """
    x = (low + high) / 2
    for _ in range(200):
        value, derivative = function(x)
        low, high = torch.where(value <= 0, x, low), torch.where(value >= 0, x, high)
        newton = x - value / derivative
        inside = torch.isfinite(newton) & (newton >= low) & (newton <= high)
        following = torch.where(inside, newton, (low + high) / 2)
        done = ((following - x).abs() <= 4e-16 * x.abs().clamp_min(1e-300)) | (value == 0)
        x = torch.where(value == 0, x, following)
        if bool(done.all()):
            break
    return x
