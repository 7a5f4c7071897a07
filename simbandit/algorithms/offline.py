"""Learning from logged data alone: pessimism with a linear reward, and rejection sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.draws import Round
from simbandit.estimators import Radius, RewardModel, confidence_radius, curvature, width
from simbandit.policies import (
    Elliptical,
    LogLinear,
    Reference,
    Tabular,
    argmax,
    multi_step_rejection,
    tabulate,
)
from simbandit.solvers import Local, minimise, newton_local
from simbandit.types import Contexts, Feedback, Info, Policy, Setting


@dataclass
class _State:
    setting: Setting
    model: RewardModel
    policy: Policy


def _start(setting: Setting, *, ridge: float, ball: float | None) -> _State:
    return _State(setting, RewardModel(setting, ridge=ridge, ball=ball), Reference())


def _unplayed(contexts: Contexts, draws: Round) -> Tensor:
    del contexts, draws
    raise TypeError("an offline algorithm learns from logged data and selects nothing")


def _law(contexts: Contexts) -> Tensor:
    R, X = contexts.shape
    return contexts.ref_log_probs.new_full((R, X), 1 / X) if contexts.weights is None else contexts.weights


@dataclass(frozen=True)
class GSHFOffline:
    """Offline GSHF: pessimism in the face of logged duels.

    Objective: J(pi) = E[r] - kl_coef KL(pi || pi_ref), from duels alone. theta = ball-constrained MLE, Sigma = ridge I
    + sum z z', nu = E_{x, a ~ pi_ref} phi (a reference vector: duels identify reward differences only). Output

        option "policy" (I): argmax <theta, E_pi phi> - radius ||E_pi phi - nu||_{Sigma^-1} - kl_coef KL(pi || pi_ref)
        option "pointwise" (II): Gibbs policy of <theta, phi(x, a)> - radius ||phi(x, a) - nu||_{Sigma^-1}

    Source: 2312.11456, section 4 (Options I and II); the authors' guide, Theorem 1, for Option II:
    kl_coef KL(pi || pi_hat) + J(pi) - J(pi_hat) <~ sqrt(d) E_pi ||phi - nu||_{Sigma^-1} for every comparator pi,
    w.h.p., under ||phi|| <= 1, ||theta*|| <= B and Bradley-Terry labels. Option I: the norm of the expectation, no KL
    on the left.

    Option I is solved by its dual, min over theta' in the confidence ellipsoid of kl_coef E log Z(theta') - <theta',
    nu> (the reward that is worst within the set), a smooth convex problem in d dimensions: Newton within a ball.
    radius: a number, "tuned" (1), or "theory" (sqrt((d + log 1/delta) / gamma^2 + ridge B^2), constant 1).
    Deviations: a ridge in the likelihood; with fresh contexts E_x is over the logged contexts ("use the sample mean in
    practice", the guide). Complexity: one MLE, then O(X A d^2) per Newton step (I) or once (II).
    Raises ValueError for a world without features.
    """

    option: Literal["policy", "pointwise"] = "pointwise"
    radius: Radius = "tuned"
    ridge: float = 0.1
    ball: float | None = None

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, positive=("ball", "ridge"))

    @property
    def consistent(self) -> bool:
        return True

    def init(self, setting: Setting) -> _State:
        return _start(setting, ridge=self.ridge, ball=self.ball)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        del state
        return _unplayed(contexts, draws)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        setting, model = state.setting, state.model
        model.observe(contexts, actions, feedback)
        radius = confidence_radius(self.radius, setting, self.ridge)
        inverse = model.inverse(self.ridge)
        known = contexts if setting.contexts is None else setting.contexts
        law = _law(known)[..., None] * known.ref_log_probs.exp()
        nu = torch.einsum("rxa,rxad->rd", law, known.features)
        if self.option == "pointwise":
            pessimistic = Elliptical(model.theta, inverse, torch.full_like(nu[:, 0], -radius), setting.kl_coef, nu)
        else:
            pessimistic = LogLinear(
                worst_reward(known, model.theta, inverse, radius, nu, setting.kl_coef) / setting.kl_coef
            )
        state.policy = tabulate(pessimistic, setting.contexts)
        return state, model.info(radius)

    def policy(self, state: _State) -> Policy:
        return state.policy


def worst_reward(
    contexts: Contexts, theta: Tensor, inverse: Tensor, radius: float, nu: Tensor, kl_coef: float
) -> Tensor:
    """argmin over ||theta' - theta||_Sigma <= radius of kl_coef E_x log Z(theta'/kl_coef) - <theta', nu>: (R, d).

    In theta' = theta + radius L q with L L' = Sigma^-1 the set is the unit ball. Raises RuntimeError where Newton
    stalls.
    """
    factor = radius * torch.linalg.cholesky(inverse)
    features, ref, law = contexts.features, contexts.ref_log_probs, _law(contexts)

    def local(q: Tensor) -> Local:
        reward = theta + (factor @ q[..., None]).squeeze(-1)
        logits = ref + torch.einsum("rxad,rd->rxa", features, reward) / kl_coef
        log_z = torch.logsumexp(logits, -1)
        p = (logits - log_z[..., None]).exp()
        mean = torch.einsum("rxa,rxad->rxd", p, features)
        value = kl_coef * (law * log_z).sum(-1) - (reward * nu).sum(-1)
        gradient = torch.einsum("rx,rxd->rd", law, mean) - nu

        def hessian() -> Tensor:
            weighted = (features * (p * law[..., None])[..., None]).flatten(1, 2)
            covariance = weighted.mT @ features.flatten(1, 2) - (mean * law[..., None]).mT @ mean
            return factor.mT @ covariance @ factor / kl_coef

        return newton_local(value, (factor.mT @ gradient[..., None]).squeeze(-1), hessian, q, 1.0)

    solution = minimise(local, torch.zeros_like(theta), tolerance=1e-9 * max(1.0, radius))
    if not bool(solution.converged.all()):
        raise RuntimeError(f"pessimistic reward: Newton stopped at residual {float(solution.residual.max()):.1e}")
    return theta + (factor @ solution.argmin[..., None]).squeeze(-1)


@dataclass(frozen=True)
class PessimisticMLE:
    """Pessimistic MLE of Zhu, Jordan, Jiao 2023 (2301.11270), Algorithm 1: unregularised reward, deterministic
    policies.

        pi_hat = argmax_pi <theta, E_x[phi(x, pi(x))] - v> - f ||E_x[phi(x, pi(x))] - v||_{(Sigma_D + lambda I)^-1}

    with the ball-constrained MLE theta, Sigma_D = (1/n) sum z z' (of n rankings: the mean over all their pairs) and
    f = sqrt((d + log 1/delta) / (gamma^2 n) + lambda B^2) (Lemma 3.1, constant 1; gamma from the largest reward
    difference). Guarantee (Theorem 3.2): the gap of reward is at most 2 f ||E[phi(x, pi*(x))] - v||, where greedy MLE
    can lose a constant for ever (Theorem 3.9). kl_coef plays no part.

    radius: "theory" as above; "tuned": the same without 1 / gamma; or a number f. covariance_ridge: lambda; None is
    1/n, which is needed for consistency (a fixed lambda leaves a radius of sqrt(lambda) B).
    v: "zero", "data" (the mean feature of the logged actions), "reference" (the mean feature of pi_ref), or a vector.
    It matters more than the radius: v should make phi(pi*) - v lie in directions that the data cover.
    Deviations: with more than one context the maximisation over deterministic policies is by coordinate ascent (one
    context at a time, from the greedy policy), exact for one context. The likelihood may carry a `ridge`.
    Complexity: O(X A d^2) per change of a context's action. Raises ValueError with fresh contexts or without features.
    """

    radius: Radius = "theory"
    v: Literal["zero", "data", "reference"] | tuple[float, ...] = "zero"
    covariance_ridge: float | None = None
    ridge: float = 1e-6
    ball: float | None = None
    delta: float = 0.05

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference", "ranking")
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, positive=("ball", "covariance_ridge", "delta"), signed=("v",))

    @property
    def consistent(self) -> bool:
        return False  # for the KL objective: its target is the unregularised optimum

    def init(self, setting: Setting) -> _State:
        if setting.contexts is None:
            raise ValueError("world: pessimistic_mle searches over deterministic policies and needs a finite world")
        return _start(setting, ridge=self.ridge, ball=self.ball)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        del state
        return _unplayed(contexts, draws)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        model, pool, n = state.model, state.setting.contexts, feedback.shape[1]
        assert pool is not None
        model.observe(contexts, actions, feedback)
        penalty = 1 / n if self.covariance_ridge is None else self.covariance_ridge
        radius = self._radius(state.setting, n, penalty)
        v = self._centre(pool, contexts, actions)
        chosen = pessimistic_actions(pool, model.theta, model.inverse(penalty, 1 / model.observations), radius, v)
        scores = torch.zeros_like(pool.ref_log_probs).scatter(-1, chosen[..., None], 1.0)
        state.policy = Tabular(argmax(scores, pool.ref_log_probs))
        return state, model.info(radius)

    def policy(self, state: _State) -> Policy:
        return state.policy

    def _radius(self, setting: Setting, n: int, penalty: float) -> float:
        if not isinstance(self.radius, str):
            return float(self.radius)
        low, high = setting.reward_range
        bound = setting.theta_bound if self.ball is None else self.ball
        if not math.isfinite(high - low) or bound is None:
            raise ValueError(
                "radius: 'theory' and 'tuned' need a reward range and a bound on ||theta||; give a number or `ball`"
            )
        assert setting.dim is not None
        gamma = curvature(high - low) if self.radius == "theory" else 1.0
        return math.sqrt((setting.dim + math.log(1 / self.delta)) / (gamma**2 * n) + penalty * bound**2)

    def _centre(self, pool: Contexts, contexts: Contexts, actions: Tensor) -> Tensor:
        R, d = pool.features.shape[0], pool.features.shape[-1]
        if isinstance(self.v, tuple):
            if len(self.v) != d:
                raise ValueError(f"v: must have the features' dimension {d}, got {len(self.v)} numbers")
            return torch.tensor(self.v, dtype=torch.float64, device=pool.features.device).expand(R, d)
        if self.v == "data":
            return contexts.features_of(actions).mean((1, 2))
        if self.v == "reference":
            return torch.einsum("rx,rxa,rxad->rd", _law(pool), pool.ref_log_probs.exp(), pool.features)
        return torch.zeros(R, d, dtype=torch.float64, device=pool.features.device)


def pessimistic_actions(pool: Contexts, theta: Tensor, inverse: Tensor, radius: float, v: Tensor) -> Tensor:
    """(R, X) actions that maximise <theta, u> - radius ||u||_inverse, u = E_x[phi(x, a_x)] - v, by steepest coordinate
    ascent: the one change of one context that gains most, until none gains more than 1e-9."""
    features, law = pool.features, _law(pool)
    offered = ~torch.isneginf(pool.ref_log_probs)
    R, X, A = offered.shape
    greedy = torch.where(offered, torch.einsum("rxad,rd->rxa", features, theta), -torch.inf)
    chosen = _near_best(greedy).argmax(-1)
    replicate, every = torch.arange(R, device=theta.device), torch.arange(X, device=theta.device)

    def pessimistic(u: Tensor) -> Tensor:
        return torch.einsum("r...d,rd->r...", u, theta) - radius * width(u, inverse)

    for _ in range(100 * X):
        held = features[replicate[:, None], every, chosen]
        u = torch.einsum("rx,rxd->rd", law, held) - v
        options = u[:, None, None] + law[..., None, None] * (features - held[:, :, None])
        value = torch.where(offered, pessimistic(options), -torch.inf).flatten(1)
        gains = value.amax(-1) > pessimistic(u) + 1e-9
        if not gains.any():
            return chosen
        best = _near_best(value).argmax(-1)
        chosen[replicate[gains], best[gains] // A] = best[gains] % A
    raise RuntimeError(f"pessimistic policy: coordinate ascent still changed after {100 * X} changes")


def _near_best(values: Tensor) -> Tensor:
    """1 where a value is within 1e-9 of its row's maximum; argmax of it is the first such place."""
    return (values >= values.amax(-1, keepdim=True) - 1e-9).to(torch.int8)


