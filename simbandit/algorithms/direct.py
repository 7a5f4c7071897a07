"""The direct family: an algorithm is a row, who plays x what is minimised x which data x which reference."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit import losses
from simbandit.algorithms.checks import check
from simbandit.data import Duels
from simbandit.draws import Round
from simbandit.objective import DuelObjective, Loss
from simbandit.policies import Uniform
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

Player = Literal["current", "reference", "uniform"]
Data = Literal["all", "fresh"]


@dataclass
class _State:
    setting: Setting
    policy: Policy
    duels: Duels | None
    seen: list[tuple[Contexts, Tensor, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Direct:
    """Direct preference learning: each round a pair is drawn by two players, labelled, and the policy fits itself.

        pi_{t+1} = argmin_pi  sum over duels of loss(log pi, log pi_t, log pi_ref; label)
                              + proximal sum_x Var_a(log pi - anchor)        subject to the bound below

    players: who draws the first and the second response: "current" (pi_t), "reference", "uniform".
    loss: the name of a function in `losses`; loss_parameters: its own parameters, as sorted (name, value) pairs
        (`create("inpo", step_size=.5)` fills them in).
    data: "all" duels so far, or "fresh" ones of this round (a loss that looks at pi_t must take fresh data).
    anchor: where an action stays when no duel speaks of it: "reference", or "mirror" (the loss's own fixed point
        pi_ref^(kl_coef s) pi_t^(1 - kl_coef s), for losses with a step_size s).
    value_range: bound on kl_coef |log-ratio gap| (V_max; None: the width of the world's reward range). It makes the
        argmin finite for a response that only ever lost. On log-linear policies it is the ball that implies it.
    proximal: weight of the variance term, which makes the argmin unique where no duel speaks.

    The fit is exact (Newton to 1e-9 per duel; `fit_residual` and `fit_iterations` are recorded) on tabular and
    log-linear policies; another kind of policy brings its own `fit` (with proximal=0 it is only ever asked for the
    actions of duels). Sums, not means, over the history.
    Deviations: bound and proximal term are not in the papers, whose argmin need not exist.
    Complexity: O(distinct pairs) per Newton step in a finite world. Raises ValueError for unknown losses or parameters,
    and where no reward range is known and `value_range` is not given.
    """

    loss: str = "dpo"
    players: tuple[Player, Player] = ("current", "current")
    data: Data = "all"
    anchor: Literal["reference", "mirror"] = "reference"
    loss_parameters: tuple[tuple[str, float], ...] = ()
    value_range: float | None = None
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
        if self.anchor == "mirror" and "step_size" not in given:
            raise ValueError(f"anchor: 'mirror' needs a loss with a step_size, {self.loss} has none; use 'reference'")
        if self.data == "all" and "step_size" in given:
            raise ValueError(f"data: {self.loss} looks at the last policy and takes 'fresh' data, got 'all'")

    @property
    def consistent(self) -> bool:
        return self.loss == "dpo" and self.data == "all"

    def init(self, setting: Setting) -> _State:
        if self.value_range is None and not math.isfinite(_span(setting)):
            raise ValueError("value_range: this world tells no reward range; give the bound on kl_coef |log-ratio gap|")
        duels = None
        if self.data == "all" and setting.contexts is not None:
            duels = Duels(setting.replicates, setting.contexts, None, setting.device)
        return _State(setting, setting.policy, duels)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        who = {"current": state.policy, "reference": state.setting.policy, "uniform": Uniform()}
        uniforms = (draws.uniform(f"player{i}", contexts.shape[1]) for i in (0, 1))
        return torch.stack([who[p].sample(contexts, u) for p, u in zip(self.players, uniforms, strict=True)], dim=-1)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        state.policy, fit = state.policy.fit(self._objective(state, contexts, actions, feedback))
        return state, Info(fit_residual=fit.residual, fit_iterations=fit.iterations)

    def policy(self, state: _State) -> Policy:
        return state.policy

    def _objective(self, state: _State, contexts: Contexts, actions: Tensor, label: Tensor) -> DuelObjective:
        """The sum over the chosen data, over the contexts that it speaks of (the pool, or the contexts seen)."""
        setting, pool = state.setting, state.setting.contexts
        if state.duels is not None:
            assert pool is not None
            state.duels.add(contexts, actions, label)
            held = state.duels
            row, pairs, weight = held.context, held.actions, held.count
            label, over = held.wins / weight.clamp_min(1e-300), pool
        else:
            if pool is None:
                state.seen = [*(state.seen if self.data == "all" else []), (contexts, actions, label)]
                over, pairs = (
                    _joined([c for c, _, _ in state.seen]),
                    torch.cat([a for _, a, _ in state.seen], dim=1),
                )
                label = torch.cat([y for _, _, y in state.seen], dim=1)
                row = torch.arange(pairs.shape[1], device=pairs.device).expand(pairs.shape[:2])
            else:
                assert contexts.index is not None
                over, row, pairs = pool, contexts.index, actions
            weight = (pairs[..., 0] != pairs[..., 1]).to(torch.float64)
        duelled = Contexts(index=row, pool=over)
        span = _span(setting) if self.value_range is None else self.value_range
        return DuelObjective(
            contexts=over,
            row=row,
            actions=pairs,
            weight=weight,
            label=label,
            last=state.policy.log_probs(duelled, pairs),
            ref=setting.policy.log_probs(duelled, pairs),
            loss=self._loss(),
            kl_coef=setting.kl_coef,
            anchored=self._anchor(setting, state.policy),
            proximal=self.proximal,
            bound=span / setting.kl_coef,
        )

    def _anchor(self, setting: Setting, last: Policy) -> Callable[[Contexts], Tensor]:
        ref, kept = setting.policy, 0.0
        if self.anchor == "mirror":
            kept = 1 - setting.kl_coef * dict(self.loss_parameters)["step_size"]
        if kept == 0:
            return ref.log_probs
        return lambda contexts: (1 - kept) * ref.log_probs(contexts) + kept * last.log_probs(contexts)

    def _loss(self) -> Loss:
        return partial(getattr(losses, self.loss), **dict(self.loss_parameters))


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
