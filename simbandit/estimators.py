"""Estimates of a linear reward and their uncertainty: likelihoods, ridge regression, elliptical widths and radii."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simbandit.data import Duels
from simbandit.solvers import Local, Proposal, Solution, minimise, minimise_lbfgs, newton_local, project_ball
from simbandit.types import Contexts, Feedback, Info, Setting

NEWTON_DIM = 128
"""Up to this dimension a Hessian per replicate is cheap and Newton needs a handful of steps; beyond it L-BFGS."""


SATURATED = 15.0
"""A margin beyond which sigma is within 3e-7 of 0 or 1: a sign that the data may be separable."""


class Fit(NamedTuple):
    """theta (R, d) with what the solver achieved: residual (R,), converged (R,), iterations (R,)."""

    theta: Tensor
    residual: Tensor
    converged: Tensor
    iterations: Tensor


def _fit(solution: Solution, newton: Callable[[], Proposal], z: Tensor, observed: Tensor | float = 1.0) -> Fit:
    """Converged only where a further Newton step would leave every observed margin <theta, z_u> where it is: on
    separable data the gradient vanishes while margins grow by about 1 a step. Asked only where a margin is that
    large."""
    converged = solution.converged
    margins = batched_product(z, solution.argmin[..., None]).squeeze(-1)
    if bool(((margins * observed).abs() > SATURATED).any()):
        moved = (batched_product(z, newton().step[..., None]).squeeze(-1) * observed).abs().amax(-1)
        converged = converged & (moved <= 1e-3)
    return Fit(solution.argmin, solution.residual, converged, solution.iterations)


def logistic_mle(
    differences: Tensor,
    wins: Tensor,
    count: Tensor,
    *,
    ridge: float = 0.0,
    ball: float | Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-9,
) -> Fit:
    """Bradley-Terry likelihood of a linear reward, from counts per distinct pair:

        min over ||theta|| <= ball of  sum_u count_u softplus(<theta, z_u>) - wins_u <theta, z_u> + ridge/2 ||theta||^2

    differences (R, U, d); wins, count (R, U), real-valued (weights and soft labels are exact). `tolerance` is the norm
    of the (projected) gradient per duel. Separable data have no minimiser without `ridge` or `ball`: the gradient
    vanishes while the margins grow for ever, and the fit reports converged = False. Newton within the ball for d <= 128
    (O(U d^2) a step), projected start; L-BFGS beyond, with `ridge`. Raises ValueError where a ball binds at d > 128.
    """
    R, _, d = differences.shape
    z, scratch = differences, torch.empty_like(differences)
    start = differences.new_zeros(R, d) if start is None else start
    bound = None if ball is None else torch.as_tensor(ball, dtype=z.dtype, device=z.device).expand(R)[:, None]
    scaled = tolerance * count.sum(-1).clamp_min(1.0)
    eye = ridge * torch.eye(d, dtype=z.dtype, device=z.device)

    def value_gradient(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        margin = batched_product(z, theta[..., None]).squeeze(-1)
        p = torch.sigmoid(margin)
        # softplus(m) = softplus(-|m|) + max(m, 0): a duel that goes as predicted costs 0 however large its margin
        log_partition = torch.nn.functional.softplus(-margin.abs())
        nll = (count * log_partition + (count * (margin > 0) - wins) * margin).sum(-1)
        gradient = batched_product((count * p - wins)[:, None], z).squeeze(1) + ridge * theta
        return nll + ridge / 2 * theta.square().sum(-1), gradient, p

    def local(theta: Tensor) -> Local:
        value, gradient, p = value_gradient(theta)
        return newton_local(value, gradient, lambda: weighted_gram(z, count * p * (1 - p), scratch) + eye, theta, bound)

    observed = (count > 0).to(z.dtype)
    if d > NEWTON_DIM:
        solution = minimise_lbfgs(lambda theta: value_gradient(theta)[:2], start, tolerance=scaled)
        if bound is not None and bool((solution.argmin.norm(dim=-1, keepdim=True) > bound).any()):
            raise ValueError(f"ball: binds at dim {d} > {NEWTON_DIM}, where only ridge is supported; raise `ridge`")
        return _fit(solution, lambda: local(solution.argmin).propose(), z, observed)
    solution = minimise(local, start if bound is None else project_ball(start, bound), tolerance=scaled)
    return _fit(solution, solution.propose, z, observed)


def plackett_luce_mle(
    features: Tensor,
    *,
    ridge: float = 0.0,
    ball: float | Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-9,
) -> Fit:
    """Likelihood of K-wise rankings: features (R, N, K, d), ordered from best to worst,

        min_theta  sum_n sum_j  log sum_{l >= j} exp <theta, phi_nl> - <theta, phi_nj>   + ridge / 2 ||theta||^2.

    Source: Zhu, Jordan, Jiao 2023 (2301.11270), section 4 (MLE_K). K = 2 is `logistic_mle`. O(N K^2 + N K d^2) a step.
    """
    R, N, K, d = features.shape
    start = features.new_zeros(R, d) if start is None else start
    bound = None if ball is None else torch.as_tensor(ball, dtype=features.dtype).to(features.device).expand(R)[:, None]
    eye = ridge * torch.eye(d, dtype=features.dtype, device=features.device)
    later = torch.ones(K, K, dtype=torch.bool, device=features.device).triu()  # [stage, action]: still in the race

    def local(theta: Tensor) -> Local:
        scores = torch.einsum("rnkd,rd->rnk", features, theta)
        race = torch.where(later, scores[:, :, None, :], -torch.inf)  # (R, N, stage, action)
        value = (torch.logsumexp(race, -1) - scores).sum((-1, -2)) + ridge / 2 * theta.square().sum(-1)
        p = torch.softmax(race, -1)
        expected = torch.einsum("rnsk,rnkd->rnsd", p, features)
        gradient = (expected - features).sum((1, 2)) + ridge * theta

        def hessian() -> Tensor:
            flat, mean = features.reshape(R, N * K, d), expected.reshape(R, N * K, d)
            return weighted_gram(flat, p.sum(2).reshape(R, N * K)) - mean.mT @ mean + eye

        return newton_local(value, gradient, hessian, theta, bound)

    if bound is not None:
        start = project_ball(start, bound)
    solution = minimise(local, start, tolerance=tolerance * max(1, N * (K - 1)))
    return _fit(solution, solution.propose, (features - features[:, :, :1]).reshape(R, N * K, d))


def batched_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b over leading axes. On the CPU by NumPy, whose batched product of small matrices is two to four times as
    fast as torch's and does not depend on the size of the batch, last bit included."""
    if a.device.type != "cpu":
        return a @ b
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))