@dataclass(frozen=True)
class KLPCB:
    """KL-regularised pessimistic contextual bandit: the Gibbs policy of a lower confidence bound.

        f_hat = least squares - radius ||phi||_{V^-1},   V = ridge I + sum phi phi',   output pi_ref exp(f_hat /
        kl_coef) / Z

    Source: 2502.06051 (their eta is 1 / kl_coef; their Gamma_n = beta D_F is, for a linear class, this width times
    sqrt(n)). Guarantee: O~(1 / eps) samples under single-policy concentrability of pi*, and no min-max. With duels the
    estimate is the MLE and the width that of phi(x, a) - E_{pi_ref} phi(x, .), what duels identify.
    radius: a number, "tuned" (1) or "theory". Complexity O(X A d^2). Raises ValueError for a world without features.
    """

    radius: Radius = "tuned"
    ridge: float = 1.0
    ball: float | None = None

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward", "preference")
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, positive=("ball", "ridge"))

    @property
    def consistent(self) -> bool:
        return True

    def init(self, setting: Setting) -> _State:
        return _start(setting, ridge=self.ridge, ball=self.ball)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        del state
        return _unplayed(contexts, draws)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        model, setting = state.model, state.setting
        model.observe(contexts, actions, feedback)
        radius = confidence_radius(self.radius, setting, self.ridge)
        centre = torch.zeros_like(model.theta) if setting.feedback == "reward" else None
        minus = torch.full_like(model.theta[:, 0], -radius)
        bound = Elliptical(model.theta, model.inverse(self.ridge), minus, setting.kl_coef, centre)
        state.policy = tabulate(bound, setting.contexts)
        return state, model.info(radius)

    def policy(self, state: _State) -> Policy:
        return state.policy


