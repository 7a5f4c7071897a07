"""What an LM run is judged by: KL to the reference, win rate, reward, length, entropy, as metrics of `simulate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from llm_bridge.batches import distinct, response_states
from llm_bridge.models import Run, head_of
from llm_bridge.oracles import Judge, Scorer
from llm_bridge.policy import LMPolicy
from llm_bridge.scoring import sequence_log_probs
from simbandit.draws import generator
from simbandit.guarantees.statistics import mean_interval

LAW_NUMBERS = 2**24  # float32 numbers of two policies' laws at once: 128 MB


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Estimates from `size` responses to the prompts in turn, drawn with the same uniforms every time.

    Metrics (see `metrics`), each the mean over responses, with its standard error as `NAME_error`:
    kl_to_reference: nats a response; the Rao-Blackwellised sum over positions of the exact KL of the token laws, which
        is unbiased for the sequence-level KL and varies less than log pi - log pi_ref.
    entropy: nats a response, the same way. length: tokens. truncated: share cut before an end token.
    win_rate: P(preferred to a response of the reference to the same prompt), by the judge, where there is one.
    implied_accuracy: how often the implied reward log pi / pi_ref orders these two responses as the judge does (an
        order that either leaves open counts 1/2, so it starts at 1/2).
    reward: by the scorer, where there is one.
    """

    reference: LMPolicy
    judge: Judge | None = None
    scorer: Scorer | None = None
    size: int = 64
    seed: int = 0
    held: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"size: must be at least 2, got {self.size}")

    def metrics(self) -> list[tuple[str, Callable[[Any], Tensor]]]:
        """(name, function of a Snapshot) pairs, for `simulate(metrics=...)`."""
        names = ["kl_to_reference", "entropy", "length", "truncated"]
        names += ["win_rate", "implied_accuracy"] * (self.judge is not None) + ["reward"] * (self.scorer is not None)

        def reading(name: str, error: bool) -> Callable[[Any], Tensor]:
            def metric(snapshot: Any) -> Tensor:
                values = self.of(snapshot.policy)[name]
                return (values.std() / len(values) ** 0.5 if error else values.mean()).view(1)

            return metric

        return [(name + "_error" * error, reading(name, error)) for name in names for error in (False, True)]

    def intervals(self, policy: LMPolicy) -> pd.DataFrame:
        """metric, mean, and a 95 % interval (bootstrap over responses), one row each."""
        rows = [(name, *map(float, mean_interval(values.numpy()))) for name, values in self.of(policy).items()]
        return pd.DataFrame(rows, columns=["metric", "mean", "low", "high"])

    def of(self, policy: LMPolicy) -> dict[str, Tensor]:
        """One value per response, (size,), of every metric; computed once per policy."""
        if self.held.get("policy") is not policy:
            self.held.update(policy=policy, values=self._computed(policy))
        return self.held["values"]

    def _computed(self, policy: LMPolicy) -> dict[str, Tensor]:
        read = policy.catalogue
        prompts = [i % len(read.prompts) for i in range(self.size)]
        drawn = self._drawn(policy, "evaluation", prompts)
        kl, entropy = token_sums(policy, self.reference, prompts, drawn)
        values = {
            "kl_to_reference": kl,
            "entropy": entropy,
            "length": torch.tensor([float(len(r)) for r in drawn]).double(),
            "truncated": torch.tensor([float(r[-1] not in read.end) for r in drawn]).double(),
        }
        if self.judge is None and self.scorer is None:
            return values
        told = [(read.prompt_text(x), self._text(policy, r)) for x, r in zip(prompts, drawn, strict=True)]
        if self.judge is not None:
            if "opponents" not in self.held:
                self.held["opponents"] = self._drawn(self.reference, "opponents", prompts)
            both = zip(told, self.held["opponents"], strict=True)
            asked = [(prompt, mine, self._text(policy, other)) for (prompt, mine), other in both]
            values["win_rate"] = torch.tensor(self.judge(asked)).double()
            margin = self._implied(policy, prompts, drawn) - self._implied(policy, prompts, self.held["opponents"])
            agreed = margin.sign() * (values["win_rate"] - 0.5).sign()
            values["implied_accuracy"] = (1 + agreed) / 2
        if self.scorer is not None:
            values["reward"] = torch.tensor(self.scorer(told)).double()
        return values

    def _implied(self, policy: LMPolicy, prompts: list[int], responses: list[tuple[int, ...]]) -> Tensor:
        """log pi / pi_ref of responses, (n,); exactly 0 for the reference itself."""
        asked = [policy.catalogue.prompts[x] for x in prompts]
        mine, other = (
            sequence_log_probs(p.model, asked, responses, token_budget=p.token_budget).double().cpu()
            for p in (policy, self.reference)
        )
        return mine - other

    def _drawn(self, policy: LMPolicy, purpose: str, prompts: list[int]) -> list[tuple[int, ...]]:
        return policy.generate(prompts, generator(self.seed, 0, purpose).random(self.size).tolist())

    def _text(self, policy: LMPolicy, tokens: tuple[int, ...]) -> str:
        return policy.tokenizer.decode(list(tokens), skip_special_tokens=True)


def token_sums(
    policy: LMPolicy, reference: LMPolicy, prompts: list[int], responses: list[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """Along each response: the sums over its positions of KL(policy || reference) and of the policy's entropy, (n,)
    each, both from the exact laws of the next token."""
    vocabulary = policy.model.get_output_embeddings().weight.shape[0]
    kl, entropy = torch.zeros(len(responses)).double(), torch.zeros(len(responses)).double()
    start = 0
    while start < len(responses):
        stop, tokens = start, 0
        while stop < len(responses) and (stop == start or (tokens + len(responses[stop])) * vocabulary <= LAW_NUMBERS):
            tokens += len(responses[stop])
            stop += 1
        mine, other = (_laws(p, prompts[start:stop], responses[start:stop]) for p in (policy, reference))
        for i, (p, q) in enumerate(zip(mine, other, strict=True), start=start):
            kl[i] = (p.exp() * (p - q)).sum()
            entropy[i] = -(p.exp() * p).sum()
        start = stop
    return kl, entropy


def _laws(policy: LMPolicy, prompts: list[int], responses: list[tuple[int, ...]]) -> list[Tensor]:
    """Log-laws (T, V) of the next token at every position of each response."""
    model = policy.model
    head, pairs = head_of(model), distinct([policy.catalogue.prompts[x] for x in prompts], responses, model)

    def reduce(states: Tensor, batch: list[int]) -> tuple[Tensor, ...]:
        laws = head(states).double().log_softmax(-1).cpu()
        return laws.split([len(pairs.responses[i]) for i in batch])

    found: dict[int, Tensor] = {}
    for batch, laws in response_states(model, pairs, reduce, Run(token_budget=policy.token_budget)):
        found |= dict(zip(batch, laws, strict=True))
    return [found[i] for i in pairs.inverse]
