"""Linear bandits with reward feedback: optimism (LinUCB), posterior sampling, and two ways of plain exploration. None
optimises the KL objective: compare them by reward regret, or by `suboptimality` to see the price.

Shapes: R replicates, B contexts of a round, A actions, d features, as in `types`. `policy(state)` of all of them but
`EpsilonGreedy` and `ExploreThenCommit` is the greedy policy of the current estimate, what one would deploy now; what
was *played* is what `reward_regret` counts. All raise ValueError for a world without features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.checks import check, warn_of_norms
from simbandit.algorithms.choosing import GreedyPolicy, choose, play
from simbandit.draws import Round
from simbandit.least_squares import LeastSquares
from simbandit.policies import Mixture
from simbandit.policies import Uniform as UniformPolicy
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

DELTA = 0.05  # confidence level of the theory radii


@dataclass
class _State:
    setting: Setting
    model: LeastSquares
    radius: Tensor | float = 0.0
    policy: Policy | None = None
    warned: bool = False


def start(setting: Setting, ridge: float, *, disjoint: bool = False, root: bool = False) -> _State:
    assert setting.dim is not None
    arms, dim = (setting.n_actions, setting.own_dim or setting.dim) if disjoint else (None, setting.dim)
    model = LeastSquares(setting.replicates, dim, ridge, setting.device, arms=arms, root=root)
    return _State(setting, model)


def learn(model: LeastSquares, contexts: Contexts, actions: Tensor, feedback: Tensor) -> None:
    read = contexts.features_of if model.arms is None else contexts.own_features_of
    model.observe(read(actions)[:, :, 0], feedback, actions[..., 0])


def information(model: LeastSquares, radius: Tensor | float | None = None) -> Info:
    inverse = None if model.arms is not None or model.has_root else model.inverse
    return Info(model.theta, observations=model.n, radius=radius, inverse=inverse, ridge=model.ridge)


def norm_bound(setting: Setting) -> float:
    """The S of ||theta*|| <= S: the world's, else the largest reward (exact for unit features)."""
    low, high = setting.reward_range
    bound = max(abs(low), abs(high)) if setting.theta_bound is None else setting.theta_bound
    if not math.isfinite(bound):
        raise ValueError("radius: the theory's needs a bound on ||theta*|| and this world tells none; give a number")
    return bound