@dataclass(frozen=True)
class RSO:
    """Statistical rejection sampling: the Gibbs policy of the estimated reward, drawn by accepting proposals of pi_ref.

    Reward model r_hat by MLE (by ridge regression under reward feedback); output the exact law of the sampler that
    accepts a ~ pi_ref with probability exp((r_hat(a) - max r_hat) / kl_coef), at most `budget` proposals; with steps >
    1, GSHF's chain pi_ref -> pi_ref exp(r_hat / eta_1) -> ... -> pi_ref exp(r_hat / kl_coef), every step with its own
    budget.

    Sources: Liu et al. 2024 (2309.06657); multi-step: 2312.11456. As budget grows the law tends to the Gibbs policy,
    and J is then that of greedy MLE. Deviations: max r_hat is over all offered actions, not over a finite draw; the
    last stage of RSO (fitting a policy to the accepted pairs) is left out: over all policies its minimiser is the law
    itself. Complexity O(steps X A). Raises ValueError without features, with fresh contexts, or for budgets below 1.
    """

    steps: int = 1
    budget: int = 64
    ridge: float = 0.1
    ball: float | None = None

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference", "reward")
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, positive=("ball",))

    @property
    def consistent(self) -> bool:
        return False  # a finite budget leaves a bias

    def init(self, setting: Setting) -> _State:
        if setting.contexts is None:
            raise ValueError("world: rso tabulates its sampler's law and needs a finite world")
        return _start(setting, ridge=self.ridge, ball=self.ball)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        del state
        return _unplayed(contexts, draws)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        model, pool = state.model, state.setting.contexts
        assert pool is not None
        model.observe(contexts, actions, feedback)
        scores = torch.einsum("rxad,rd->rxa", pool.features, model.theta)
        law, _ = multi_step_rejection(pool.ref_log_probs, scores, state.setting.kl_coef, self.steps, self.budget)
        state.policy = Tabular(law)
        return state, model.info()

    def policy(self, state: _State) -> Policy:
        return state.policy
