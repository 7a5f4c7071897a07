"""Gibbs sampling from human feedback: KL-regularised preference learning with a linear reward, offline, online, hybrid.

Source: Xiong et al. 2024 (2312.11456, ICML 2024); online algorithm and theorem as restated in RLHF Workflow
(2405.07863), Algorithm 1 and Theorem 1; offline options and the reference vector nu from the authors' alignment guide.
The papers' eta is `kl_coef` of the problem, beta is `radius`, lambda is `covariance_ridge`, and B is `ball`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.draws import Round
from simbandit.estimators import Radius, RewardModel, batched_product, confidence_radius, curvature, width
from simbandit.policies import LogLinear, Reference, Rows, argmax, tabulate
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

LARGEST_TILT = 50.0  # nats: beyond it a tilt is deterministic to 1e-20
Enhancer = Literal["kl_ball", "pointwise", "best_worst_of_n", "self", "reference"]


@dataclass
class _State:
    setting: Setting
    model: RewardModel
    main: Policy
    enhancer: Policy
    inverse: Tensor
    radius: float
    direction: Tensor  # (R, d) and size (R,): the enhancer's tilt of the last round, where the next search starts
    size: Tensor


@dataclass(frozen=True)
class GSHF:
    """Online and hybrid GSHF: a main agent that is greedy in the MLE, and an enhancer that plays for information.

    Objective: J(pi) = E[r] - kl_coef KL(pi || pi_ref). Each round (RLHF Workflow, Algorithm 1), theta = the
    ball-constrained Bradley-Terry MLE of all duels so far, Sigma = covariance_ridge I + (1/m) sum z z' and

        main agent  pi1 = pi_ref exp(<theta, phi> / kl_coef) / Z
        enhancer    pi2 = argmax of Gamma(pi') = radius || E_x[phi(x, pi') - phi(x, pi1)] ||_{Sigma^-1}
                          over { pi' : kl_coef E_x KL(pi' || pi1) <= Gamma(pi') }            (enhancer="kl_ball")

    then m duels with a1 ~ pi1, a2 ~ pi2. Guarantee (Theorem 1): for ||phi|| <= 1, ||theta*|| <= B, Bradley-Terry labels
    and m = O~(d / eps^2), some round t0 <= O~(d) has J(pi*) - J(pi1_t0) + kl_coef E KL(pi* || pi1_t0) <~ eps.

    enhancer: "kl_ball" as above; "pointwise": argmax_a ||phi(x, a) - phi(x, pi1)||_{Sigma^-1}, without the KL ball
        (the guide's sketch); "best_worst_of_n": the best and the worst of `n` draws of pi1 by the own MLE (what RLHF
        Workflow runs); "self": a2 ~ pi1; "reference": a2 ~ pi_ref (the hybrid variant).
    uncertainty: "ellipse", or "ensemble": Sigma^-1 becomes the covariance of `members` bootstrap fits (exponential
        weights), so Gamma is their standard deviation.
    radius: a number, "tuned" (1), or "theory": sqrt(d log(T / delta) / (gamma^2 m)), delta = .05.
    covariance: "batch_mean" (the paper: a batch of m duels contributes O(1)) or "sum" (O(m)).
    refit_growth: estimate and plan are renewed once the data have grown by this fraction: at .01 in every one of the
        first hundred rounds, then ever more rarely, so that a round's cost does not grow; 0 is every round (the paper).
    ridge: of the likelihood, sum convention. ball: bound on ||theta||; None takes the world's own, if it tells one.

    Deviations: a small ridge joins the ball, so that the MLE is unique before the data span R^d; the enhancer's search
    is local (a convex maximisation: fixed point of the stationarity condition, restarted at the top eigenvectors),
    always feasible; with fresh contexts the expectation over x is over the last batch; hybrid data enter the likelihood
    and Sigma as one more batch; `Results` of `simulate(output=Logged(...))` selects t0 by validation.
    Complexity: O(U d^2) per Newton step with U distinct pairs seen, O(X A d) per evaluation of the enhancer.
    Raises ValueError for a world without features.
    """

    enhancer: Enhancer = "kl_ball"
    uncertainty: Literal["ellipse", "ensemble"] = "ellipse"
    radius: Radius = "tuned"
    covariance: Literal["batch_mean", "sum"] = "batch_mean"
    covariance_ridge: float = 0.01
    ridge: float = 0.1
    ball: float | None = None
    n: int = 8
    members: int = 10
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "covariance_ridge"))

    @property
    def consistent(self) -> bool:
        return self.enhancer != "best_worst_of_n"  # its duels are chosen by the estimate, not i.i.d.

    def init(self, setting: Setting) -> _State:
        members = self.members if self.uncertainty == "ensemble" else 0
        model = RewardModel(setting, ridge=self.ridge, ball=self.ball, refit_growth=self.refit_growth, members=members)
        state = _State(
            setting=setting,
            model=model,
            main=Reference(),
            enhancer=Reference(),
            inverse=model.inverse(self.covariance_ridge),
            radius=_online_radius(self.radius, setting),
            direction=torch.zeros_like(model.theta),
            size=torch.zeros_like(model.theta[:, 0]),
        )
        if setting.contexts is not None:
            self._plan(state, setting.contexts)
        return state

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        B = contexts.shape[1]
        if self.enhancer == "best_worst_of_n":
            return self._best_worst(state, contexts, draws.uniform("candidates", B, self.n))
        first = state.main.sample(contexts, draws.uniform("player0", B))
        return torch.stack([first, state.enhancer.sample(contexts, draws.uniform("player1", B))], dim=-1)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        model = state.model
        weights = None
        if model.members:
            weights = -torch.log1p(-draws.uniform("bootstrap", feedback.shape[1], len(model.members)))
        if model.observe(contexts, actions, feedback, weights):
            if model.members:
                state.inverse = model.ensemble_covariance()
            else:
                scale = 1 / state.setting.batch_size if self.covariance == "batch_mean" else 1.0
                state.inverse = model.inverse(self.covariance_ridge, scale)
            self._plan(state, contexts if state.setting.contexts is None else state.setting.contexts)
        return state, model.info(state.radius)

    def policy(self, state: _State) -> Policy:
        return state.main

    def _plan(self, state: _State, contexts: Contexts) -> None:
        setting = state.setting
        gibbs = LogLinear(state.model.theta / setting.kl_coef)
        state.main = tabulate(gibbs, setting.contexts)
        if self.enhancer == "self":
            state.enhancer = state.main
        elif self.enhancer == "pointwise":
            state.enhancer = tabulate(MostUncertain(gibbs.theta, state.inverse), setting.contexts)
        elif self.enhancer == "kl_ball":
            state.direction, state.size = kl_ball_tilt(
                contexts, gibbs, state.inverse, state.radius, setting.kl_coef, state.direction, state.size
            )
            tilt = state.size[:, None] * state.direction
            state.enhancer = tabulate(LogLinear(gibbs.theta + tilt), setting.contexts)

    def _best_worst(self, state: _State, contexts: Contexts, uniforms: Tensor) -> Tensor:
        """The draws are exchangeable, so taking the first best and the last worst breaks ties at random."""
        n = uniforms.shape[-1]
        rows = state.main.log_probs(contexts).exp().cumsum(-1)
        drawn = torch.searchsorted(rows, uniforms * rows[..., -1:], right=True).clamp_max(rows.shape[-1] - 1)
        scores = torch.einsum("rbnd,rd->rbn", contexts.features_of(drawn), state.model.theta)
        tolerance = 1e-9 * scores.abs().amax(-1, keepdim=True).clamp_min(1.0)
        is_best = scores >= scores.amax(-1, keepdim=True) - tolerance
        is_worst = scores <= scores.amin(-1, keepdim=True) + tolerance
        best = is_best.to(torch.int8).argmax(-1, keepdim=True)
        worst = n - 1 - is_worst.flip(-1).to(torch.int8).argmax(-1, keepdim=True)
        return torch.cat([drawn.gather(-1, best), drawn.gather(-1, worst)], dim=-1)


@dataclass(frozen=True, eq=False)
class MostUncertain(Rows):
    """argmax_a ||phi(x, a) - phi(x, pi1)||_inverse with pi1 log-linear in theta; uniform over exact ties."""

    theta: Tensor
    inverse: Tensor

    def rows(self, contexts: Contexts) -> Tensor:
        features = contexts.features
        pi1 = LogLinear(self.theta).rows(contexts).exp()
        mean = torch.einsum("rba,rbad->rbd", pi1, features)
        return argmax(width(features - mean[:, :, None], self.inverse), contexts.ref_log_probs)


def _online_radius(radius: Radius, setting: Setting, delta: float = 0.05) -> float:
    """GSHF's beta = sqrt(d log(T / delta) / (gamma^2 m)) for the batch-mean covariance."""
    if radius != "theory":
        return confidence_radius(radius, setting, 0.0)
    low, high = setting.reward_range
    if not math.isfinite(high - low) or setting.dim is None:
        raise ValueError("radius: 'theory' needs a finite reward range; use 'tuned' or a number")
    numerator = setting.dim * math.log(max(2, setting.rounds) / delta)
    return math.sqrt(numerator / setting.batch_size) / curvature(high - low)


def kl_ball_tilt(
    contexts: Contexts,
    main: LogLinear,
    inverse: Tensor,
    radius: float,
    kl_coef: float,
    direction: Tensor,
    size: Tensor,
    *,
    iterations: int = 6,
) -> tuple[Tensor, Tensor]:
    """The enhancer as a tilt of the main agent: pi' proportional to pi1 exp(size <direction, phi>), by GSHF's
    constrained uncertainty maximisation. direction (R, d) and size (R,) of the last round (zero: none) warm-start the
    search.

    Stationarity of max Gamma subject to kl_coef KL <= Gamma makes the maximiser a tilt along v = Sigma^-1 u / ||u||,
    u = E[phi(pi') - phi(pi1)], of the largest feasible size. Each iteration evaluates one tilt and improves both: v by
    that fixed point, the size by a Newton step on kl_coef KL(s) - Gamma(s), whose slope is Var(<v, phi>) (kl_coef s -
    radius) there. The problem has many local maxima (a vertex each on one-hot features): the search starts at the best
    feasible tilt along the last direction and along those of `_starting_directions`, at three sizes each. The best
    feasible tilt that was seen is returned: the constraint always holds.
    """
    features, (R, X) = contexts.features, contexts.shape
    weights = contexts.weights if contexts.weights is not None else features.new_full((R, X), 1 / X)
    flat = features.reshape(R, -1, features.shape[-1])
    log_pi1 = main.rows(contexts)
    mean1 = batched_product((weights[..., None] * log_pi1.exp()).reshape(R, 1, -1), flat).squeeze(1)

    def evaluate(v: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """kl_coef KL - Gamma, Gamma, variance of <v, phi>, and u, at the tilt s v."""
        scores = batched_product(flat, v[..., None]).reshape(log_pi1.shape)
        p = torch.addcmul(log_pi1, scores, s[:, None, None])
        highest = p.amax(-1, keepdim=True)
        p = p.sub_(highest).exp_()
        total = p.sum(-1, keepdim=True)
        p = p.mul_(weights[..., None] / total)
        weighted = p * scores
        first, second = weighted.sum(-1), (weighted * scores).sum(-1)
        log_z = (highest + total.log()).squeeze(-1)
        kl = (s[:, None] * first - weights * log_z).sum(-1).clamp_min(0.0)
        variance = (second - first * first / weights.clamp_min(1e-300)).sum(-1).clamp_min(1e-300)
        u = batched_product(p.reshape(R, 1, -1), flat).squeeze(1) - mean1
        gamma = radius * width(u, inverse)
        return kl_coef * kl - gamma, gamma, variance, u

    longest = LARGEST_TILT / features.norm(dim=-1).amax((1, 2)).clamp_min(1e-300)
    natural = torch.full_like(size, radius / kl_coef)
    starts = [(direction, torch.where(size > 0, size, natural))]
    for v in _starting_directions(contexts, weights, log_pi1, inverse, radius, kl_coef):
        furthest = longest / v.norm(dim=-1).clamp_min(1e-300)
        starts += [(v, natural), (v, (natural * furthest).sqrt()), (v, furthest)]
    v, s, leading = direction, natural, torch.full_like(size, -1.0)
    for start, length in starts:
        excess, gamma, _, _ = evaluate(start, length)
        ahead = (excess <= 0) & (gamma > leading)
        v, s = torch.where(ahead[:, None], start, v), torch.where(ahead, length, s)
        leading = torch.where(ahead, gamma, leading)
    best_v, best_s, best_gamma = v, torch.zeros_like(s), torch.zeros_like(s)
    for i in range(iterations + 30):
        s = s.minimum(longest / v.norm(dim=-1).clamp_min(1e-300))
        excess, gamma, variance, u = evaluate(v, s)
        feasible = excess <= 0
        better = feasible & (gamma > best_gamma)
        best_v, best_s = torch.where(better[:, None], v, best_v), torch.where(better, s, best_s)
        best_gamma = torch.where(better, gamma, best_gamma)
        if i + 1 >= iterations:  # a tilt small enough is always feasible
            if bool((feasible | (best_s > 0) | (gamma == 0)).all()):
                break
            s = s / 2
            continue
        newton = s - 1.01 * excess / (variance * (kl_coef * s - radius))
        usable = (kl_coef * s > radius) & (newton > 0)
        s = torch.where(usable, newton.clamp(0.5 * s, 2 * s), torch.where(feasible, 2 * s, s / 2))
        uncertainty = width(u, inverse)[:, None]
        step = batched_product(u[:, None], inverse).squeeze(1) / uncertainty.clamp_min(1e-300)
        v = torch.where(uncertainty > 0, step, v)
    return best_v, best_s


def _starting_directions(
    contexts: Contexts, weights: Tensor, log_pi1: Tensor, inverse: Tensor, radius: float, kl_coef: float
) -> list[Tensor]:
    """Directions (R, d) of a tilt: both signs of the one along which the offered actions differ most in the norm of
    Sigma^-1 (the top eigenvector of Sigma^-1 alone may be one along which no two actions differ, as (1, ..., 1) on
    one-hot features), and the one towards each context's most uncertain action among those that satisfy the constraint
    there, kl_coef * -log pi1(a|x) <= radius * width."""
    features, offered = contexts.features, ~torch.isneginf(contexts.ref_log_probs)
    R, d = features.shape[0], features.shape[-1]
    flat = features.reshape(R, -1, d)
    even = offered.to(features.dtype) / offered.sum(-1, keepdim=True)
    mean = torch.einsum("rxa,rxad->rxd", even, features)
    spread = (flat * (weights[..., None] * even).reshape(R, -1, 1)).mT @ flat - (mean * weights[..., None]).mT @ mean
    values, vectors = torch.linalg.eigh(inverse)
    root = vectors * values.clamp_min(0.0).sqrt()[:, None]
    top = (root @ torch.linalg.eigh(root.mT @ spread @ root).eigenvectors[..., -1:]).squeeze(-1)
    away = features - torch.einsum("rxa,rxad->rxd", log_pi1.exp(), features)[:, :, None]
    widths = width(away, inverse)
    widths = torch.where(offered & (-kl_coef * log_pi1 <= radius * widths), widths, -torch.inf)
    widest = (widths >= widths.amax(-1, keepdim=True) - 1e-9).to(torch.int8).argmax(-1)
    u = torch.einsum("rx,rxd->rd", weights, away.gather(2, widest[..., None, None].expand(-1, -1, 1, d)).squeeze(2))
    toward = (inverse @ u[..., None]).squeeze(-1) / width(u[:, None], inverse).clamp_min(1e-300)
    return [top, -top, toward]