@dataclass(frozen=True)
class LinUCB:
    """LinUCB / OFUL: play argmax_a <theta_t, phi_a> + radius ||phi_a||_{V_t^-1}, V_t = ridge I + sum phi phi'.

    Minimises sum_t max_a r(x_t, a) - r(x_t, a_t). theta_t is ridge regression on all rewards so far, V_t^-1 follows by
    Sherman and Morrison (Li et al. 2010, 1003.0146, Algorithm 1, lines 6-13; Abbasi-Yadkori, Pal, Szepesvari 2011).

    radius: a number; "tuned" (1); "determinant" = noise_std sqrt(2 log(det(V_t)^1/2 det(ridge I)^-1/2 / delta)) +
        sqrt(ridge) S (OFUL, Theorem 2, first form); "bound" = noise_std sqrt(d log((1 + t L^2 / ridge) / delta)) +
        sqrt(ridge) S (the second form, which needs ||phi|| <= L = feature_bound, and warns with the measured norm where
        it does not hold); "theory" is "determinant", the smaller one. S: the world's bound on ||theta*||; delta = .05.
    model: "shared" (one theta for all actions) or "disjoint" (one ridge regression per action, on that action's own
        features or, in a world of "per_arm" features e_a (x) x, on x: what obp and mabwiser run).
    Guarantee (OFUL, Theorem 3), for noise_std-sub-Gaussian rewards, ||theta*|| <= S, ||phi|| <= L and a theory radius:
    with probability 1 - delta, regret <= 4 sqrt(T d log(ridge + T L / d)) (sqrt(ridge) S + noise_std sqrt(2 log(1 /
    delta) + d log(1 + T L / (ridge d)))). The tuned radius has none. Deviations: with batch_size > 1 all actions of a
    batch use the model of its beginning. `policy`: greedy. Complexity O(A d^2) to select, O(d^2) to learn.
    """

    radius: Literal["tuned", "theory", "determinant", "bound"] | float = "tuned"
    ridge: float = 1.0
    noise_std: float = 1.0
    feature_bound: float = 1.0
    model: Literal["shared", "disjoint"] = "shared"

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ridge", "feature_bound"))

    @property
    def consistent(self) -> bool:
        return False  # greedy in the unregularised reward

    def init(self, setting: Setting) -> _State:
        state = start(setting, self.ridge, disjoint=self.model == "disjoint")
        state.radius = self._radius(state)
        if setting.contexts is not None:
            self._check_norms(state, setting.contexts)
        return state

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        if state.setting.contexts is None:
            self._check_norms(state, contexts)
        phi = contexts.features if state.model.arms is None else contexts.own_features
        scores = state.model.scores(phi, state.radius)
        return choose(scores, contexts, draws.uniform("ties", contexts.shape[1]))[..., None]

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        learn(state.model, contexts, actions, feedback)
        state.radius = self._radius(state)
        return state, information(state.model, state.radius if self.model == "shared" else None)

    @property
    def plays(self) -> bool:
        return not isinstance(self.radius, str) or self.radius == "tuned"  # the others move from round to round

    def play(self, state: _State, contexts: Contexts, outcomes: Tensor, draws: Round) -> tuple[_State, Tensor, Info]:
        assert isinstance(state.radius, float)
        phi = contexts.features if state.model.arms is None else contexts.own_features
        actions = play(state.model, state.radius, phi, contexts, outcomes, draws.uniform("ties", contexts.shape[1]))
        return state, actions[..., None], information(state.model, state.radius if self.model == "shared" else None)

    def policy(self, state: _State) -> Policy:
        return GreedyPolicy(state.model.theta)

    def _radius(self, state: _State) -> Tensor | float:
        model, setting = state.model, state.setting
        if not isinstance(self.radius, str):
            return float(self.radius)
        if self.radius == "tuned":
            return 1.0
        shift = math.sqrt(self.ridge) * norm_bound(setting)
        if self.radius == "bound":
            assert setting.dim is not None
            growth = (1 + model.n * self.feature_bound**2 / self.ridge) / DELTA
            return self.noise_std * math.sqrt(setting.dim * math.log(growth)) + shift
        return self.noise_std * (model.log_det - 2 * math.log(DELTA)).sqrt() + shift

    def _check_norms(self, state: _State, contexts: Contexts) -> None:
        if self.radius == "bound" and not state.warned:
            state.warned = warn_of_norms(contexts, self.feature_bound, "feature_bound")


@dataclass(frozen=True)
class LinTS:
    """Linear Thompson sampling: play argmax_a <theta~, phi_a>, theta~ ~ N(theta_t, scale^2 V_t^-1), anew per context.

    Agrawal and Goyal 2013 (1209.3352), Algorithm 1. A square root M M' = V_t^-1 is kept by Potter's rank-one update, so
    a draw is theta_t + scale M z and nothing is ever factorised. scale: a number; "tuned" (.3); "theory" = noise_std
    sqrt(9 d log(t / delta)) (their v; delta = .05). Guarantee (Theorem 1), for ||phi||, ||theta*|| <= 1 and the theory
    scale: regret O~(d^(3/2) sqrt(T)) with probability 1 - delta. Deviations: ridge (theirs is 1); a draw per context of
    a batch. `policy`: greedy in the posterior mean. Complexity O(d^2 + A d) per context.
    """

    scale: Literal["tuned", "theory"] | float = "tuned"
    ridge: float = 1.0
    noise_std: float = 1.0

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ridge",))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        state = start(setting, self.ridge, root=True)
        if setting.contexts is not None:
            self._check_norms(state, setting.contexts)
        return state

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        if state.setting.contexts is None:
            self._check_norms(state, contexts)
        theta = self.posterior_draw(state, draws, contexts.shape[1])
        scores = (contexts.features @ theta[..., None]).squeeze(-1)
        return choose(scores, contexts, draws.uniform("ties", contexts.shape[1]))[..., None]

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        learn(state.model, contexts, actions, feedback)
        return state, information(state.model)

    def policy(self, state: _State) -> Policy:
        return GreedyPolicy(state.model.theta)

    def posterior_draw(self, state: _State, draws: Round, size: int) -> Tensor:
        """theta~, (R, size, d)."""
        model, setting = state.model, state.setting
        assert setting.dim is not None
        scale = {"tuned": 0.3, "theory": 0.0}[self.scale] if isinstance(self.scale, str) else self.scale
        if self.scale == "theory":
            scale = self.noise_std * math.sqrt(9 * setting.dim * math.log(max(2, model.n + 1) / DELTA))
        normals = draws.normal("posterior", size, setting.dim)
        return model.theta[:, None] + scale * (normals @ model.root.mT)

    def _check_norms(self, state: _State, contexts: Contexts) -> None:
        if self.scale == "theory" and not state.warned:
            state.warned = warn_of_norms(contexts, 1.0, "scale")


