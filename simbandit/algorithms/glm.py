"""A generalised linear bandit: Bernoulli rewards whose mean is a logistic function of <theta*, phi>."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.bandits import DELTA, norm_bound
from simbandit.algorithms.checks import check, warn_of_norms
from simbandit.algorithms.choosing import GreedyPolicy, choose
from simbandit.draws import Round
from simbandit.estimators import curvature, logistic_mle, width
from simbandit.least_squares import linear
from simbandit.types import Contexts, Feedback, Info, Policy, Setting


@dataclass
class _State:
    setting: Setting
    theta: Tensor
    inverse: Tensor
    gram: Tensor
    features: Tensor  # (R, N, d) distinct observed vectors: the pool's, or one a row
    wins: Tensor  # (R, N) rewards summed
    count: Tensor
    n: int = 0
    n_fitted: int = 0
    residual: Tensor | None = None
    radius: float = 1.0
    warned: bool = False


@dataclass(frozen=True)
class GLMUCB:
    """GLM-UCB with the logistic link, for Bernoulli rewards: play argmax_a sigma(<theta_t, phi_a>) + radius
    ||phi_a||_{V_t^-1}.

    Filippi et al. 2010 (NeurIPS), Algorithm 1 with equations (3)-(6): theta_t solves sum (r - sigma(<theta, phi>)) phi
    = ridge theta (the quasi-likelihood, so rewards that are not 0 or 1 are taken as they are), V_t = ridge I + sum phi
    phi'. radius: a number; "tuned" (1); "theory" = (k / c) (s sqrt(d log(1 + t / (d ridge)) + 2 log(1 / delta)) +
    sqrt(ridge) S): k = 1/4 and c the largest and smallest slope of the link over the rewards, s = 1/2 the sub-Gaussian
    scale of rewards in [0, 1], S the world's bound on ||theta*||, delta = .05. That is the self-normalised bound of
    Abbasi-Yadkori et al. 2011 (Theorem 1) on the score, divided by c for theta and multiplied by k for the mean; it
    assumes ||phi|| <= 1 and warns with the measured norm where that fails. The paper's own radius is larger by
    logarithms. Guarantee (Theorem 2): regret (of sigma(<theta*, phi>)) O~((k / c)^2 d sqrt(T)). Deviations: a ridge and
    the world's bound on ||theta|| instead of their projection; no forced start; refits when the data have grown by
    `refit_growth` (0: every round, the paper). Metrics are of the world's linear reward, of which the Bernoulli mean is
    an increasing function, so the best action is the same. `policy`: greedy. Complexity: a refit
    costs O(N d^2) per Newton step, N = X A in a finite world, else the rounds so far. Raises ValueError for a world
    without features, or "theory" without a bound on ||theta*||.
    """

    radius: Literal["tuned", "theory"] | float = "tuned"
    ridge: float = 1.0
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ridge",))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        assert setting.dim is not None
        R, d, pool = setting.replicates, setting.dim, setting.contexts
        eye = torch.eye(d, dtype=torch.float64, device=setting.device).expand(R, d, d)
        features = eye.new_zeros(R, 0, d) if pool is None else pool.features.reshape(R, -1, d)
        zeros = eye.new_zeros(R, features.shape[1])
        state = _State(
            setting, eye.new_zeros(R, d), eye / self.ridge, torch.zeros_like(eye), features, zeros, zeros.clone()
        )
        state.radius = self._radius(state)
        self._check_norms(state, pool)
        return state

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        if state.setting.contexts is None:
            self._check_norms(state, contexts)
        bonus = state.radius * width(contexts.features, state.inverse)
        scores = torch.sigmoid(linear(contexts.features, state.theta)) + bonus
        return choose(scores, contexts, draws.uniform("ties", contexts.shape[1]))[..., None]

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        phi = contexts.features_of(actions)[:, :, 0]
        if state.setting.contexts is None:
            state.features = torch.cat([state.features, phi], dim=1)
            state.wins = torch.cat([state.wins, feedback], dim=1)
            state.count = torch.cat([state.count, torch.ones_like(feedback)], dim=1)
        else:
            assert contexts.index is not None
            cell = contexts.index * state.setting.n_actions + actions[..., 0]
            state.wins.scatter_add_(1, cell, feedback)
            state.count.scatter_add_(1, cell, torch.ones_like(feedback))
        state.gram = state.gram + phi.mT @ phi
        eye = torch.eye(phi.shape[-1], dtype=phi.dtype, device=phi.device)
        state.inverse = torch.cholesky_inverse(torch.linalg.cholesky(state.gram + self.ridge * eye))
        state.n += feedback.shape[1]
        if state.n >= (1 + self.refit_growth) * state.n_fitted:
            state.n_fitted = state.n
            ball = state.setting.theta_bound
            fit = logistic_mle(state.features, state.wins, state.count, ridge=self.ridge, ball=ball, start=state.theta)
            state.theta, state.residual = fit.theta, fit.residual
        state.radius = self._radius(state)
        return state, Info(state.theta, state.gram, state.n, state.residual, radius=state.radius)

    def policy(self, state: _State) -> Policy:
        return GreedyPolicy(state.theta)

    def _radius(self, state: _State) -> float:
        if not isinstance(self.radius, str):
            return self.radius
        if self.radius == "tuned":
            return 1.0
        d = state.theta.shape[-1]
        S = norm_bound(state.setting)
        noise = 0.5 * math.sqrt(d * math.log(1 + state.n / (d * self.ridge)) + 2 * math.log(1 / DELTA))
        return 0.25 / curvature(S) * (noise + math.sqrt(self.ridge) * S)

    def _check_norms(self, state: _State, contexts: Contexts | None) -> None:
        if self.radius == "theory" and contexts is not None and not state.warned:
            state.warned = warn_of_norms(contexts, 1.0, "radius")
