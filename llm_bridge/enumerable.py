"""A language model so small that every response is listed: policy, J, KL, Nash gap and gradients are exact."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from llm_bridge.fitting import LBFGS, Fitter
from simbandit.policies import Rows
from simbandit.types import Contexts, FitInfo
from simbandit.worlds import TableWorld

MOST_RESPONSES = 20_000


@dataclass(frozen=True, eq=False)
class EnumerableLM(Rows):
    """A true autoregressive model as a policy of the simulator: contexts are prompts, actions are all responses.

    model: a causal LM of transformers, or a module whose call(input_ids=, use_cache=False) gives logits (or an object
        with .logits); it serves as the architecture, and its weights are where the policy starts. Use float64, and
        `attn_implementation="eager"` where replicates are many. transformers' Llama casts to float32 inside; GPT-2 is
        exact.
    prompts: X sequences of token ids. length: T tokens of every response; there are vocabulary^T of them, at most
        20,000. A response's number has its tokens as digits in base V, the first the most significant one.
    fit_by: how `fit` minimises an objective: `LBFGS`, `AdamW` or `GradientDescent`.
    parameters: (R or 1, P), the flat weights of every replicate (stacked; the model runs once under `vmap`). None takes
        the model's own.

    `sample` is the inverse CDF of the listed law, which is arithmetic decoding: the responses' numbers are sorted as
    the tokens are, so one uniform decodes token by token. A one-token LM therefore draws what the table draws.
    The learner's bound on log-ratios is not imposed (a network has no box): see `LBFGS`.
    Raises ValueError for too many responses, and empty prompts.
    """

    model: nn.Module
    prompts: Sequence[Sequence[int]]
    length: int
    fit_by: Fitter = field(default_factory=LBFGS)
    parameters: Tensor | None = None
    chunk: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(tuple(int(t) for t in prompt) for prompt in self.prompts))
        if self.length < 1:
            raise ValueError(f"length: must be at least 1, got {self.length}")
        if not self.prompts or not all(self.prompts):
            raise ValueError("prompts: must be at least one, and none may be empty")
        if self.parameters is None:
            self.model.eval()
            flat = torch.cat([p.detach().reshape(-1) for _, p in self._shapes])
            object.__setattr__(self, "parameters", flat[None].clone())
        if self.n_responses > MOST_RESPONSES:
            raise ValueError(
                f"length: {self.vocabulary}^{self.length} = {self.n_responses:,} responses; at most {MOST_RESPONSES:,} "
                "can be listed"
            )

    @property
    def vocabulary(self) -> int:
        config = getattr(self.model, "config", None)
        return int(self.model.vocabulary if config is None else config.vocab_size)  # pyright: ignore

    @property
    def n_responses(self) -> int:
        return self.vocabulary**self.length

    @cached_property
    def _shapes(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.named_parameters())

    @cached_property
    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every prompt with every prefix, (X S, L), S = V^(T-1); where its last prompt token is (X S,); prefixes
        (S, T - 1)."""
        digits = [torch.arange(self.vocabulary)] * (self.length - 1)
        prefixes = torch.cartesian_prod(*digits).reshape(-1, self.length - 1) if digits else torch.zeros(1, 0).long()
        longest = max(map(len, self.prompts)) + self.length - 1
        rows = torch.zeros(len(self.prompts), len(prefixes), longest, dtype=torch.int64)
        for x, prompt in enumerate(self.prompts):
            rows[x, :, : len(prompt)] = torch.tensor(prompt)
            rows[x, :, len(prompt) : len(prompt) + self.length - 1] = prefixes
        last = torch.tensor([len(prompt) - 1 for prompt in self.prompts]).repeat_interleave(len(prefixes))
        device = self._weights.device
        return rows.flatten(0, 1).to(device), last.to(device), prefixes.to(device)

    @property
    def _weights(self) -> Tensor:
        assert self.parameters is not None
        return self.parameters

    def token_log_probs(self) -> Tensor:
        """log p(token | prompt, prefix) of every position: (R or 1, X, S, T, V), S = V^(T-1) prefixes; position t reads
        the first t tokens of the prefix."""
        ids, last, prefixes = self._inputs
        positions = last[:, None] + torch.arange(self.length, device=last.device)

        def of(flat: Tensor) -> Tensor:
            named, start = {}, 0
            for name, p in self._shapes:
                named[name] = flat[start : start + p.numel()].view(p.shape)
                start += p.numel()
            out = functional_call(self.model, named, (), {"input_ids": ids, "use_cache": False})
            logits = out if isinstance(out, Tensor) else out.logits
            chosen = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))
            return chosen.log_softmax(-1).view(len(self.prompts), len(prefixes), self.length, -1)

        if len(self._weights) == 1:
            return of(self._weights[0])[None]
        return vmap(of, chunk_size=self.chunk)(self._weights)

    @cached_property
    def table(self) -> Tensor:
        """log pi(response | prompt), (R or 1, X, V^T); with the graph, where `parameters` have one."""
        tokens = self.token_log_probs()
        prefixes = self._inputs[2]
        index = prefixes[None, None, ..., None].expand(*tokens.shape[:2], -1, -1, -1)
        before = tokens[..., :-1, :].gather(-1, index).squeeze(-1).sum(-1)
        return (before[..., None] + tokens[..., -1, :]).flatten(2)

    def rows(self, contexts: Contexts) -> Tensor:
        rows = contexts.rows(self.table)
        return rows.expand(contexts.shape[0], -1, -1)

    def fit(self, objective: Any) -> tuple[EnumerableLM, FitInfo]:
        """Minimises objective(policy) (R,) over the weights, from these, by `fit_by`."""
        with torch.no_grad():
            replicates = objective(self).shape[0]
        start = self._weights.expand(replicates, -1)
        weights, info = self.fit_by.minimise(lambda x: objective(self._at(x)), start)
        return self._at(weights), info

    def world(self, **options: Any) -> TableWorld:
        """The finite world whose contexts are the prompts, whose actions are all responses, and whose reference is this
        policy. options: rewards (X, V^T), features, weights, ... of `TableWorld`."""
        if len(self._weights) != 1:
            raise ValueError("world: takes the reference, a policy with one set of weights; this one has replicates")
        return TableWorld(self.table[0].detach().cpu().numpy(), **options)

    def responses(self) -> list[tuple[int, ...]]:
        """All responses, by number."""
        return [self.tokens(a) for a in range(self.n_responses)]

    def tokens(self, response: int) -> tuple[int, ...]:
        """The tokens of a response's number."""
        return tuple(response // self.vocabulary**t % self.vocabulary for t in reversed(range(self.length)))

    def number(self, tokens: Sequence[int]) -> int:
        """The number of a response's tokens."""
        if len(tokens) != self.length or not all(0 <= t < self.vocabulary for t in tokens):
            raise ValueError(f"tokens: must be {self.length} ids below {self.vocabulary}, got {list(tokens)}")
        return sum(int(t) * self.vocabulary**i for i, t in enumerate(reversed(tokens)))

    def _at(self, parameters: Tensor) -> EnumerableLM:
        moved = dataclasses.replace(self, parameters=parameters)
        moved.__dict__["_inputs"], moved.__dict__["_shapes"] = self._inputs, self._shapes
        return moved

    def kl_to(self, other: EnumerableLM) -> Tensor:
        """KL(self || other) of whole responses, (R, X), exactly."""
        return (self.table.exp() * (self.table - other.table)).sum(-1)

    def reward_range_of(self, rewards: Tensor) -> float:
        return math.nan if rewards.numel() == 0 else float(rewards.max() - rewards.min())