def weighted_gram(z: Tensor, weights: Tensor, scratch: Tensor | None = None) -> Tensor:
    """sum_u weights_u z_u z_u', (R, U, d), (R, U) -> (R, d, d). `scratch` (R, U, d) saves fresh memory per call."""
    return batched_product(torch.mul(z, weights[..., None], out=scratch).mT, z)


def width(u: Tensor, inverse: Tensor) -> Tensor:
    """||u||_inverse for u (R, ..., d) and inverse (R, d, d): (R, ...)."""
    flat = u.reshape(u.shape[0], -1, u.shape[-1])
    return ((flat @ inverse) * flat).sum(-1).clamp_min(0.0).sqrt().reshape(u.shape[:-1])


def pair_widths(features: Tensor, inverse: Tensor) -> Tensor:
    """||phi_a - phi_b||_inverse for all pairs of a context's actions, by the Gram trick G_aa + G_bb - 2 G_ab.

    features (R, ..., A, d) -> (R, ..., A, A)."""
    lead = (features.shape[0], *(1 for _ in features.shape[1:-2]))
    gram = features @ inverse.view(*lead, *inverse.shape[1:]) @ features.mT
    norms = gram.diagonal(dim1=-2, dim2=-1)
    return (norms[..., :, None] + norms[..., None, :] - gram - gram.mT).clamp_min(0.0).sqrt()


