"""Reward bandits that sample: inverse gap weighting (SquareCB, FALCON) and exponential weights over policies (EXP4).

They need to know the rewards' range, which `Setting.reward_range` tells: gaps are divided by its width (the affine map
of rewards to [0, 1] moves a gap by nothing else). Rewards are not clipped to the range, noise may leave it: clipping
would bias the regression. `policy(state)`: the law that plays next. All raise ValueError for an unknown or infinite
range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.bandits import DELTA, information, learn, start
from simbandit.algorithms.checks import check
from simbandit.algorithms.choosing import TIE
from simbandit.draws import Round
from simbandit.least_squares import LeastSquares, linear
from simbandit.policies import Rows, inverse_cdf, maximisers, normalise, uniform
from simbandit.policies import Uniform as UniformPolicy
from simbandit.types import Contexts, Feedback, Info, Policy, Setting


def range_width(setting: Setting, name: str) -> float:
    """The width of the reward range; 1 where all rewards are equal."""
    low, high = setting.reward_range
    if not math.isfinite(high - low):
        raise ValueError(
            f"world: {name} maps rewards to [0, 1] and needs a finite reward_range, got ({low}, {high}); give the "
            "world reward_range="
        )
    return high - low if high > low else 1.0


@dataclass(frozen=True, eq=False)
class InverseGap(Rows):
    """p_a = 1 / (A + gamma (y_b - y_a)) for a below the best b, the rest to b (shared by exactly tied best actions);
    y = <theta, phi> in units where gamma (R,) is already scaled. A counts the offered actions. theta (R, d)."""

    theta: Tensor
    gamma: Tensor

    def rows(self, contexts: Contexts) -> Tensor:
        ref = contexts.ref_log_probs
        offered = ref > -torch.inf
        scores = linear(contexts.features, self.theta)
        best = scores.masked_fill(~offered, -torch.inf).amax(-1, keepdim=True)
        gaps = (best - scores).clamp_min_(0.0)
        arms = offered.sum(-1, keepdim=True)
        p = torch.where(offered, 1 / (arms + self.gamma[:, None, None] * gaps), 0.0)
        top = offered & (gaps <= TIE * best.abs().clamp_min(1.0))
        p = p.masked_fill(top, 0.0)
        p = torch.where(top, (1 - p.sum(-1, keepdim=True)) / top.sum(-1, keepdim=True), p)
        return normalise(p.log())


@dataclass
class _State:
    setting: Setting
    model: LeastSquares
    scale: float  # the width of the reward range
    policy: Policy
    epoch: int = 0


@dataclass(frozen=True)
class SquareCB:
    """SquareCB: inverse gap weighting on an online regression, p_a = 1 / (A + gamma_t (y_b - y_a)), the rest to the
    best b.

    Foster and Rakhlin 2020 (2002.04926), Algorithm 1 with mu = A; y_a = <theta_t, phi_a> / range. gamma: "tuned" = 10
    sqrt(t) (gamma_scale 10, gamma_exponent 1/2 of Vowpal Wabbit), "theory" = sqrt(A T / (Reg_Sq + log(2 / delta))) with
    Reg_Sq = d log(1 + T / d) for least squares (delta = .05), or a number c: c sqrt(t). Guarantee (Theorem 1), rewards
    in [0, 1]: regret <= 4 sqrt(A T Reg_Sq) + 8 sqrt(A T log(2 / delta)) with probability 1 - delta. Deviations: ridge
    regression is the oracle, its predictions unclipped; the paper writes losses. `policy`: the law it plays next.
    Complexity O(A d) to select, O(d^2) to learn.
    """

    gamma: Literal["tuned", "theory"] | float = "tuned"
    ridge: float = 1.0

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ridge",))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        model = start(setting, self.ridge).model
        scale = range_width(setting, "SquareCB")
        state = _State(setting, model, scale, UniformPolicy())
        state.policy = self._law(state)
        return state

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        return state.policy.sample(contexts, draws.uniform("player0", contexts.shape[1]))[..., None]

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        learn(state.model, contexts, actions, feedback)
        state.policy = self._law(state)
        return state, information(state.model)

    def policy(self, state: _State) -> Policy:
        return state.policy

    def _law(self, state: _State) -> InverseGap:
        setting, theta = state.setting, state.model.theta
        if self.gamma == "theory":
            assert setting.dim is not None
            T = setting.rounds * setting.batch_size
            regret = setting.dim * math.log(1 + T / setting.dim)
            gamma = math.sqrt(setting.n_actions * T / (regret + math.log(2 / DELTA)))
        else:
            factor = 10.0 if isinstance(self.gamma, str) else self.gamma
            gamma = factor * math.sqrt(state.model.n + 1)
        return InverseGap(theta, torch.full_like(theta[:, 0], gamma / state.scale))


@dataclass(frozen=True)
class Falcon:
    """FALCON: inverse gap weighting on a regression that is renewed only when an epoch ends, at interactions 2^m.

    Simchi-Levi and Xu 2022 (2003.12699), Algorithm 1: in epoch m the law uses f_m, least squares on all data before it,
    and gamma_m = c sqrt(A tau_{m-1} / log(|F| tau_{m-1} / delta)), c = 1/30, log |F| = d for a linear class; the first
    epoch is uniform (gamma_1 = 1 with no data). gamma: "tuned" = 10 sqrt(tau_{m-1}), as SquareCB's; "theory" as above
    (delta = .05); a number c: c sqrt(tau_{m-1}). Guarantee (Theorem 1), realizable rewards in [0, 1]: regret O(sqrt(A T
    log(|F| T / delta))) with O(log T) regressions. Deviations: ridge regression, updated in place and copied when an
    epoch ends; epochs end with the batch that reaches 2^m. `policy`: the law it plays next. Complexity O(A d) to
    select, O(d^2) to learn.
    """

    gamma: Literal["tuned", "theory"] | float = "tuned"
    ridge: float = 1.0

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ridge",))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        model = start(setting, self.ridge).model
        return _State(setting, model, range_width(setting, "FALCON"), UniformPolicy())

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        return state.policy.sample(contexts, draws.uniform("player0", contexts.shape[1]))[..., None]

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        model = state.model
        learn(model, contexts, actions, feedback)
        if model.n >= 2 ** (state.epoch + 1):
            state.epoch = int(math.log2(model.n))
            gamma = self._gamma(state.setting, model.n) / state.scale
            state.policy = InverseGap(model.theta, torch.full_like(model.theta[:, 0], gamma))
        return state, information(model)

    def policy(self, state: _State) -> Policy:
        return state.policy

    def _gamma(self, setting: Setting, tau: int) -> float:
        if self.gamma == "theory":
            assert setting.dim is not None
            return math.sqrt(setting.n_actions * tau / (setting.dim + math.log(tau / DELTA))) / 30
        return (10.0 if isinstance(self.gamma, str) else self.gamma) * math.sqrt(tau)


# --------------------------------------------------------------------------------------------------------------- EXP4


def advice_of(experts: tuple[Policy, ...], contexts: Contexts) -> Tensor:
    """Probabilities of every expert, (R, B, E, A). No experts: argmax and argmin of every feature (uniform over ties),
    the reference and the uniform policy, all at once."""
    if experts:
        return torch.stack([expert.log_probs(contexts) for expert in experts], dim=2).exp_()
    features, ref = contexts.features.mT, contexts.ref_log_probs[:, :, None]
    along = maximisers(torch.stack([features, -features], dim=3).flatten(2, 3), ref).to(ref.dtype)
    return torch.cat([along.div_(along.sum(-1, keepdim=True)), ref.exp(), uniform(ref).exp()], dim=2)


@dataclass(frozen=True, eq=False)
class ExpertMixture(Rows):
    """The mixture of policies with weights (R, E) in log space, and `exploration` of the uniform policy. experts: as in
    `advice_of`; table (R, X, E, A): their advice in a finite world, so that a round only gathers."""

    log_weights: Tensor
    exploration: float
    experts: tuple[Policy, ...]
    table: Tensor | None

    def advice(self, contexts: Contexts) -> Tensor:
        return advice_of(self.experts, contexts) if self.table is None else contexts.rows(self.table)

    def rows(self, contexts: Contexts) -> Tensor:
        return self.mixed(self.advice(contexts), contexts).log()

    def mixed(self, advice: Tensor, contexts: Contexts) -> Tensor:
        """Probabilities (R, B, A)."""
        law = (self.log_weights.exp()[:, None, None] @ advice).squeeze(2)
        if self.exploration > 0:
            law = (1 - self.exploration) * law + self.exploration * uniform(contexts.ref_log_probs).exp()
        return law


@dataclass
class _Experts:
    setting: Setting
    low: float
    scale: float
    policy: ExpertMixture = field(repr=False)
    contexts: Contexts | None = None  # what `select` was asked about, and the advice there
    advice: Tensor | None = None


@dataclass(frozen=True)
class Exp4:
    """EXP4 on a small set of policies: exponential weights on importance-weighted losses, w_e proportional to
    exp(-step_size sum l_hat_e).

    Auer et al. 2002, as in Lattimore and Szepesvari 2020, Algorithm 11: actions from p = sum_e w_e e(. | x), l_hat_e =
    e(a | x) (1 - r) / p(a | x) with r mapped to [0, 1] by the range. Guarantee (their Theorem 18.1), losses in [0, 1],
    any (adversarial) contexts and rewards: expected regret against the best of E policies <= sqrt(2 T A log E) at the
    default step_size sqrt(2 log E / (A T)).

    policies: the set, any `Policy` objects; empty: "argmax of feature j" and "argmin of feature j" for every j, the
        reference and the uniform policy, 2 d + 2 in all. exploration: share of the uniform policy (0: none, as above).
    `policy`: the law it plays next. Deviation: the policies of a batch are those of its beginning. Complexity O(E A)
    per context. Raises ValueError for something that is no policy.
    """

    policies: tuple[Any, ...] = ()
    step_size: float | None = None
    exploration: float = 0.0

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))
        if not isinstance(self.policies, tuple) or not all(isinstance(p, Policy) for p in self.policies):
            raise ValueError(f"policies: must be a tuple of policies, got {self.policies!r}")
        if self.exploration > 1:
            raise ValueError(f"exploration: a share in [0, 1], got {self.exploration}")

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _Experts:
        scale, pool = range_width(setting, "EXP4"), setting.contexts
        assert setting.dim is not None
        experts: tuple[Policy, ...] = self.policies
        n = len(experts) or 2 * setting.dim + 2
        weights = torch.zeros(setting.replicates, n, dtype=torch.float64, device=setting.device)
        table = None if pool is None else advice_of(experts, pool)
        law = ExpertMixture(normalise(weights), self.exploration, experts, table)
        return _Experts(setting, setting.reward_range[0], scale, law)

    def select(self, state: _Experts, contexts: Contexts, draws: Round) -> Tensor:
        state.contexts, state.advice = contexts, state.policy.advice(contexts)
        law = state.policy.mixed(state.advice, contexts)
        return inverse_cdf(law.log(), draws.uniform("player0", contexts.shape[1]))[..., None]

    def update(
        self, state: _Experts, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_Experts, Info]:
        del draws
        setting, law = state.setting, state.policy
        loss = 1 - (feedback - state.low) / state.scale
        advice = state.advice if state.advice is not None and contexts is state.contexts else law.advice(contexts)
        played = law.mixed(advice, contexts).gather(-1, actions)
        said = advice.gather(-1, actions[..., None].expand(*advice.shape[:-1], 1)).squeeze(-1)  # (R, B, E)
        ratio = torch.where(said > 0, said / played, 0.0)  # a logged action may be nobody's
        estimates = (ratio * loss[..., None]).sum(1)
        rate = self.step_size
        if rate is None:
            T = setting.rounds * setting.batch_size
            rate = math.sqrt(2 * math.log(max(2, estimates.shape[-1])) / (setting.n_actions * T))
        weights = normalise(law.log_weights - rate * estimates)
        state.policy = replace(law, log_weights=weights)
        return state, Info()

    def policy(self, state: _Experts) -> Policy:
        return state.policy
