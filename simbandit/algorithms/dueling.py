"""Contextual dueling bandits with a linear reward: which pair to show, from an estimate and the widths of all pairs.

theta_t is the ball-constrained Bradley-Terry MLE of all duels so far, width_ij = ||phi_i - phi_j|| in the inverse of V
= ridge I + sum z z' ("gram") or of the Hessian H = ridge I + sum sigma'(<theta_t, z>) z z' ("hessian"), for all pairs
by the Gram trick G_ii + G_jj - 2 G_ij. `policy(state)`: greedy in theta_t. Regrets of a duel by name: `average_regret`
(= `reward_regret`, halved), `weak_regret`, `strong_regret`, `summed_regret` (not halved: VACDB, FGTS.CDB).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.bandits import DELTA, norm_bound
from simbandit.algorithms.checks import check, warn_of_norms
from simbandit.algorithms.choosing import GreedyPolicy, choose, choose_pair
from simbandit.draws import Round
from simbandit.estimators import RewardModel, curvature, pair_widths, rank_one_inverse, weighted_gram, width
from simbandit.least_squares import linear
from simbandit.policies import Uniform
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

Matrix = Literal["gram", "hessian"]
DuelRadius = Literal["tuned", "theory", "code"] | float


@dataclass
class DuelState:
    """model: the MLE and its data; inverse (R, d, d) of V or H; n: duels so far."""

    setting: Setting
    model: RewardModel
    inverse: Tensor
    radius: float
    n: int = 0
    warned: bool = False


def start(setting: Setting, *, ridge: float, matrix_ridge: float, ball: float | None, refit_growth: float) -> DuelState:
    model = RewardModel(setting, ridge=ridge, ball=ball, refit_growth=refit_growth)
    return DuelState(setting, model, model.inverse(matrix_ridge), 0.0)


def observe(
    state: DuelState, contexts: Contexts, actions: Tensor, feedback: Tensor, matrix: Matrix, matrix_ridge: float
) -> None:
    """Learns a batch of duels: the MLE by its schedule, the inverse at once. A refit moves every weight of the Hessian,
    which is then summed anew over the distinct pairs; in between a new duel enters with its present weight."""
    model = state.model
    refitted = model.observe(contexts, actions, feedback)
    state.n += feedback.shape[1]
    phi = contexts.features_of(actions)
    z = phi[:, :, 0] - phi[:, :, 1]
    if matrix == "gram" and z.shape[1] > z.shape[2]:
        state.inverse = model.inverse(matrix_ridge)
        return
    if matrix == "hessian":
        if refitted:
            state.inverse = hessian_inverse(model, matrix_ridge)
            return
        p = torch.sigmoid((z * model.theta[:, None]).sum(-1, keepdim=True))
        z = z * (p * (1 - p)).sqrt()
    for b in range(z.shape[1]):
        rank_one_inverse(state.inverse, z[:, b])


def hessian_inverse(model: RewardModel, ridge: float) -> Tensor:
    """(ridge I + sum sigma'(<theta, z>) z z')^-1 over the distinct pairs seen."""
    assert model.duels is not None
    z, count = model.duels.differences, model.duels.count
    p = torch.sigmoid((z * model.theta[:, None]).sum(-1))
    hessian = weighted_gram(z, count * p * (1 - p))
    hessian.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian))


def duel_radius(radius: DuelRadius, state: DuelState, ridge: float, matrix: Matrix) -> float:
    """ "tuned": 1; "code": 2 sqrt(d log T), what the released code of VACDB runs its baselines with; "theory": sqrt(d/2
    log(1 + 2 t / (d ridge)) + log(1 / delta)) / kappa in the norm of V (Saha 2021, Lemma 1; kappa the smallest slope of
    the link), sqrt(ridge) S plus the same root without kappa in that of H (self-concordance; constants set to 1)."""
    setting = state.setting
    if not isinstance(radius, str):
        return radius
    if radius == "tuned":
        return 3.0 if matrix == "gram" else 1.5
    assert setting.dim is not None
    d = setting.dim
    if radius == "code":
        return 2 * math.sqrt(d * math.log(max(2, setting.rounds * setting.batch_size)))
    root = math.sqrt(d / 2 * math.log(1 + 2 * state.n / (d * ridge)) + math.log(1 / DELTA))
    if matrix == "hessian":
        return root + math.sqrt(ridge) * norm_bound(setting)
    low, high = setting.reward_range
    if not math.isfinite(high - low):
        raise ValueError("radius: 'theory' needs a finite reward range; use 'tuned' or a number")
    return root / curvature(high - low)


def check_norms(radius: DuelRadius, state: DuelState, contexts: Contexts | None) -> None:
    """The theory's radius assumes ||phi|| <= 1: warns once where features are longer."""
    if radius == "theory" and contexts is not None and not state.warned:
        state.warned = warn_of_norms(contexts, 1.0, "radius")