@dataclass(frozen=True)
class EpsilonGreedy:
    """Greedy in a ridge regression with probability 1 - epsilon_t, uniform otherwise.

    decay: "constant", or "cube_root": epsilon_t = min(1, epsilon t^(-1/3)), which for a constant of order (A log T)^1/3
    has the T^(2/3) regret of explore-then-commit (Slivkins 2019, 1904.07272, Theorem 1.4, for finitely many arms).
    Constant epsilon pays epsilon per round for ever. `policy`: the law it plays next. Complexity O(A d) to select,
    O(d^2) to learn.
    """

    epsilon: float = 0.05
    decay: Literal["constant", "cube_root"] = "constant"
    ridge: float = 1.0

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ridge",))
        if self.epsilon > 1 and self.decay == "constant":
            raise ValueError(f"epsilon: a probability in [0, 1], got {self.epsilon}")

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        return start(setting, self.ridge)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        uniforms = draws.uniform("player0", contexts.shape[1])
        scores = state.model.mean(contexts.features)
        greedy = choose(scores, contexts, draws.uniform("ties", contexts.shape[1]))
        explores = draws.uniform("explore", contexts.shape[1]) < self._rate(state)
        if bool(explores.any()):
            greedy = torch.where(explores, UniformPolicy().sample(contexts, uniforms), greedy)
        return greedy[..., None]

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        learn(state.model, contexts, actions, feedback)
        return state, information(state.model)

    def policy(self, state: _State) -> Policy:
        rate = self._rate(state)
        return Mixture((GreedyPolicy(state.model.theta), UniformPolicy()), (1 - rate, rate))

    def _rate(self, state: _State) -> float:
        if self.decay == "constant":
            return self.epsilon
        return min(1.0, self.epsilon / (state.model.n + 1) ** (1 / 3))


@dataclass(frozen=True)
class ExploreThenCommit:
    """Uniform actions for a fraction of the rounds, then for ever the greedy policy of what was learnt there.

    exploration: the fraction; None is T^(-1/3), that is T^(2/3) rounds, for which regret is O(T^(2/3) (A log T)^(1/3))
    (Slivkins 2019, 1904.07272, Theorem 1.5). `policy`: the law it plays next. Complexity: no more learning after the
    switch.
    """

    exploration: float | None = None
    ridge: float = 1.0

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("reward",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ridge",))
        if self.exploration is not None and self.exploration > 1:
            raise ValueError(f"exploration: a fraction of the rounds in [0, 1], got {self.exploration}")

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        state = start(setting, self.ridge)
        state.policy = UniformPolicy() if self._switch(setting) else GreedyPolicy(state.model.theta)
        return state

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        assert state.policy is not None
        return state.policy.sample(contexts, draws.uniform("player0", contexts.shape[1]))[..., None]

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        switch = self._switch(state.setting)
        if draws.t < switch or state.model.n == 0:
            learn(state.model, contexts, actions, feedback)
        if draws.t + 1 >= switch:
            state.policy = GreedyPolicy(state.model.theta)
        return state, information(state.model)

    def policy(self, state: _State) -> Policy:
        assert state.policy is not None
        return state.policy

    def _switch(self, setting: Setting) -> int:
        """The first round that commits."""
        fraction = setting.rounds ** (-1 / 3) if self.exploration is None else self.exploration
        return math.ceil(fraction * setting.rounds - 1e-9)
