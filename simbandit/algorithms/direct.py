"""The direct family: an algorithm is a row, who plays x what is minimised x which data x which reference."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from simbandit import losses
from simbandit.algorithms.checks import check
from simbandit.data import Duels
from simbandit.draws import Round
from simbandit.objective import DuelObjective
from simbandit.policies import Geometric, Uniform
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

Player = Literal["current", "reference", "uniform", "mixture"]
Data = Literal["all", "fresh"]
Anchor = Literal["reference", "mirror", "last"]
Labels = Literal["duel", "win_rate"]


@dataclass
class _State:
    """policy plays; kept is what the losses call the last policy: the same one, but for optimistic rows."""

    setting: Setting
    policy: Policy
    kept: Policy
    duels: Duels | None
    seen: list[tuple[Contexts, Tensor, Tensor]] = field(default_factory=list)


class _Data(NamedTuple):
    """Duels to fit: contexts (R, C); row (R, U), each duel's position among them; actions (R, U, 2); weight, label
    (R, U)."""

    contexts: Contexts
    row: Tensor
    actions: Tensor
    weight: Tensor
    label: Tensor


@dataclass(frozen=True)
class Direct:
    """Direct preference learning: each round a pair is drawn by two players, labelled, and the policy fits itself.

        pi_{t+1} = argmin_pi  sum over duels of loss(log pi, log pi_t, log pi_ref; label)
                              + proximal sum_x Var_a(log pi - anchor)        subject to the bound below

    players: who draws the first and the second response: "current" (pi_t), "reference", "uniform", or "mixture", the
        geometric mixture of pi_t with weight 1 - reference_weight and the reference with reference_weight.
    loss: the name of a function in `losses`; loss_parameters: its own parameters, as sorted (name, value) pairs
        (`create("inpo", step_size=.5)` fills them in). schedule: step_size is 2 / (kl_coef (t + 2)) instead, t = 0, 1,
        ..., the schedule of the last-iterate theorems of INPO (2407.00617, Theorem 4) and Nash-MD.
    data: "all" duels so far, or "fresh" ones of this round (a loss that looks at pi_t must take fresh data).
    labels: "duel", as answered, or "win_rate": sigma(r_1 - r_2), r a response's share of this round's duels in its
        context that it won, which estimates P(. beats pi_t) where both players are pi_t (DNO's labels).
    anchor: where an action stays when no duel speaks of it: "reference", "last" (pi_t), or "mirror" (the fixed point
        pi_ref^(kl_coef s) pi_t^(1 - kl_coef s) of `inpo`, s its step_size).
    optimistic: a round's duels move the kept policy, and once more, from there, the policy that plays (ONPO).
    value_range: bound on kl_coef |log-ratio gap| (V_max; None: the width of the world's reward range). It makes the
        argmin finite for a response that only ever lost. "unbounded" suits regressions, whose argmin is finite anyway,
        and the unregularised game, where kl_coef must play no part. On log-linear policies it is the ball that implies
        it.
    proximal: weight of the variance term, which makes the argmin unique where no duel speaks.

    The fit is exact (Newton to 1e-9 per duel; `fit_residual` and `fit_iterations` are recorded) on tabular and
    log-linear policies; another kind of policy brings its own `fit` (with proximal=0 it is only ever asked for the
    actions of duels). Sums, not means, over the history.
    Deviations: bound and proximal term are not in the papers, whose argmin need not exist.
    Complexity: O(distinct pairs) per Newton step in a finite world. Raises ValueError for unknown losses or parameters,
    for choices that contradict each other, and where no reward range is known and `value_range` is not given.
    """

    loss: str = "dpo"
    players: tuple[Player, Player] = ("current", "current")
    reference_weight: float | None = None
    data: Data = "all"
    labels: Labels = "duel"
    anchor: Anchor = "reference"
    optimistic: bool = False
    loss_parameters: tuple[tuple[str, float], ...] = ()
    schedule: bool = False
    value_range: float | Literal["unbounded"] | None = None
    proximal: float = 1e-6

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("loss_parameters", "value_range"))
        allowed = loss_parameters(self.loss)
        given = [name for name, _ in self.loss_parameters]
        if sorted(given) != sorted(allowed):
            raise ValueError(f"loss_parameters: {self.loss} takes {allowed or 'none'}, got {given or 'none'}")
        for choice, chosen in (("anchor", self.anchor == "mirror"), ("schedule", self.schedule)):
            if chosen and "step_size" not in given:
                value = repr(getattr(self, choice))
                raise ValueError(f"{choice}: {value} needs a loss with a step_size, {self.loss} has none; leave it out")
        if self.data == "all" and "step_size" in given:
            raise ValueError(f"data: {self.loss} looks at the last policy and takes 'fresh' data, got 'all'")
        for choice, chosen in (("labels", self.labels == "win_rate"), ("optimistic", self.optimistic)):
            if chosen and self.data == "all":
                value = repr(getattr(self, choice))
                raise ValueError(f"{choice}: {value} speaks of this round's duels and takes 'fresh' data, got 'all'")
        if ("mixture" in self.players) != (self.reference_weight is not None):
            raise ValueError(f"reference_weight: given with a player 'mixture' and only then, got {self.players}")
        if self.reference_weight is not None and self.reference_weight > 1:
            raise ValueError(f"reference_weight: must lie in [0, 1], got {self.reference_weight}")

    @property
    def consistent(self) -> bool:
        return self.loss == "dpo" and self.data == "all"

    def init(self, setting: Setting) -> _State:
        if self.value_range is None and not math.isfinite(_span(setting)):
            raise ValueError("value_range: this world tells no reward range; give the bound on kl_coef |log-ratio gap|")
        duels = None
        if self.data == "all" and setting.contexts is not None:
            duels = Duels(setting.replicates, setting.contexts, None, setting.device)
        return _State(setting, setting.policy, setting.policy, duels)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        uniforms = (draws.uniform(f"player{i}", contexts.shape[1]) for i in (0, 1))
        players = (self._player(state, name) for name in self.players)
        return torch.stack([p.sample(contexts, u) for p, u in zip(players, uniforms, strict=True)], dim=-1)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        data = self._data(state, contexts, actions, feedback)
        state.kept, fit = state.kept.fit(self._objective(state, data, draws.t))
        state.policy, residual, iterations = state.kept, fit.residual, fit.iterations
        if self.optimistic:
            state.policy, ahead = state.kept.fit(self._objective(state, data, draws.t))
            residual, iterations = torch.maximum(residual, ahead.residual), iterations + ahead.iterations
        return state, Info(fit_residual=residual, fit_iterations=iterations)

    def policy(self, state: _State) -> Policy:
        return state.policy

    def _player(self, state: _State, name: Player) -> Policy:
        reference, weight = state.setting.policy, self.reference_weight
        if name == "mixture" and weight is not None and 0 < weight < 1:
            return Geometric((state.policy, reference), (1 - weight, weight))
        if name == "reference" or (name == "mixture" and weight == 1):
            return reference
        return Uniform() if name == "uniform" else state.policy

    def _data(self, state: _State, contexts: Contexts, actions: Tensor, label: Tensor) -> _Data:
        """The chosen duels over the contexts that they speak of (the pool, or the contexts seen)."""
        pool = state.setting.contexts
        if state.duels is not None:
            assert pool is not None
            held = state.duels
            held.add(contexts, actions, label)
            return _Data(pool, held.context, held.actions, held.count, held.wins / held.count.clamp_min(1e-300))
        if pool is None:
            state.seen = [*(state.seen if self.data == "all" else []), (contexts, actions, label)]
            over = _joined([c for c, _, _ in state.seen])
            actions = torch.cat([a for _, a, _ in state.seen], dim=1)
            label = torch.cat([y for _, _, y in state.seen], dim=1)
            row = torch.arange(actions.shape[1], device=actions.device).expand(actions.shape[:2])
        else:
            assert contexts.index is not None
            over, row = pool, contexts.index
        if self.labels == "win_rate":
            label = _win_rate_labels(over, row, actions, label)
        weight = torch.ones_like(label)
        if self.loss not in losses.POINTWISE:  # a duel of a response with itself says nothing
            weight = (actions[..., 0] != actions[..., 1]).to(torch.float64)
        return _Data(over, row, actions, weight, label)

    def _objective(self, state: _State, data: _Data, t: int) -> DuelObjective:
        """The sum over the data, `last` being the kept policy."""
        setting, duelled = state.setting, Contexts(index=data.row, pool=data.contexts)
        parameters = dict(self.loss_parameters)
        if self.schedule:
            parameters["step_size"] = 2 / (setting.kl_coef * (t + 2))
        bound = math.inf
        if self.value_range != "unbounded":
            bound = (_span(setting) if self.value_range is None else self.value_range) / setting.kl_coef
        return DuelObjective(
            contexts=data.contexts,
            row=data.row,
            actions=data.actions,
            weight=data.weight,
            label=data.label,
            last=state.kept.log_probs(duelled, data.actions),
            ref=setting.policy.log_probs(duelled, data.actions),
            loss=partial(getattr(losses, self.loss), **parameters),
            kl_coef=setting.kl_coef,
            anchored=self._anchored(setting, state.kept, parameters),
            proximal=self.proximal,
            bound=bound,
        )

    def _anchored(self, setting: Setting, last: Policy, parameters: dict[str, float]) -> Callable[[Contexts], Tensor]:
        ref, kept = setting.policy, float(self.anchor == "last")
        if self.anchor == "mirror":
            kept = 1 - setting.kl_coef * parameters["step_size"]
        if kept in (0.0, 1.0):
            return (last if kept else ref).log_probs
        return lambda contexts: (1 - kept) * ref.log_probs(contexts) + kept * last.log_probs(contexts)


def _win_rate_labels(over: Contexts, row: Tensor, actions: Tensor, label: Tensor) -> Tensor:
    """sigma(r_1 - r_2), (R, U): r is a response's share of these duels in its context that it won, the duels with
    itself (one win in two) among them."""
    cell = (row[..., None] * over.n_actions + actions).flatten(1)
    played = label.new_zeros(label.shape[0], over.shape[1] * over.n_actions)
    won = played.scatter_add(1, cell, torch.stack([label, 1 - label], dim=-1).flatten(1))
    rate = (won / played.scatter_add(1, cell, torch.ones_like(cell, dtype=label.dtype))).gather(1, cell)
    rate = rate.view(actions.shape)
    return torch.sigmoid(rate[..., 0] - rate[..., 1])


def loss_parameters(name: str) -> list[str]:
    """The parameters that a loss has of its own, beyond log_probs, label and kl_coef."""
    function = getattr(losses, name, None)
    if name.startswith("_") or not inspect.isfunction(function):
        known = sorted(n for n, f in vars(losses).items() if inspect.isfunction(f) and not n.startswith("_"))
        raise ValueError(f"loss: {name!r} is not one of {known}")
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


def _span(setting: Setting) -> float:
    low, high = setting.reward_range
    return high - low


def _joined(parts: list[Contexts]) -> Contexts:
    """Fresh contexts of several rounds as one batch."""
    features = torch.cat([c.features for c in parts], dim=1) if parts[0].has_features else None
    return Contexts(features=features, ref_log_probs=torch.cat([c.ref_log_probs for c in parts], dim=1))
