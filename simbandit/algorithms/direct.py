"""The direct family: an algorithm is a row, who plays x what is minimised x which data x which reference (+ bonus)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit import losses
from simbandit.algorithms.dynamics import WORST_FREQUENCY, StepLimit, warn_unstable
from simbandit.algorithms.players import Cast, Player, held_of, policy_of
from simbandit.algorithms.record import Entries, Plays, Record, every_action, every_pair, shared, win_rate_labels
from simbandit.algorithms.row_checks import check_row
from simbandit.draws import Round
from simbandit.objective import Descent, DuelObjective, PairLogProbs, Term
from simbandit.policies import Geometric, LogLinear, Tabular, tabulate
from simbandit.types import Contexts, Feedback, FitInfo, Info, Policy, Setting

Data = Literal["all", "fresh", "offline"]
Anchor = Literal["reference", "mirror", "last"]
Labels = Literal["duel", "win_rate", "own"]
Weighting = Literal["sum", "mean", "rarity", "coin_flip"]
COINS = 20
CERTAINTY = 10.0
"""Implied log-odds beyond which an unbounded fit has run away: tolerance and proximal term alone stop it, near 12."""
WIDER = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0)
WIDEST = 1.0
"""Roundings of kinks that a fit passes through, times the one asked for, none wider than the last number."""
Parameters = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Moving:
    """A reference that moves: every so many rounds log ref <- weight log pi_t + (1 - weight) log ref (TR-DPO,
    2404.09656: weight 1 is its hard, .6 its soft update, there of network weights)."""

    every: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: must be at least 1, got {self.every}")
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight: must lie in (0, 1], got {self.weight}")


@dataclass(frozen=True)
class Expected:
    """A bonus's expectation over a player's law, action by action, where `Direct` otherwise takes one draw a duel."""

    player: Player


@dataclass
class _State:
    """policy plays; kept is what the losses call the last policy: the same one, but for optimistic rows."""

    setting: Setting
    policy: Policy
    kept: Policy
    previous: Policy
    reference: Policy
    record: Record
    held: dict[int, Policy]
    plays: Plays | None
    updates: int = 0
    asked: int = 0
    warned: bool = False


@dataclass(frozen=True)
class Direct:
    """Direct preference learning: each round a pair is drawn by two players, labelled, and the policy fits itself.

        pi_{t+1} = argmin_pi  sum over duels of loss(log pi, log pi_t, log reference; label)
                              + sum over calibration draws of bonus(log pi, log pi_t, log reference)
                              + proximal sum_x Var_a(log pi - anchor)        subject to the bound below

    players: who draws the first and the second response (`players`).
    loss: the name of a function in `losses`; loss_parameters: its own parameters, as sorted (name, value) pairs
        (`create("inpo", step_size=.5)` fills them in). schedule: step_size is 2 / (kl_coef (t + 2)) instead, t = 0, 1,
        ..., the schedule of the last-iterate theorems of INPO (2407.00617, Theorem 4) and Nash-MD.
    data: "all" duels so far, "fresh" ones of this round (a loss that looks at pi_t must take them), or "offline": one
        fit to logged duels. window: only the last so many rounds. hybrid: the share of the total weight that logged
        duels get, whatever their number (None: each duel counts once); hybrid_loss: their loss, where it is another.
    labels: "duel", as answered; "win_rate": sigma(r_1 - r_2), r a response's share of this round's duels in its context
        that it won, which estimates P(. beats pi_t) where both players are pi_t (DNO's labels); "own": the policy
        judges, sigma(kl_coef gap of log pi_t / reference), drawn.
    reference: "fixed", or `Moving`. It stands in the loss and is the centre of the bound.
    bonus: the name of a loss of single responses (`losses.optimism`, ...), bonus_parameters its own parameters.
        calibration: whose responses it sees: the duel's "first" or "second", a player's (one draw a duel), or
        `Expected(player)`. weighting: every draw counts once ("sum"), all together ("mean"), or N(x, a)^-1/2, N the
        times that the action has been played ("rarity": COPO's count bonus); "coin_flip" estimates that by the root
        mean square of 20 averages of random signs, one sign a play, to which a coin-flip network converges on a table.
    anchor: where an action stays when no duel speaks of it: "reference", "last" (pi_t), or "mirror" (the fixed point
        pi_ref^(kl_coef s) pi_t^(1 - kl_coef s) of `inpo`, s its step_size).
    optimistic: a round's duels move the kept policy, and once more, from there, the policy that plays (ONPO).
    value_range: bound on kl_coef |log-ratio gap| (V_max; None: the width of the world's reward range). It makes the
        argmin finite for a response that only ever lost. "unbounded" suits regressions, whose argmin is finite anyway,
        and the unregularised game, where kl_coef must play no part. On log-linear policies it is the ball that implies
        it.
    proximal: weight of the variance term, which makes the argmin unique where no duel speaks.
    passes: fits a round, each from the policy that the one before it left as pi_t (SPAC's iterations on logged data).
    descent: an inexact fit, so many optimiser steps from pi_t, as part of the algorithm (SAIL's gradient is the first
        step's; VPO's published bandit takes 20 AdamW steps); None is the argmin.

    The fit is exact (Newton to 1e-9 per duel; `fit_residual`, `fit_value` and `fit_iterations` are recorded) on tabular
    and log-linear policies; another kind of policy brings its own `fit` (with proximal=0 and players that sample it is
    only ever asked for the actions of duels). Where the objective is not convex (an optimistic bonus, some losses) the
    lowest of several starts is taken, a local certificate. Sums, not means, over the history.
    Asked through `FullInformation(oracle)`, the same row takes its exact step: every pair, weighted by the players'
    laws (a round weighs as much as one of batch_size duels), with its exact label.
    Deviations: bound and proximal term are not in the papers, whose argmin need not exist.
    Complexity: O(distinct pairs) per Newton step in a finite world. Raises ValueError for unknown losses or parameters,
    for choices that contradict each other, and where no reward range is known and `value_range` is not given.
    """

    loss: str = "dpo"
    players: tuple[Player, Player] = ("current", "current")
    data: Data = "all"
    window: int | None = None
    hybrid: float | None = None
    hybrid_loss: str | None = None
    labels: Labels = "duel"
    reference: Literal["fixed"] | Moving = "fixed"
    bonus: str | None = None
    bonus_parameters: Parameters = ()
    calibration: Literal["first", "second"] | Player | Expected = "second"
    weighting: Weighting = "sum"
    anchor: Anchor = "reference"
    optimistic: bool = False
    loss_parameters: Parameters = ()
    schedule: bool = False
    value_range: float | Literal["unbounded"] | None = None
    proximal: float = 1e-6
    passes: int = 1
    descent: Descent | None = None

    needs_features: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_row(self)

    @property
    def feedbacks(self) -> tuple[Feedback, ...]:
        return ("preference",) if self.offline else ("preference", "full")

    @property
    def offline(self) -> bool:
        return self.data == "offline"

    @property
    def consistent(self) -> bool:
        """Duels of pi_t keep all actions alive, and the argmin is the Bradley-Terry likelihood's."""
        plain = (self.bonus, self.reference, self.labels, self.window, self.descent) == (
            None,
            "fixed",
            "duel",
            None,
            None,
        )
        return self.loss == "dpo" and self.data != "fresh" and plain and set(self.players) <= {"current", "reference"}

    def step_limit(self, kl_coef: float, frequency: float = WORST_FREQUENCY) -> StepLimit | None:
        """Of a mirror-descent row, at a game's frequency (1/2: the worst game)."""
        if self.anchor != "mirror" or self.schedule:
            return None
        limit = 2 * kl_coef / (kl_coef**2 + frequency**2)
        step = dict(self.loss_parameters)["step_size"]
        return StepLimit("step_size", step, limit, "2 kl_coef / (kl_coef^2 + omega^2)")

    def init(self, setting: Setting) -> _State:
        warn_unstable(self.step_limit(setting.kl_coef))
        if self.value_range is None and not math.isfinite(_span(setting)):
            raise ValueError("value_range: this world tells no reward range; give the bound on kl_coef |log-ratio gap|")
        record = Record(
            setting,
            window=1 if self.data == "fresh" else self.window,
            dense=setting.feedback == "full" or self.loss in losses.POINTWISE,
            separate=self.hybrid is not None,
        )
        start = setting.policy
        held = held_of((*self.players, self.calibration, getattr(self.calibration, "player", None)), start)
        plays = None
        if self.weighting in ("rarity", "coin_flip"):
            plays = Plays(setting.n_actions, COINS * (self.weighting == "coin_flip"), setting.device)
        return _State(setting, start, start, start, start, record, held, plays)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        """Actions (R, B, 2); or, asked about exact answers, the log of the pairs' law (R, X, A, A)."""
        players = [policy_of(player, self._cast(state)) for player in self.players]
        if state.setting.feedback == "full":
            first, second = (player.log_probs(contexts) for player in players)
            return first[..., :, None] + second[..., None, :]
        uniforms = (draws.uniform(f"player{i}", contexts.shape[1]) for i in (0, 1))
        return torch.stack([p.sample(contexts, u) for p, u in zip(players, uniforms, strict=True)], dim=-1)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        duels = self._duels(state, contexts, actions, feedback, draws)
        state.asked += state.setting.batch_size if state.setting.feedback == "full" else feedback.shape[1]
        self._count(state, contexts, duels, draws)
        state.record.add(contexts, duels, self._singles(state, contexts, duels, draws), logged=draws.logged)
        state.previous = state.policy
        state.kept, fit = self._fit(state, draws.t)
        iterations = fit.iterations
        for _ in range(self.passes - 1):
            state.policy = state.kept
            state.kept, fit = self._fit(state, draws.t)
            iterations = iterations + fit.iterations
        self._finite(state)
        state.policy, residual = state.kept, fit.residual
        if self.optimistic:
            state.policy, ahead = self._fit(state, draws.t)
            residual, iterations = torch.maximum(residual, ahead.residual), iterations + ahead.iterations
        if not draws.logged:
            self._move(state)
        return state, Info(fit_residual=residual, fit_iterations=iterations, fit_value=fit.value)

    def policy(self, state: _State) -> Policy:
        return state.policy

    def _fit(self, state: _State, t: int) -> tuple[Policy, FitInfo]:
        """What the objective asks for, from the kept policy on. Newton does not see a kink that is much narrower than
        its step, so a loss with rounded kinks is fitted with wider ones first."""
        parameters, policy, iterations = self._loss_parameters(state, t), state.kept, 0.0
        exact = self.descent is None and isinstance(policy, (Tabular, LogLinear))
        if exact and (rounding := parameters.get("rounding", 0.0)) > 0:
            for wide in WIDER:
                if wide * rounding <= WIDEST:
                    wider = parameters | {"rounding": wide * rounding}
                    policy, fit = policy.fit(self._objective(state, wider))
                    iterations = iterations + fit.iterations
        policy, fit = policy.fit(self._objective(state, parameters))
        if exact and not state.warned and not bool(fit.converged.all()):
            state.warned = True
            warnings.warn(
                f"{self.loss}: {int((~fit.converged).sum())} of {len(fit.converged)} fits of round {t} stopped at a "
                f"gradient norm of up to {float(fit.residual.max()):.1e}; the metric fit_residual records it",
                stacklevel=2,
            )
        return policy, fit._replace(iterations=fit.iterations + iterations)

    def _finite(self, state: _State) -> None:
        """Refuses a fit that only the tolerance stopped: a response that always won, and no bound."""
        if self.value_range != "unbounded" or self.descent is not None or self.loss not in losses.CERTAIN:
            return
        contexts, entries = state.record.entries()
        duels = entries["duels"]
        spoken = Contexts(index=duels.row, pool=contexts)
        now, ref = (p.log_probs(spoken, duels.actions) for p in (state.kept, state.reference))
        kl_coef = state.setting.kl_coef
        margin = kl_coef * ((now - ref)[..., 0] - (now - ref)[..., 1]).abs() * (duels.weight > 0)
        if self.loss in losses.LINKED:  # their margin is how much the loss falls from one label to the other
            at, loss = PairLogProbs(now, now, ref), partial(getattr(losses, self.loss), **dict(self.loss_parameters))
            margin = (loss(at, 0 * margin, kl_coef) - loss(at, 0 * margin + 1, kl_coef)).abs() * (duels.weight > 0)
        if margin.max() > CERTAINTY:
            r, u = divmod(int(margin.argmax()), margin.shape[1])
            x, (a, b) = int(duels.row[r, u]), duels.actions[r, u].tolist()
            raise ValueError(
                f"value_range: {self.loss} has no finite minimiser on these duels: in context {x} one of actions {a} "
                f"and {b} always wins ({r}th replicate of its chunk); give a bound instead of 'unbounded'"
            )

    def _count(self, state: _State, contexts: Contexts, duels: Entries, draws: Round) -> None:
        """How often each action has been played, and the signs that it was dealt."""
        if state.plays is None:
            return
        number = self._numbers(state, contexts, duels.row).repeat_interleave(2, dim=1)
        said = duels.weight if state.setting.feedback == "full" else torch.ones_like(duels.weight)
        signs = said.new_zeros(*number.shape, 0)
        if self.weighting == "coin_flip":
            signs = 2.0 * (draws.uniform("coins", number.shape[1], COINS) < 0.5) - 1
        state.plays.add(number, duels.actions.flatten(1), said.repeat_interleave(2, dim=1), signs)

    def _numbers(self, state: _State, contexts: Contexts, row: Tensor) -> Tensor:
        """Which contexts these rows are, whenever they come: of the pool, or prompts of a language model."""
        if state.setting.contexts is not None:
            return row
        if contexts.index is None:
            raise ValueError(
                f"weighting: {self.weighting!r} counts actions and needs a finite world (n_contexts=), or contexts "
                "with numbers"
            )
        return contexts.index.gather(1, row)

    def _cast(self, state: _State) -> Cast:
        return Cast(state.policy, state.previous, state.setting.policy, state.held)

    def _move(self, state: _State) -> None:
        """References and players that move in stages, after the round."""
        state.updates += 1
        for every in state.held:
            if state.updates % every == 0:
                state.held[every] = state.policy
        moving = self.reference
        if isinstance(moving, Moving) and state.updates % moving.every == 0:
            if moving.weight == 1:
                state.reference = state.policy
            else:
                between = Geometric((state.policy, state.reference), (moving.weight, 1 - moving.weight))
                state.reference = tabulate(between, state.setting.contexts)

    # ------------------------------------------------------------------------------------------------------- data

    def _duels(self, state: _State, contexts: Contexts, actions: Tensor, label: Tensor, draws: Round) -> Entries:
        """This round's duels, or every pair with its weight where the answers are exact."""
        if state.setting.feedback == "full":
            return self._exact(state, contexts, actions, label)
        row = torch.arange(label.shape[1], device=label.device).expand(label.shape)
        if state.setting.contexts is not None:
            assert contexts.index is not None
            row = contexts.index
        if self.labels == "win_rate":
            label = win_rate_labels(state.setting.contexts or contexts, row, actions, label)
        elif self.labels == "own":
            label = (draws.uniform("own label", label.shape[1]) < self._own(state, contexts, actions)).to(label.dtype)
        weight = torch.ones_like(label)
        if self.loss not in losses.POINTWISE:  # a duel of a response with itself says nothing
            weight = (actions[..., 0] != actions[..., 1]).to(torch.float64)
        return Entries(row, actions, weight, label)

    def _exact(self, state: _State, pool: Contexts, law: Tensor, table: Tensor) -> Entries:
        if self.labels == "win_rate":
            rate = (law.exp() * table).sum(-1) / law.exp().sum(-1).clamp_min(1e-300)
            table = torch.sigmoid(rate[..., :, None] - rate[..., None, :])
        pairs = every_pair(pool, law, table, float(state.setting.batch_size))
        if self.labels == "own":
            pairs = pairs._replace(label=self._own(state, Contexts(index=pairs.row, pool=pool), pairs.actions))
        return pairs

    def _own(self, state: _State, contexts: Contexts, actions: Tensor) -> Tensor:
        ratio = state.policy.log_probs(contexts, actions) - state.reference.log_probs(contexts, actions)
        return torch.sigmoid(state.setting.kl_coef * (ratio[..., 0] - ratio[..., 1]))

    def _singles(self, state: _State, contexts: Contexts, duels: Entries, draws: Round) -> Entries | None:
        """The responses that the bonus of this round sees."""
        if self.bonus is None or isinstance(self.calibration, Expected):
            return None
        if self.calibration in ("first", "second"):
            at = 0 if self.calibration == "first" else 1
            # a duel with itself says nothing of preferences, but its draws stay in the bonus
            weight = duels.weight if state.setting.feedback == "full" else torch.ones_like(duels.weight)
            return Entries(duels.row, duels.actions[..., at : at + 1], weight, torch.zeros_like(duels.label))
        player = policy_of(self.calibration, self._cast(state))
        if state.setting.feedback == "full":
            return every_action(contexts, player, float(state.setting.batch_size))
        drawn = player.sample(contexts, draws.uniform("calibration", contexts.shape[1]))[..., None]
        return Entries(duels.row, drawn, torch.ones_like(duels.weight), torch.zeros_like(duels.label))

    # -------------------------------------------------------------------------------------------------- objective

    def _loss_parameters(self, state: _State, t: int) -> dict[str, float]:
        parameters = dict(self.loss_parameters)
        if self.schedule:
            parameters["step_size"] = 2 / (state.setting.kl_coef * (t + 2))
        return parameters

    def _objective(self, state: _State, parameters: dict[str, float]) -> DuelObjective:
        """The sum over the record, `last` being the kept policy."""
        setting = state.setting
        contexts, entries = state.record.entries()
        functions = {
            "duels": partial(getattr(losses, self.loss), **parameters),
            "logged": partial(getattr(losses, self.loss), **parameters)
            if self.hybrid_loss is None
            else getattr(losses, self.hybrid_loss),
        }
        if self.hybrid is not None and {"duels", "logged"} <= set(entries):
            entries |= shared(entries, self.hybrid)
        if self.bonus is not None:
            functions["singles"] = partial(getattr(losses, self.bonus), **dict(self.bonus_parameters))
            entries["singles"] = self._weighted(state, contexts, entries.get("singles"))
        bound = math.inf
        if self.value_range != "unbounded":
            bound = (_span(setting) if self.value_range is None else self.value_range) / setting.kl_coef
        return DuelObjective(
            contexts=contexts,
            terms=tuple(self._term(state, contexts, e, functions[kind]) for kind, e in entries.items()),
            kl_coef=setting.kl_coef,
            anchored=self._anchored(state, parameters),
            proximal=self.proximal,
            bound=bound,
            reference=None if self.reference == "fixed" else state.reference,
            convex=not ({self.loss, self.bonus} & losses.NON_CONVEX),
            descent=self.descent,
        )

    def _term(self, state: _State, contexts: Contexts, entries: Entries, loss: Callable[..., Tensor]) -> Term:
        spoken = Contexts(index=entries.row, pool=contexts)
        last, ref = (policy.log_probs(spoken, entries.actions) for policy in (state.kept, state.reference))
        return Term(*entries, last=last, ref=ref, loss=loss)

    def _weighted(self, state: _State, contexts: Contexts, drawn: Entries | None) -> Entries:
        """The bonus's responses with their weights."""
        if isinstance(self.calibration, Expected):
            drawn = every_action(contexts, policy_of(self.calibration.player, self._cast(state)), float(state.asked))
        assert drawn is not None
        weight = drawn.weight
        if self.weighting == "mean":
            weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-300)
        elif state.plays is not None:
            weight = weight * state.plays.rarity(self._numbers(state, contexts, drawn.row), drawn.actions[..., 0])
        return drawn._replace(weight=weight)

    def _anchored(self, state: _State, parameters: dict[str, float]) -> Callable[[Contexts], Tensor]:
        ref, last, kept = state.reference, state.kept, float(self.anchor == "last")
        if self.anchor == "mirror":
            kept = 1 - state.setting.kl_coef * parameters["step_size"]
        if kept in (0.0, 1.0):
            return (last if kept else ref).log_probs
        return lambda contexts: (1 - kept) * ref.log_probs(contexts) + kept * last.log_probs(contexts)


def _span(setting: Setting) -> float:
    low, high = setting.reward_range
    return high - low