@dataclass(frozen=True)
class PairUCB:
    """MaxInP, MaxPairUCB and GINOP: an optimistic pair from scores mu_i = <theta_t, phi_i> and widths.

    rule "max_informative" (registry name `maxinp`; Saha 2021, 2111.12306, Algorithm 1): among the promising actions C =
        {i : mu_i - mu_j + radius width_ij >= 0 for all j}, the pair of the largest width.
    rule "sum" (`maxpairucb`; Di et al. 2023, 2310.00968, section 4 and its code): argmax over all pairs, an action with
        itself among them, of mu_i + mu_j + radius width_ij.
    `ginop` is "max_informative" with matrix="hessian": confidence that knows the curvature where the estimate is, so
        that the radius loses the factor 1 / kappa. Its paper was seen only as described by others; its rule for the
        pair is taken to be MaxInP's.
    Guarantee (Saha 2021, Theorem 2), Bradley-Terry labels, ||phi||, ||theta*|| <= 1, theory radius: `average_regret`
    O~((d / kappa) sqrt(T)). radius: see `duel_radius`. Deviations: a ridge and the world's ball instead of a random
    warm-up of t_0 rounds; refits when the data have grown by `refit_growth` (0: every round, the papers). Complexity
    O(A d^2 + A^2 d) per context to select, O(d^2) to learn between refits, O(U d^2) a Newton step with U distinct
    pairs. Raises ValueError for a world without features, or "theory" without a finite range; "theory" warns of
    features longer than 1.
    """

    rule: Literal["max_informative", "sum"] = "max_informative"
    matrix: Matrix = "gram"
    radius: DuelRadius = "tuned"
    ridge: float = 0.1
    matrix_ridge: float = 1.0
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "matrix_ridge"))

    @property
    def consistent(self) -> bool:
        return False  # greedy in the unregularised reward

    def init(self, setting: Setting) -> DuelState:
        state = start(
            setting, ridge=self.ridge, matrix_ridge=self.matrix_ridge, ball=self.ball, refit_growth=self.refit_growth
        )
        state.radius = duel_radius(self.radius, state, self.matrix_ridge, self.matrix)
        check_norms(self.radius, state, setting.contexts)
        return state

    def select(self, state: DuelState, contexts: Contexts, draws: Round) -> Tensor:
        if state.setting.contexts is None:
            check_norms(self.radius, state, contexts)
        phi = contexts.features
        mu, widths = linear(phi, state.model.theta), pair_widths(phi, state.inverse)
        if self.rule == "sum":
            scores = mu[..., :, None] + mu[..., None, :] + state.radius * widths
        else:
            beaten = mu[..., :, None] - mu[..., None, :] + state.radius * widths < 0
            absent = contexts.ref_log_probs == -torch.inf
            promising = ~(beaten & ~absent[..., None, :]).any(-1)
            scores = torch.where(promising[..., :, None] & promising[..., None, :], widths, -1.0)
        return choose_pair(scores, contexts, draws.uniform("ties", contexts.shape[1]))

    def update(
        self, state: DuelState, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[DuelState, Info]:
        del draws
        observe(state, contexts, actions, feedback, self.matrix, self.matrix_ridge)
        state.radius = duel_radius(self.radius, state, self.matrix_ridge, self.matrix)
        return state, state.model.info(state.radius)

    def policy(self, state: DuelState) -> Policy:
        return GreedyPolicy(state.model.theta)


@dataclass(frozen=True)
class CoLSTIM:
    """CoLSTIM: the first action wins a perturbed contest, the second is its most optimistic rival.

        first  = argmax_i <theta_t, phi_i> + e_i ||phi_i||_{V^-1},  e_i ~ Gumbel clipped to +- threshold
        second = argmax_j <theta_t, phi_j - phi_first> + radius width_{j,first}

    Bengs, Saha, Huellermeier 2022 (2202.04593), Algorithm 1. With probability p_t all e_i are one common number.
    coupling: "paper", p_t = min(1, sqrt(d log(d T) / t)); "code", min(1, d log(d T) / sqrt(t)), as in the code released
        with VACDB (the logarithm outside the root: it stays above .78 up to T = 4,000 at d = 5); "never".
    threshold: None is sqrt(d log T). warm_up: rounds of uniform pairs before (None: none; the paper takes d A).
    Guarantee (Theorem 1), linear stochastic transitivity, a positive smallest eigenvalue of the contexts' design:
    regret O~(d sqrt(T)). Deviations: ridge and ball; `refit_growth`. Complexity as `PairUCB`, without the A^2 term.
    Raises ValueError for a world without features.
    """

    radius: DuelRadius = "tuned"
    coupling: Literal["paper", "code", "never"] = "paper"
    threshold: float | None = None
    warm_up: int | None = None
    ridge: float = 0.1
    matrix_ridge: float = 1.0
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "matrix_ridge"))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> DuelState:
        state = start(
            setting, ridge=self.ridge, matrix_ridge=self.matrix_ridge, ball=self.ball, refit_growth=self.refit_growth
        )
        state.radius = duel_radius(self.radius, state, self.matrix_ridge, "gram")
        check_norms(self.radius, state, setting.contexts)
        return state

    def select(self, state: DuelState, contexts: Contexts, draws: Round) -> Tensor:
        setting, B = state.setting, contexts.shape[1]
        assert setting.dim is not None
        if setting.contexts is None:
            check_norms(self.radius, state, contexts)
        if self.warm_up is not None and draws.t < self.warm_up:
            return torch.stack([Uniform().sample(contexts, draws.uniform(f"player{i}", B)) for i in (0, 1)], dim=-1)
        T = max(2, setting.rounds * setting.batch_size)
        threshold = math.sqrt(setting.dim * math.log(T)) if self.threshold is None else self.threshold
        gumbel = -(-draws.uniform("gumbel", B, setting.n_actions).log()).log()
        common = draws.uniform("coupled", B) < self._coupled(setting.dim, T, state.n + 1)
        noise = torch.where(common[..., None], gumbel[..., :1], gumbel).clamp(-threshold, threshold)
        phi = contexts.features
        mu = linear(phi, state.model.theta)
        first = choose(mu + noise * width(phi, state.inverse), contexts, draws.uniform("ties", B))
        away = phi - contexts.features_of(first[..., None])
        rival = mu + state.radius * width(away, state.inverse)
        return torch.stack([first, choose(rival, contexts, draws.uniform("ties/second", B))], dim=-1)

    def update(
        self, state: DuelState, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[DuelState, Info]:
        del draws
        observe(state, contexts, actions, feedback, "gram", self.matrix_ridge)
        state.radius = duel_radius(self.radius, state, self.matrix_ridge, "gram")
        return state, state.model.info(state.radius)

    def policy(self, state: DuelState) -> Policy:
        return GreedyPolicy(state.model.theta)

    def _coupled(self, d: int, T: int, t: int) -> float:
        if self.coupling == "never":
            return 0.0
        growth = math.log(d * T)
        return min(1.0, math.sqrt(d * growth / t) if self.coupling == "paper" else d * growth / math.sqrt(t))
