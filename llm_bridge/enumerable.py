"""A language model so small that every response is listed: policy, J, KL, Nash gap and gradients are exact."""

from __future__ import annotations

import copy
import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from simbandit.fits import descend
from simbandit.objective import Descent, DuelObjective
from simbandit.policies import Rows
from simbandit.solvers import minimise_lbfgs
from simbandit.types import Contexts, FitInfo
from simbandit.worlds import TableWorld

MOST_RESPONSES = 20_000


@dataclass(frozen=True)
class LBFGS:
    """A fit by quasi-Newton to a gradient norm of `tolerance` a duel, or `max_iterations`; its FitInfo says which.

    It finds a stationary point, and a transformer's loss is not convex. No bound is kept on log-ratios, so a loss
    without a finite minimiser ends at `max_iterations`.
    """

    tolerance: float = 1e-7
    max_iterations: int = 300

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance: must be > 0, got {self.tolerance}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations: must be at least 1, got {self.max_iterations}")


@dataclass(frozen=True, eq=False)
class EnumerableLM(Rows):
    """A true autoregressive model as a policy of the simulator: contexts are prompts, actions are all responses.

    model: a causal LM of transformers, or a module with a `vocabulary` whose call(input_ids=, use_cache=False) gives
        logits. A float64 copy of it is the architecture, and its weights are where the policy starts. (transformers'
        Llama casts to float32 inside, an error of 1e-4 in its gradients; GPT-2 does not.)
    prompts: X sequences of token ids. length: T tokens of every response; there are vocabulary^T of them, at most
        20,000. A response's number has its tokens as digits in base V, the first the most significant one.
    end: a token that ends a response. Responses then have 1 to T tokens, that token the last one of all but those that
        are cut at T, and their numbers are places in the list, in the order of their tokens.
    fit_by: how `fit` minimises an objective: `LBFGS`, or `Descent` (some steps of an optimiser); an algorithm that
        states its own descent gets that one.
    parameters: (R or 1, P), the flat weights of every replicate; None takes the model's own. Replicates are stacked,
        and `chunk` of them run at once under `vmap`.

    `sample` is the inverse CDF of the listed law, which is arithmetic decoding: the responses' numbers are sorted as
    the tokens are, so one uniform decodes token by token. A one-token LM therefore draws what the table draws.
    The learner's bound on log-ratios is not imposed (a network has no box): see `LBFGS`.
    Raises ValueError for too many responses, and empty prompts.
    """

    model: nn.Module
    prompts: Sequence[Sequence[int]]
    length: int
    fit_by: LBFGS | Descent = LBFGS()
    parameters: Tensor | None = None
    chunk: int = 16
    end: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(tuple(int(t) for t in prompt) for prompt in self.prompts))
        if self.length < 1:
            raise ValueError(f"length: must be at least 1, got {self.length}")
        if not self.prompts or not all(self.prompts):
            raise ValueError("prompts: must be at least one, and none may be empty")
        if self.parameters is None:
            model: Any = copy.deepcopy(self.model).double().eval()
            if hasattr(model, "set_attn_implementation"):
                model.set_attn_implementation("eager")  # plain products: differentiable twice, and under vmap
            object.__setattr__(self, "model", model)
            flat = torch.cat([p.detach().reshape(-1) for _, p in self._shapes])
            object.__setattr__(self, "parameters", flat[None].clone())
        if self.end is not None and not 0 <= self.end < self.vocabulary:
            raise ValueError(f"end: must be a token below {self.vocabulary}, got {self.end}")
        if self.n_responses > MOST_RESPONSES:
            raise ValueError(
                f"length: {self.vocabulary} tokens and length {self.length} give {self.n_responses:,} responses; at "
                f"most {MOST_RESPONSES:,} can be listed"
            )

    @property
    def vocabulary(self) -> int:
        model: Any = self.model
        return model.config.vocab_size if hasattr(model, "config") else model.vocabulary

    @property
    def n_responses(self) -> int:
        if self.end is None:
            return self.vocabulary**self.length
        return sum((self.vocabulary - 1) ** t for t in range(self.length)) + (self.vocabulary - 1) ** self.length

    @cached_property
    def _shapes(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.named_parameters())

    @cached_property
    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every prompt with every prefix, (X S, L), S = V^(T-1); where its last prompt token is (X S,); prefixes
        (S, T - 1), those that have ended filled with the end token."""
        prefixes = self._strings(self.length - 1)
        longest = max(map(len, self.prompts)) + self.length - 1
        rows = torch.zeros(len(self.prompts), len(prefixes), longest, dtype=torch.int64)
        for x, prompt in enumerate(self.prompts):
            rows[x, :, : len(prompt)] = torch.tensor(prompt)
            rows[x, :, len(prompt) : len(prompt) + self.length - 1] = prefixes
        last = torch.tensor([len(prompt) - 1 for prompt in self.prompts]).repeat_interleave(len(prefixes))
        device = self._weights.device
        return rows.flatten(0, 1).to(device), last.to(device), prefixes.to(device)

    def _strings(self, length: int) -> Tensor:
        """All strings of so many tokens, in order; what follows an end token is filled with it, and counts once."""
        digits = [torch.arange(self.vocabulary)] * length
        strings = torch.cartesian_prod(*digits).reshape(-1, length) if digits else torch.zeros(1, 0).long()
        return strings if self.end is None else strings[~((strings != self.end) & self._ended(strings)).any(-1)]

    def _ended(self, strings: Tensor) -> Tensor:
        """Whether the response is over before each of its tokens."""
        over = (strings == self.end) if self.end is not None else torch.zeros_like(strings, dtype=torch.bool)
        return (over.cumsum(-1) - over.long()) > 0

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of every response, its end among them, (A,)."""
        return (~self._ended(self._strings(self.length))).sum(-1).to(self._weights.device)

    @property
    def _weights(self) -> Tensor:
        assert self.parameters is not None
        return self.parameters

    def token_log_probs(self) -> Tensor:
        """log p(token | prompt, prefix) of every position: (R or 1, X, S, T, V), S = V^(T-1) prefixes, fewer with
        `end`; position t reads the first t tokens of the prefix. What comes after an end is no response's."""
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
        """log pi(response | prompt), (R or 1, X, A); with the graph, where `parameters` have one."""
        tokens = self.token_log_probs()
        prefixes = self._inputs[2]
        index = prefixes[None, None, ..., None].expand(*tokens.shape[:2], -1, -1, -1)
        said = tokens[..., :-1, :].gather(-1, index).squeeze(-1)
        if self.end is None:
            return (said.sum(-1)[..., None] + tokens[..., -1, :]).flatten(2)
        before = torch.where(self._ended(prefixes), 0.0, said).sum(-1)
        over = (prefixes == self.end).any(-1, keepdim=True)
        whole = before[..., None] + torch.where(over, 0.0, tokens[..., -1, :])
        kept = ~over | (torch.arange(self.vocabulary, device=over.device) == self.end)
        return whole[..., kept]

    def rows(self, contexts: Contexts) -> Tensor:
        rows = contexts.rows(self.table)
        return rows.expand(contexts.shape[0], -1, -1)

    def fit(self, objective: DuelObjective) -> tuple[EnumerableLM, FitInfo]:
        """Minimises objective(policy) (R,) over the weights, from these."""
        start, descent = self._weights.expand(objective.contexts.shape[0], -1), objective.descent
        if descent is None and isinstance(self.fit_by, Descent):
            descent = self.fit_by
        if descent is not None:
            (weights,), info = descend((start,), lambda free: self._at(free[0]), objective, descent)
            return self._at(weights), info
        assert isinstance(self.fit_by, LBFGS)
        held: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

        def evaluated(x: Tensor) -> tuple[Tensor, Tensor]:
            if not (held and held[0][0] is x):  # the solver asks again for the point it stands on
                held[:] = [(x, value_and_gradient(lambda at: objective(self._at(at)), x))]
            return held[0][1]

        tolerance = self.fit_by.tolerance * objective.weight.clamp_min(1.0)
        found = minimise_lbfgs(evaluated, start, tolerance=tolerance, max_iterations=self.fit_by.max_iterations)
        return self._at(found.argmin), FitInfo(found.residual, found.converged, found.iterations, found.value)

    def world(self, **options: Any) -> TableWorld:
        """The finite world whose contexts are the prompts, whose actions are all responses, and whose reference is this
        policy. options: rewards (X, A), features, weights, ... of `TableWorld`."""
        if len(self._weights) != 1:
            raise ValueError("world: takes the reference, a policy with one set of weights; this one has replicates")
        return TableWorld(self.table[0].detach().cpu().numpy(), **options)

    @cached_property
    def _listed(self) -> list[tuple[int, ...]]:
        rows = zip(self._strings(self.length).tolist(), self.lengths.tolist(), strict=True)
        return [tuple(row[:n]) for row, n in rows]

    def responses(self) -> list[tuple[int, ...]]:
        """All responses, by number."""
        return list(self._listed)

    def tokens(self, response: int) -> tuple[int, ...]:
        """The tokens of a response's number."""
        return self._listed[response]

    def number(self, tokens: Sequence[int]) -> int:
        """The number of a response's tokens."""
        key = tuple(int(t) for t in tokens)
        place = bisect_left(self._listed, key)
        if place == len(self._listed) or self._listed[place] != key:
            kind = f"{self.length} ids" if self.end is None else f"up to {self.length} ids, the last one {self.end},"
            raise ValueError(f"tokens: must be {kind} below {self.vocabulary}, got {list(tokens)}")
        return place

    def _at(self, parameters: Tensor) -> EnumerableLM:
        moved = dataclasses.replace(self, parameters=parameters)
        for name in ("_inputs", "_shapes"):  # computed once for all weights
            object.__setattr__(moved, name, getattr(self, name))
        return moved

    def kl_to(self, other: EnumerableLM) -> Tensor:
        """KL(self || other) of whole responses, (R, X), exactly."""
        return (self.table.exp() * (self.table - other.table)).sum(-1)

    def kl_along(self, other: EnumerableLM) -> Tensor:
        """The sum over each response's positions of KL(self || other) of the next token, (R, X, A). Its mean under this
        policy is `kl_to`; a gradient that stops at the responses' law is not that of `kl_to`."""
        mine = self.token_log_probs()
        positions = (mine.exp() * (mine - other.token_log_probs())).sum(-1)  # (R, X, S, T)
        strings, prefixes = self._strings(self.length).to(mine.device), self._inputs[2]
        prefix = (strings[:, None, :-1] == prefixes).all(-1).to(torch.int8).argmax(-1)
        said = torch.arange(self.length, device=mine.device) < self.lengths[:, None]
        return (positions[:, :, prefix] * said).sum(-1)


def value_and_gradient(value: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Of every replicate, (R,) and (R, P). Replicates do not interact, so the gradient of the sum is theirs."""
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        result = value(at)
        (gradient,) = torch.autograd.grad(result.sum(), at)
    return result.detach(), gradient
