"""How far a sampled language model is from the best policy over *all* responses, estimated from draws.

The best answer to a policy pi has the value max_q E_q[u] - kl_coef KL(q || ref) = kl_coef log E_ref exp(u / kl_coef),
where u(y) is a reward, or P(y preferred to pi's response): a mean over draws of the reference. So neither the optimum
nor an equilibrium over all responses must be listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_bridge.evaluation import token_sums
from llm_bridge.oracles import Judge, Scorer
from llm_bridge.policy import LMPolicy
from simbandit.draws import generator

Text = tuple[str, str]


class Cost(NamedTuple):
    """What a restriction to candidates costs per prompt (X,), without the bias of the logarithm; the part of it that is
    paid for never giving another response, -sides kl_coef log ref(S), whatever their values; and how many of the
    held-out draws carry the estimate (the effective sample size of their weights, those of the pool left out)."""

    cost: Tensor
    silence: Tensor
    effective: Tensor


def restriction_cost(
    inside: Tensor, values: Tensor, held_values: Tensor, new: Tensor, kl_coef: float, *, sides: int = 1
) -> Cost:
    """The gap, over all responses, of the best policy on a pool S of candidates.

    inside: reference log-probabilities of the candidates, not renormalised, -inf past a prompt's own, (X, A).
    values, held_values: u of the candidates (X, A), and of M draws of the reference that did not make the pool (X, M):
        a reward, or P(y > the pool's equilibrium), which is then its own best answer within S. new: which of those
        draws are not candidates. sides: 1 for a reward, 2 for the duality gap of a symmetric game.

    The pool's optimum (equilibrium) is ref exp(u / kl_coef) on S, renormalised, and the best answer to it over all
    responses the same over all, so the gap is -sides kl_coef log (the best answer's mass on S) = sides kl_coef log(1 +
    B / A), A the sum over S and B the sum over the rest, of which the draws give an unbiased mean. The logarithm of a
    mean is biased low; the jackknife over draws takes the first order of that away. What was never drawn counts for
    nothing: with a small kl_coef, where few responses carry B, this is a lower bound (see `effective`).
    Raises ValueError with fewer than two held-out draws.
    """
    M = held_values.shape[-1]
    if M < 2:
        raise ValueError(f"held_values: must be at least 2 held-out draws a prompt, got {M}")
    sure = (inside + values / kl_coef).logsumexp(-1, keepdim=True)
    weights = torch.where(new, (held_values / kl_coef - sure).exp(), 0.0)  # of B / A
    total = weights.sum(-1, keepdim=True)
    whole = torch.log1p(total / M).squeeze(-1)
    without = torch.log1p((total - weights) / (M - 1)).mean(-1)
    effective = total.squeeze(-1).square() / weights.square().sum(-1).clamp_min(1e-300)
    cost = (M * whole - (M - 1) * without).clamp_min(0.0)
    return Cost(sides * kl_coef * cost, -sides * kl_coef * inside.logsumexp(-1), effective)


@dataclass(frozen=True, eq=False)
class SampledGap:
    """The suboptimality (with a scorer) or the duality gap (with a judge) of a trained model against every response.

    suboptimality = max J - J(pi), J = E[r] - kl_coef KL(pi || reference); duality gap = 2 (the best answer's value
    against pi - 1/2 + kl_coef KL(pi || reference)). All policies are judged by the same draws of the reference and the
    same uniforms, so differences between them are sharper than either.

    size: draws of the policy a prompt; against: of the reference. KL is the Rao-Blackwellised sum of exact token KLs.
    Bias: the best answer's value is too low where draws of the reference miss it; a gap's own u comes from `size`
    draws, whose noise raises it by about var(u) / (kl_coef size). Both are much the same for all policies.
    """

    reference: LMPolicy
    kl_coef: float
    scorer: Scorer | None = None
    judge: Judge | None = None
    size: int = 100
    against: int = 300
    seed: int = 0
    held: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.scorer is None) == (self.judge is None):
            raise ValueError("scorer, judge: give one of them, a reward or a preference")
        for name, value in (("size", self.size), ("against", self.against)):
            if value < 2:
                raise ValueError(f"{name}: must be at least 2, got {value}")

    def metrics(self) -> list[tuple[str, Callable[[Any], Tensor]]]:
        """(name, function of a Snapshot) pairs for `simulate(metrics=...)`: the gap and the KL, means over prompts."""
        names = ("duality_gap" if self.scorer is None else "suboptimality", "kl_to_ref")
        return [
            (name, lambda snapshot, i=i: self.of(snapshot.policy)[i].mean().view(1)) for i, name in enumerate(names)
        ]

    def of(self, policy: LMPolicy) -> tuple[Tensor, Tensor]:
        """The gap and KL(policy || reference) of every prompt, (X,) each."""
        if self.held.get("policy") is not policy:
            self.held.update(policy=policy, values=self._computed(policy))
        return self.held["values"]

    def _computed(self, policy: LMPolicy) -> tuple[Tensor, Tensor]:
        n = len(policy.catalogue.prompts)
        prompts = [x for x in range(n) for _ in range(self.size)]
        drawn = policy.generate(prompts, self._uniforms("gap", n * self.size))
        kl = token_sums(policy, self.reference, prompts, drawn)[0].view(n, self.size).mean(-1)
        mine = _texts(policy, prompts, drawn)
        if "others" not in self.held:
            numbers = [x for x in range(n) for _ in range(self.against)]
            others = self.reference.generate(numbers, self._uniforms("best answer", n * self.against))
            self.held["others"] = _texts(self.reference, numbers, others)
        told: list[Text] = self.held["others"]
        if self.scorer is not None:
            if "best" not in self.held:
                rewards = torch.tensor(self.scorer(told), dtype=torch.float64).view(n, -1)
                self.held["best"] = best_value(rewards, self.kl_coef)
            own = torch.tensor(self.scorer(mine), dtype=torch.float64).view(n, -1).mean(-1)
            return self.held["best"] - own + self.kl_coef * kl, kl
        assert self.judge is not None
        wins = torch.stack(
            [
                cross_table(self.judge, told[x * self.against :][: self.against], mine[x * self.size :][: self.size])
                for x in range(n)
            ]
        )
        return 2 * (best_value(wins.mean(-1), self.kl_coef) - 0.5 + self.kl_coef * kl), kl

    def _uniforms(self, purpose: str, n: int) -> list[float]:
        return generator(self.seed, 0, purpose).random(n).tolist()


def best_value(values: Tensor, kl_coef: float) -> Tensor:
    """kl_coef log mean exp(u / kl_coef) over the last axis: max_q E_q[u] - kl_coef KL(q || ref), u of draws of ref."""
    return kl_coef * ((values / kl_coef).logsumexp(-1) - math.log(values.shape[-1]))


def cross_table(judge: Judge, first: Sequence[Text], second: Sequence[Text]) -> Tensor:
    """P(first preferred) of every response of one list against every one of another, both orders averaged, (n, m). All
    are responses to one prompt; each different pair is asked once, a response against itself is 1/2."""
    prompt = first[0][0]
    ones, others = (list(dict.fromkeys(text for _, text in part)) for part in (first, second))
    pairs = [(a, b) for a in ones for b in others if a != b]
    asked = torch.tensor(judge([(prompt, a, b) for a, b in pairs] + [(prompt, b, a) for a, b in pairs])).double()
    table = torch.full((len(ones), len(others)), 0.5, dtype=torch.float64)
    different = torch.tensor([[a != b for b in others] for a in ones])
    table[different] = (asked[: len(pairs)] + 1 - asked[len(pairs) :]) / 2
    row, column = ({text: i for i, text in enumerate(unique)} for unique in (ones, others))
    return table[[row[text] for _, text in first]][:, [column[text] for _, text in second]]


def _texts(policy: LMPolicy, prompts: Sequence[int], drawn: Sequence[Sequence[int]]) -> list[Text]:
    read = policy.catalogue
    said = policy.tokenizer.batch_decode([list(r) for r in drawn], skip_special_tokens=True)
    return [(read.prompt_text(x), text) for x, text in zip(prompts, said, strict=True)]