def rank_one_inverse(inverse: Tensor, u: Tensor) -> None:
    """Sherman-Morrison in place: inverse (R, d, d) of V becomes that of V + u u', u (R, d)."""
    v = batched_product(inverse, u[..., None]).squeeze(-1)
    w = v / (1 + (u * v).sum(-1, keepdim=True)).sqrt()
    inverse.addcmul_(w[:, :, None], w[:, None, :], value=-1.0)


def curvature(largest_gap: float) -> float:
    """min of sigma' over reward differences in [-gap, gap]: 1 / (2 + e^gap + e^-gap), the gamma of GSHF and Zhu et al.

    With ||phi|| <= L and ||theta|| <= B a difference reaches 2 B L; the papers print B or L B."""
    return 1.0 / (2.0 + 2.0 * math.cosh(largest_gap))


Radius = Literal["tuned", "theory"] | float
"""A confidence radius: a number, "tuned" (1, what works), or "theory" (the theorem's, which carries 1 / curvature)."""


def confidence_radius(radius: Radius, setting: Setting, ridge: float, delta: float = 0.05) -> float:
    """Radius of ||theta_hat - theta*|| in the norm of ridge I + (sum of z z' over duels, phi phi' over rewards).

    "theory": sqrt((d + log 1/delta) / gamma^2 + ridge B^2) for duels and rankings, with the unknown absolute constant
    set to 1 (Zhu et al. Lemma 3.1 times sqrt n; GSHF's offline beta) and gamma from the largest possible reward
    difference; sqrt(d + log 1/delta) + sqrt(ridge) B for rewards with unit noise. "tuned": 1.
    """
    if not isinstance(radius, str):
        return float(radius)
    if radius == "tuned":
        return 1.0
    low, high = setting.reward_range
    if not math.isfinite(high - low) or setting.dim is None:
        raise ValueError("radius: 'theory' needs features and a finite reward range; use 'tuned' or a number")
    bound = setting.theta_bound or max(abs(low), abs(high))
    freedom = setting.dim + math.log(1 / delta)
    if setting.feedback == "reward":
        return math.sqrt(freedom) + math.sqrt(ridge) * bound
    return math.sqrt(freedom / curvature(high - low) ** 2 + ridge * bound**2)


