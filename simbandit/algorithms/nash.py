"""Learning online from duels under general preferences, with an estimated preference: play the game it defines.

Game: J_P(pi1, pi2) = E_x[pi1' P pi2] - kl_coef KL(pi1 || pi_ref) + kl_coef KL(pi2 || pi_ref); its equilibrium pi*_P is
symmetric and unique, and max_pi2 J(pi2, pi) - 1/2 = kl_coef KL(pi || BR(pi)) is what pi loses to its best opponent.
Every algorithm here outputs the equilibrium of its estimate, solved by `equilibrium.solve` over all contexts whenever
the estimate is renewed: once the duels have grown by the fraction `refit_growth` (0: every round, the papers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.draws import Round
from simbandit.equilibrium import solve
from simbandit.estimators import width
from simbandit.policies import Reference, Tabular, Uniform, argmax
from simbandit.preferences import PreferenceModel, skew_matrix, wedge
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

Pairing = Literal["reference", "self"]


@dataclass
class _State:
    setting: Setting
    model: PreferenceModel
    main: Policy  # the equilibrium of the estimate: what is output
    second: Policy


def equilibrium_of(preference: Tensor, pool: Contexts, kl_coef: float) -> Tabular:
    solved = solve(preference, pool.ref_log_probs, kl_coef)
    if not bool(solved.converged.all()):
        raise RuntimeError(f"equilibrium: {int((~solved.converged).sum())} games did not converge")
    return Tabular(solved.log_probs)


def pool_of(setting: Setting) -> Contexts:
    assert setting.contexts is not None
    return setting.contexts


def play(first: Policy, second: Policy, contexts: Contexts, draws: Round) -> Tensor:
    B = contexts.shape[1]
    players = (first, second)
    return torch.stack([p.sample(contexts, draws.uniform(f"player{i}", B)) for i, p in enumerate(players)], dim=-1)


def _start(algorithm: NashGreedy | OELHF | NashETC, setting: Setting) -> _State:
    model = PreferenceModel(
        setting,
        ridge=algorithm.ridge,
        ball=algorithm.ball,
        rank=algorithm.rank,
        low_rank=algorithm.low_rank if isinstance(algorithm, NashETC) else "truncation",
        intercept=algorithm.intercept,
        refit_growth=algorithm.refit_growth,
    )
    return _State(setting, model, Reference(), Reference())


def _check_rank(rank: int | None) -> None:
    if rank is not None and rank % 2:
        raise ValueError(
            f"rank: a skew matrix has an even rank, so it must be an even integer >= 2 or None, got {rank}"
        )


@dataclass(frozen=True)
class NashGreedy:
    """Greedy sampling under general preferences: the equilibrium of the estimate, without a bonus.

    theta_t = maximum likelihood of the bilinear preference sigma(phi_a' Theta phi_b) on all duels so far, pi_t = pi*_P
    of P(theta_t); duels (a ~ pi_t, b ~ pi_ref) with pairing "reference" (both papers: the second player explores with a
    fixed policy, here the reference), or both from pi_t with "self" (no coverage but what the reference ratio gives).
    Sources: 2510.24700, Algorithm for general preferences (their eta is 1 / kl_coef): because log pi_t / pi_ref stays
    within 1 / kl_coef, regret O(e^(1/kl_coef) d_GP log(N_P T / delta)); 2602.23116 for the bilinear class: sum over t
    of kl_coef KL(pi_t || BR(pi_t)) is O~(d^4 (log T)^2 / (kl_coef C_min)) and O~(d^2 sqrt(T / C_min)), C_min the least
    eigenvalue of the explorer's features. Both assume the class contains P, ||phi|| <= 1.

    Deviations: a ridge in the likelihood (the papers constrain ||Theta||_F: `ball`; 2602.23116's code runs a one-pass
    Newton estimate), `refit_growth`. rank: truncates Theta (even), None keeps all. intercept: see `PreferenceModel`.
    Complexity: O(U p^2) per Newton step with U distinct pairs seen, p = d (d - 1) / 2; O(X A^3) per step of the solver.
    Raises ValueError for worlds of fresh contexts or without features, or an odd rank.
    """

    pairing: Pairing = "reference"
    ridge: float = 0.1
    ball: float | None = None
    rank: int | None = None
    intercept: bool = False
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball",))
        _check_rank(self.rank)

    @property
    def consistent(self) -> bool:
        return False  # for the Nash policy: under Bradley-Terry labels it is not the optimum of the reward

    def init(self, setting: Setting) -> _State:
        return _start(self, setting)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        return play(state.main, state.main if self.pairing == "self" else Reference(), contexts, draws)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        if state.model.observe(contexts, actions, feedback):
            state.main = equilibrium_of(state.model.table(), pool_of(state.setting), state.setting.kl_coef)
        return state, state.model.info()

    def policy(self, state: _State) -> Policy:
        return state.main


@dataclass(frozen=True)
class OELHF:
    """Online equilibrium learning from human feedback: a main agent that plays the equilibrium of the estimate, and an
    enhancer that plays where the estimate is least certain against it.

    Each round: P_t = maximum likelihood; main agent pi1 = pi*_{P_t}; enhancer, with enhancer="uncertainty",

        pi2 = argmax over all policies of Gamma(pi1, pi2) = sup_P |E_x (P - P_t)(pi1, pi2)| / sqrt(lambda + (1/m) sum
              (P - P_t)^2)  =  || E_x psi(x, pi1, pi2) ||_{Sigma^-1},   Sigma = covariance_ridge I + (1/m) sum psi psi'

    in the bilinear class, psi(x, pi1, pi2) = phi(x, pi1) ^ phi(x, pi2) (the link's slope is a common factor); then m
    duels with a ~ pi1, b ~ pi2. Source: 2402.07314, online section (their 1 / eta is kl_coef). Guarantee (Theorem 2):
    with m = O~(T log|P| / eps^2) some round t0 <= T of the order of the eluder coefficient has 1/2 - min_pi2 J(pi1_t0,
    pi2) <= eps. `simulate(output=Logged(...))` selects a round by validation.

    Gamma^2 is convex in pi2, so a deterministic pi2 attains the maximum: found exactly with one context; with several
    by ascent (every context takes the action that is best for the linearised Gamma, which never decreases it) from the
    pointwise choice, both ends of the widest direction, and the last round's choice: a local maximum.
    enhancer: "uncertainty" as above; "pointwise": argmax_b ||psi(x, pi1, b)||_{Sigma^-1} in each context on its own;
        "reference": pi2 = pi_ref (then OELHF is `NashGreedy`); "self": pi2 = pi1.
    covariance: "batch_mean" (the paper, a batch contributes O(1)) or "sum".

    Deviations: a ridge in the likelihood; hybrid data enter Sigma as one more batch. ball bounds ||Theta||_F. rank,
    intercept, complexity and errors as `NashGreedy`, and O(X A p) per ascent step, O(X A p^2) per plan.
    """

    enhancer: Literal["uncertainty", "pointwise", "reference", "self"] = "uncertainty"
    covariance: Literal["batch_mean", "sum"] = "batch_mean"
    covariance_ridge: float = 0.01
    ridge: float = 0.1
    ball: float | None = None
    rank: int | None = None
    intercept: bool = False
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "covariance_ridge"))
        _check_rank(self.rank)

    @property
    def consistent(self) -> bool:
        return False  # for the Nash policy: under Bradley-Terry labels it is not the optimum of the reward

    def init(self, setting: Setting) -> _State:
        state = _start(self, setting)
        self._plan(state)
        return state

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        return play(state.main, state.second, contexts, draws)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        if state.model.observe(contexts, actions, feedback):
            self._plan(state)
        return state, state.model.info()

    def policy(self, state: _State) -> Policy:
        return state.main

    def _plan(self, state: _State) -> None:
        setting, model, pool = state.setting, state.model, pool_of(state.setting)
        state.main = equilibrium_of(model.table(), pool, setting.kl_coef)
        if self.enhancer == "self":
            state.second = state.main
        elif self.enhancer != "reference":
            scale = 1 / setting.batch_size if self.covariance == "batch_mean" else 1.0
            inverse = model.inverse(self.covariance_ridge, scale)
            pi1 = state.main.log_probs(pool)
            if self.enhancer == "pointwise":
                widths = width(_deviations(model.features, pi1), inverse)
                state.second = Tabular(argmax(widths, pool.ref_log_probs))
            else:
                state.second = Tabular(information_ratio_maximiser(pool, model.features, pi1, inverse, state.second))


def _deviations(features: Tensor, log_pi1: Tensor) -> Tensor:
    """psi(x, pi1, b) = phi(x, pi1) ^ phi(x, b), (R, X, A, p)."""
    mean = torch.einsum("rxa,rxad->rxd", log_pi1.exp(), features)
    return wedge(mean[:, :, None].expand_as(features), features)


def information_ratio_maximiser(
    pool: Contexts, features: Tensor, log_pi1: Tensor, inverse: Tensor, last: Policy, *, iterations: int = 50
) -> Tensor:
    """argmax over pi2 of || E_x psi(x, pi1, pi2) ||_inverse as log-probabilities (R, X, A): see `OELHF`. Ties between
    actions are uniform. features (R, X, A, d) may be the pool's with an intercept; inverse (R, p, p)."""
    offered = ~torch.isneginf(pool.ref_log_probs)
    R, X = log_pi1.shape[:2]
    weights = log_pi1.new_full((R, X), 1 / X) if pool.weights is None else pool.weights
    mean = torch.einsum("rxa,rxad->rxd", log_pi1.exp(), features)
    psi = _deviations(features, log_pi1)

    def scores(v: Tensor) -> Tensor:
        """<v, psi(x, pi1, b)>, (R, X, A), without psi."""
        forward = (mean @ skew_matrix(v))[..., None]
        return (features @ forward).squeeze(-1)

    def value(pi2: Tensor) -> tuple[Tensor, Tensor]:
        """Gamma^2 (R,) and half its gradient's direction Sigma^-1 u."""
        u = torch.einsum("rx,rxa,rxap->rp", weights, pi2, psi)
        v = (inverse @ u[..., None]).squeeze(-1)
        return (u * v).sum(-1), v

    def toward(v: Tensor) -> Tensor:
        return argmax(scores(v), pool.ref_log_probs).exp()

    even = offered.to(psi.dtype) / offered.sum(-1, keepdim=True)
    spread = torch.einsum("rx,rxa,rxap,rxaq->rpq", weights, even, psi, psi)
    root = torch.linalg.cholesky(inverse)
    widest = (root @ torch.linalg.eigh(root.mT @ spread @ root).eigenvectors[..., -1:]).squeeze(-1)
    pointwise = argmax(width(psi, inverse), pool.ref_log_probs).exp()
    starts = [pointwise, toward(widest), toward(-widest), last.log_probs(pool).exp()]
    best, top = pointwise, torch.full((R,), -1.0, dtype=psi.dtype, device=psi.device)
    for pi2 in starts:
        here, v = value(pi2)
        for _ in range(iterations):
            following = toward(v)
            there, direction = value(following)
            climbs = there > here * (1 + 1e-9)
            if not climbs.any():
                break
            pi2 = torch.where(climbs[:, None, None], following, pi2)
            here, v = torch.where(climbs, there, here), torch.where(climbs[:, None], direction, v)
        ahead = here > top * (1 + 1e-9)
        best, top = torch.where(ahead[:, None, None], pi2, best), torch.where(ahead, here, top)
    return best.log()


@dataclass(frozen=True)
class NashETC:
    """Explore, then commit, with a low-rank preference.

    For the first rounds both actions come from a fixed explorer; Theta_hat = maximum likelihood within `rank` = 2r
    (`low_rank.low_rank_mle`, from the truncated full-rank estimate; low_rank="truncation" stops there); from then on
    both come from the equilibrium of Theta_hat, and nothing more is learnt. Source: 2602.23116: with the nuclear-norm
    MLE, regret O~(C_min^-2 sqrt(r T / kl_coef)) after about sqrt(T) rounds of exploration and O~(r^(1/3) C_min^(-4/3)
    T^(2/3)) after T^(2/3), without a power of d but for C_min (||phi|| <= 1 forces C_min <= 1 / d). Deviations: ridge
    MLE within a known rank in place of the nuclear norm. first_stage: exploring rounds as a fraction of all; None:
    T^(-1/3) of them, T^(2/3) rounds. explorer: "uniform" or "reference". The policy output while exploring is the
    running estimate's equilibrium. rank: even, None keeps all. Complexity and errors as `NashGreedy`; a fraction
    outside [0, 1] is refused.
    """

    explorer: Literal["uniform", "reference"] = "uniform"
    first_stage: float | None = None
    rank: int | None = 2
    low_rank: Literal["likelihood", "truncation"] = "likelihood"
    ridge: float = 0.1
    ball: float | None = None
    intercept: bool = False
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "ridge"))
        _check_rank(self.rank)
        if self.first_stage is not None and not 0 <= self.first_stage <= 1:
            raise ValueError(f"first_stage: a fraction of the rounds in [0, 1], got {self.first_stage}")

    @property
    def consistent(self) -> bool:
        return False  # for the Nash policy: under Bradley-Terry labels it is not the optimum of the reward

    def init(self, setting: Setting) -> _State:
        return _start(self, setting)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        explorer = Uniform() if self.explorer == "uniform" else Reference()
        player = explorer if draws.t < self._commits(state.setting) else state.main
        return play(player, player, contexts, draws)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        setting, model = state.setting, state.model
        commits = self._commits(setting)
        if draws.t < commits:
            due = model.observe(contexts, actions, feedback)
            if not due and draws.t + 1 == commits:
                model.refit()
                due = True
            if due:
                state.main = equilibrium_of(model.table(), pool_of(setting), setting.kl_coef)
        return state, model.info()

    def policy(self, state: _State) -> Policy:
        return state.main

    def _commits(self, setting: Setting) -> int:
        """The first round after exploration, at least 1."""
        fraction = setting.rounds ** (-1 / 3) if self.first_stage is None else self.first_stage
        return max(1, math.ceil(fraction * setting.rounds - 1e-9))
