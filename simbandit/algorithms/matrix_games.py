"""Learning a game online from duels, as a table of win probabilities, without features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.algorithms.nash import equilibrium_of, play, pool_of
from simbandit.draws import Round
from simbandit.estimators import Radius
from simbandit.policies import Reference, Tabular, gibbs
from simbandit.preferences import TabularPreferences, finite_pool
from simbandit.types import Contexts, Feedback, Info, Policy, Setting
from simbandit.zero_sum import solve_zero_sum


@dataclass
class _TableState:
    setting: Setting
    model: TabularPreferences
    main: Policy
    first: Policy
    second: Policy
    radius: float


@dataclass(frozen=True)
class OptimisticMatrixGame:
    """Optimism in a game whose table of win probabilities is learnt, without features.

    P_hat = smoothed frequencies, upper table U = min(1, P_hat + radius / (2 sqrt(n_ab + smoothing))) off the diagonal.

        sampling "best_response": b ~ pi = pi*_{P_hat}, a ~ softmax(log pi_ref + U pi / kl_coef), the optimistic best
            response. Source: OMG, 2510.13060: regret the lesser of O~(sqrt T) and O((log T)^2 / kl_coef)-type.
        sampling "ucb": both actions from the first player's equilibrium strategy of the game with table U (O'Donoghue,
            Lattimore, Osband 2021, Matrix games with bandit feedback; there without KL, and for two different players).

    Output: pi*_{P_hat}. radius: in standard deviations of a fair coin; 0 is greedy self-play on a table; "tuned" 1;
    "theory" sqrt(2 log(2 M / .05)), M = X A (A - 1) / 2 times the duels to come (Hoeffding, union bound).
    Deviations: the papers' two different players become the two sides of one symmetric game, so one duel a round serves
    both; `smoothing` pseudo-duels per pair, half of them won. Complexity O(X A^3) per step of the solver (2 A in
    "ucb"), X A^2 memory. Raises ValueError in a world of fresh contexts.
    """

    sampling: Literal["best_response", "ucb"] = "best_response"
    radius: Radius = "tuned"
    smoothing: float = 1.0
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("smoothing",))

    @property
    def consistent(self) -> bool:
        return False  # for the Nash policy: under Bradley-Terry labels it is not the optimum of the reward

    def init(self, setting: Setting) -> _TableState:
        pool = finite_pool(setting, "optimistic_matrix_game")
        model = TabularPreferences(setting, smoothing=self.smoothing, refit_growth=self.refit_growth)
        radius = self.radius
        if isinstance(radius, str):
            pairs = max(1, pool.shape[1] * setting.n_actions * (setting.n_actions - 1) // 2)
            events = pairs * setting.rounds * setting.batch_size
            radius = 1.0 if radius == "tuned" else math.sqrt(2 * math.log(2 * events / 0.05))
        state = _TableState(setting, model, Reference(), Reference(), Reference(), float(radius))
        self._plan(state)
        return state

    def select(self, state: _TableState, contexts: Contexts, draws: Round) -> Tensor:
        return play(state.first, state.second, contexts, draws)

    def update(
        self, state: _TableState, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_TableState, Info]:
        del draws
        if state.model.observe(contexts, actions, feedback):
            self._plan(state)
        return state, Info(radius=state.radius)

    def policy(self, state: _TableState) -> Policy:
        return state.main

    def _plan(self, state: _TableState) -> None:
        pool, kl_coef, model = pool_of(state.setting), state.setting.kl_coef, state.model
        table, ref = model.table(), pool.ref_log_probs
        upper = (table + state.radius * model.widths()).clamp_max(1.0)
        state.main = equilibrium_of(table, pool, kl_coef)
        if self.sampling == "best_response":
            pi = state.main.table.exp()
            optimistic = gibbs((upper @ pi[..., None]).squeeze(-1), ref, kl_coef)
            state.first, state.second = Tabular(optimistic), state.main
            return
        saddle = solve_zero_sum(upper, ref, ref, kl_coef)
        if not bool(saddle.converged.all()):
            raise RuntimeError(f"optimistic_matrix_game: {int((~saddle.converged).sum())} games did not converge")
        state.first = state.second = Tabular(saddle.first)