class RewardModel:
    """Running estimate of a linear reward from whatever the oracle answers. Grows in place; the newest fit is `theta`.

    Duels: logistic MLE on counts. Rankings: Plackett-Luce MLE. Rewards: ridge regression, its inverse kept by rank-one
    updates while batches are small (<= d / 2).
    `gram` (R, d, d) is the sum of z z' over duels (of phi phi' over rewards), without ridge. Refits when the number of
    observations has grown by the fraction `refit_growth` since the last fit (0: at every `observe`).
    """

    def __init__(
        self,
        setting: Setting,
        *,
        ridge: float,
        ball: float | None = None,
        refit_growth: float = 0.0,
        members: int = 0,
    ):
        if setting.dim is None:
            raise ValueError(
                "this algorithm estimates a linear reward, and this world has no features; give `features=`"
            )
        R, d = setting.replicates, setting.dim
        self.kind: Feedback = setting.feedback
        self.ridge, self.refit_growth = ridge, refit_growth
        known = setting.theta_bound if d <= NEWTON_DIM else None  # beyond it L-BFGS, which knows no ball
        self.ball = known if ball is None else ball
        self.theta = torch.zeros(R, d, dtype=torch.float64, device=setting.device)
        self.gram = torch.zeros(R, d, d, dtype=torch.float64, device=setting.device)
        if self.kind not in ("preference", "reward", "ranking"):
            raise ValueError(f"oracle: a reward is estimated from duels, rankings or rewards, not {self.kind} feedback")
        self.duels = Duels(R, setting.contexts, d, setting.device, members) if self.kind == "preference" else None
        self.members = [self.theta] * members
        self.moment = torch.zeros_like(self.theta)
        eye = torch.eye(d, dtype=torch.float64, device=setting.device)
        self._inverse = (eye / ridge).expand(R, d, d).clone() if self.kind == "reward" else None
        self.rankings = torch.zeros(R, 0, setting.n_select, d, dtype=torch.float64, device=setting.device)
        self.n = self.n_fitted = 0
        self.residual = torch.zeros(R, dtype=torch.float64, device=setting.device)
        self.iterations = torch.zeros_like(self.residual)

    def observe(self, contexts: Contexts, actions: Tensor, feedback: Tensor, weights: Tensor | None = None) -> bool:
        """Records a batch and refits if the schedule says so; returns whether it did. weights: the ensemble's."""
        phi = contexts.features_of(actions)
        if self.kind == "preference":
            assert self.duels is not None
            self.duels.add(contexts, actions, feedback, weights)
            z = phi[:, :, 0] - phi[:, :, 1]
        elif self.kind == "reward":
            z = phi[:, :, 0]
            self.moment += (z * feedback[..., None]).sum(1)
            if self._inverse is not None and z.shape[1] <= z.shape[2] // 2:
                for b in range(z.shape[1]):
                    rank_one_inverse(self._inverse, z[:, b])
            else:
                self._inverse = None  # a large batch: a factorisation is cheaper, and from then on always taken
        else:
            z = (phi[:, :, :, None] - phi[:, :, None, :]).reshape(phi.shape[0], -1, phi.shape[-1]) / math.sqrt(2)
            ordered = phi.gather(2, feedback[..., None].expand(-1, -1, -1, phi.shape[-1]))
            self.rankings = torch.cat([self.rankings, ordered], dim=1)
        self.gram += z.mT @ z
        self.n += feedback.shape[1]
        due = self.n >= (1 + self.refit_growth) * self.n_fitted
        if due:
            self.refit()
        return due

    @property
    def observations(self) -> int:
        """Vectors z in `gram`: a ranking of K is K (K - 1) / 2 pairs (Zhu et al. 2301.11270, Sigma_DK)."""
        K = self.rankings.shape[2]
        return self.n * (K * (K - 1) // 2 if self.kind == "ranking" else 1)

    def refit(self) -> None:
        self.n_fitted = self.n
        if self.kind == "reward":
            self.theta = (self.inverse(self.ridge) @ self.moment[..., None]).squeeze(-1)
            return
        if self.kind == "preference":
            assert self.duels is not None
            d = self.duels
            fit = logistic_mle(d.differences, d.wins, d.count, ridge=self.ridge, ball=self.ball, start=self.theta)
        else:
            fit = plackett_luce_mle(self.rankings, ridge=self.ridge, ball=self.ball, start=self.theta)
        self.theta, self.residual, self.iterations = fit.theta, fit.residual, fit.iterations

    def ensemble_covariance(self) -> Tensor:
        """Covariance (R, d, d) of the bootstrap members around the estimate: ||u|| in it is their standard deviation of
        <theta, u>. Refits every member by warm-started Newton."""
        assert self.duels is not None
        d = self.duels
        for e, start in enumerate(self.members):
            wins, count = d.member_wins[..., e], d.member_count[..., e]
            fit = logistic_mle(d.differences, wins, count, ridge=self.ridge, ball=self.ball, start=start)
            self.members[e] = fit.theta
        deviation = torch.stack(self.members, dim=1) - self.theta[:, None]
        return deviation.mT @ deviation / len(self.members)

    def info(self, radius: Tensor | float | None = None) -> Info:
        residual = None if self.kind == "reward" else self.residual
        iterations = None if self.kind == "reward" else self.iterations
        return Info(self.theta, self.gram, self.observations, residual, iterations, radius)

    def inverse(self, ridge: float, scale: float = 1.0) -> Tensor:
        """(ridge I + scale gram)^-1, a copy."""
        if self._inverse is not None and ridge == self.ridge and scale == 1.0:
            return self._inverse.clone()
        eye = torch.eye(self.theta.shape[-1], dtype=torch.float64, device=self.theta.device)
        return torch.cholesky_inverse(torch.linalg.cholesky(ridge * eye + scale * self.gram))
