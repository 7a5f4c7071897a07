"""Playing and learning with a linear reward: greedy, optimistic, in two stages, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.draws import Round
from simbandit.estimators import Radius, RewardModel, confidence_radius
from simbandit.policies import Elliptical, LogLinear, Reference, tabulate
from simbandit.policies import Uniform as UniformPolicy
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

Pairing = Literal["reference", "self"]


@dataclass
class _State:
    setting: Setting
    model: RewardModel
    policy: Policy
    player: Policy


def _start(setting: Setting, *, ridge: float, ball: float | None, refit_growth: float) -> _State:
    model = RewardModel(setting, ridge=ridge, ball=ball, refit_growth=refit_growth)
    return _State(setting, model, Reference(), Reference())


def _play(first: Policy, others: Policy, contexts: Contexts, draws: Round, k: int) -> Tensor:
    """(R, B, k): the first action from `first`, the rest independently from `others`."""
    B = contexts.shape[1]
    players = [first, *[others] * (k - 1)]
    return torch.stack([p.sample(contexts, draws.uniform(f"player{i}", B)) for i, p in enumerate(players)], dim=-1)


@dataclass(frozen=True)
class Uniform:
    """Plays and outputs the uniform policy over the offered actions; learns nothing. The floor of every comparison."""

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference", "reward", "ranking")
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> Setting:
        return setting

    def select(self, state: Setting, contexts: Contexts, draws: Round) -> Tensor:
        return _play(UniformPolicy(), UniformPolicy(), contexts, draws, state.n_select)

    def update(
        self, state: Setting, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[Setting, Info]:
        del contexts, actions, feedback, draws
        return state, Info()

    def policy(self, state: Setting) -> Policy:
        del state
        return UniformPolicy()


@dataclass(frozen=True)
class Greedy:
    """Greedy sampling: the Gibbs policy of the current estimate, without a bonus.

    J(pi) = E[r] - kl_coef KL(pi || pi_ref); each round pi_t = pi_ref exp(<theta_t, phi> / kl_coef) / Z with theta_t the
    MLE (ridge regression under reward feedback). Source: 2510.24700 (their eta is 1 / kl_coef): because pi_t / pi_ref
    stays in [e^-1/kl_coef, e^1/kl_coef] for rewards in [0, 1], regret is O(e^(1/kl_coef) d log T) without exploration.
    pairing: the second action of a duel from "reference" (pi_t, pi_ref) or "self" (pi_t, pi_t); the paper's choice for
    Bradley-Terry feedback could not be verified, so both are named. Rankings take the rest from it as well.
    refit_growth: refit once the data have grown by this fraction (0: every round, the paper). Deviations: ridge in the
    likelihood. Complexity: O(U d^2) per Newton step with U distinct pairs. Raises ValueError for a world without
    features.
    """

    pairing: Pairing = "reference"
    ridge: float = 0.1
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference", "reward", "ranking")
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball",))

    @property
    def consistent(self) -> bool:
        return True

    def init(self, setting: Setting) -> _State:
        return _start(setting, ridge=self.ridge, ball=self.ball, refit_growth=self.refit_growth)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        other = state.policy if self.pairing == "self" else Reference()
        return _play(state.policy, other, contexts, draws, state.setting.n_select)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        if state.model.observe(contexts, actions, feedback):
            gibbs = LogLinear(state.model.theta / state.setting.kl_coef)
            state.policy = tabulate(gibbs, state.setting.contexts)
        return state, state.model.info()

    def policy(self, state: _State) -> Policy:
        return state.policy


@dataclass(frozen=True)
class KLUCB:
    """KL-UCB: the Gibbs policy of an upper confidence bound, pi_t = pi_ref exp((<theta_t, phi> + b_t) / kl_coef) / Z.

    b_t = radius ||phi||_{V^-1}, V = ridge I + sum phi phi'; with duels radius ||phi - E_{pi_ref} phi||, what duels
    identify. Source: 2502.07460 (their eta is 1 / kl_coef). Guarantee: regret of J of O(d log T / kl_coef) up to logs,
    for rewards in [0, 1] and the theory radius. The second action of a duel is from "reference" or "self" (`pairing`).
    Deviations: the bonus is not truncated at 1; the default radius is "tuned" (1), "theory" is explicit.
    Complexity O(X A d^2) per round. Raises ValueError for a world without features.
    """

    radius: Radius = "tuned"
    pairing: Pairing = "reference"
    ridge: float = 1.0
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference", "reward")
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "ridge"))

    @property
    def consistent(self) -> bool:
        return True

    def init(self, setting: Setting) -> _State:
        return _start(setting, ridge=self.ridge, ball=self.ball, refit_growth=self.refit_growth)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        other = state.policy if self.pairing == "self" else Reference()
        return _play(state.policy, other, contexts, draws, state.setting.n_select)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        setting, model = state.setting, state.model
        radius = confidence_radius(self.radius, setting, self.ridge)
        if model.observe(contexts, actions, feedback):
            centre = torch.zeros_like(model.theta) if setting.feedback == "reward" else None
            plus = torch.full_like(model.theta[:, 0], radius)
            bound = Elliptical(model.theta, model.inverse(self.ridge), plus, setting.kl_coef, centre)
            state.policy = tabulate(bound, setting.contexts)
        return state, model.info(radius)

    def policy(self, state: _State) -> Policy:
        return state.policy


@dataclass(frozen=True)
class TwoStage:
    """Two-stage mixed-policy sampling (TMPS; TMPS-PF with duels).

    Stage 1, a fraction of the rounds: actions from pi_ref, then theta_0 = least squares (MLE with duels). Stage 2:
    actions from the Gibbs policy of theta_0, fixed. Output: the Gibbs policy of the estimate on all data. Source:
    2411.04625 (their eta is 1 / kl_coef), Algorithms 1 and 3; with duels both actions come from the stage's policy.
    Guarantee: with coverage D^2, m = O~(D^2 / kl_coef^2) and n = O~(1 / (kl_coef eps)) samples give a gap of O(eps):
    additive, not multiplicative, in the coverage coefficient. Deviations: a ridge (the paper has none) besides the
    ball. Raises ValueError for a world without features, or a fraction outside [0, 1].
    """

    first_stage: float = 0.5
    ridge: float = 0.1
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference", "reward")
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball",))
        if not 0 <= self.first_stage <= 1:
            raise ValueError(f"first_stage: a fraction of the rounds in [0, 1], got {self.first_stage}")

    @property
    def consistent(self) -> bool:
        return True

    def init(self, setting: Setting) -> _State:
        return _start(setting, ridge=self.ridge, ball=self.ball, refit_growth=self.refit_growth)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        player = Reference() if draws.t < self._switch(state.setting) else state.player
        return _play(player, player, contexts, draws, state.setting.n_select)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        setting, model = state.setting, state.model
        refitted = model.observe(contexts, actions, feedback)
        stage_ends = draws.t + 1 == self._switch(setting)
        if not refitted and (stage_ends or draws.t + 1 == setting.rounds):
            model.refit()
            refitted = True
        if refitted:
            state.policy = tabulate(LogLinear(model.theta / setting.kl_coef), setting.contexts)
        if stage_ends:
            state.player = state.policy
        return state, model.info()

    def policy(self, state: _State) -> Policy:
        return state.policy

    def _switch(self, setting: Setting) -> int:
        """The first round of stage 2."""
        return round(self.first_stage * setting.rounds)
