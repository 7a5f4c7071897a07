"""Log-probabilities of given responses under a language model, as fast as the machine allows and exact to rounding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm_bridge import processes
from llm_bridge.batches import Pairs, distinct, response_states
from llm_bridge.models import Layout, Run, broken_weights, device_of, head_of, unwrapped

CHUNK_BYTES = 2**23  # of one chunk's logits


def sequence_log_probs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    gradients: bool = False,
    token_budget: int | None = None,
    layout: Layout = "auto",
    autocast: torch.dtype | None = None,
    compiled: bool = False,
    distributed: bool = False,
    progress: bool = False,
) -> Tensor:
    """log p(response | prompt) in nats, summed over the response's tokens: (n,).

    model: a causal or encoder-decoder model of transformers, or a peft model around one (reference =
        `with model.disable_adapter()`); weights of any dtype, quantised ones included.
    prompts, responses: n sequences of token ids each. A response is scored as given: nothing is added or removed, so an
        end-of-sequence token counts if it is there.
    gradients: keep the graph, for a training step through this function. Dropout is off either way, so the value
        does not depend on the batch (it is left alone only under gradient checkpointing, which needs training mode).
    token_budget: tokens (padding included) of one batch, None for what suits the device; halved by itself when memory
        runs out.
    layout: "joint" runs prompt and response together; "shared" encodes each prompt once and reuses its keys and values;
        "auto" shares from 1.5 responses a prompt on, where the architecture allows it.
    autocast: compute in this dtype (torch.bfloat16). The log-softmax is in float32 whatever the weights' dtype, in
        float64 for float64 weights.
    compiled: the model's body goes through torch.compile on first use (in place, it stays compiled).
    distributed: the pairs are dealt among the processes that accelerate has started; each must call this with the same
        arguments, and each gets all values. Not with gradients (`Training` shares those).
    progress: a bar where the output is a terminal.

    Each distinct pair is computed once, the head sees response positions only, and logits exist in chunks of 8 MB (with
    gradients they are recomputed): memory does not grow with tokens x vocabulary. Sums of up to 64 tokens depend on
    the batch by about 2e-4 in float32, 1e-10 in float64.
    Raises ValueError naming the row for empty prompts or responses, ids outside the vocabulary, pairs beyond the
    context window and NaN log-probabilities; MemoryError with the smallest size that failed.
    """
    run = Run(token_budget, layout, autocast, gradients, progress, compiled)
    inverse, lengths, tokens, owner = _scored(model, prompts, responses, run, distributed)
    sums = torch.zeros(len(lengths), dtype=torch.float64, device=tokens.device)
    sums = sums.index_add(0, owner, tokens.double()).to(tokens.dtype)
    return sums[inverse]


def token_log_probs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    gradients: bool = False,
    token_budget: int | None = None,
    layout: Layout = "auto",
    autocast: torch.dtype | None = None,
    compiled: bool = False,
    distributed: bool = False,
    progress: bool = False,
) -> list[Tensor]:
    """log p(token | prompt, tokens before it) of every response token: n tensors of the responses' lengths.

    Arguments and errors are those of `sequence_log_probs`.
    """
    run = Run(token_budget, layout, autocast, gradients, progress, compiled)
    inverse, lengths, tokens, owner = _scored(model, prompts, responses, run, distributed)
    parts = tokens[owner.argsort(stable=True)].split(lengths)
    return [parts[i] for i in inverse.tolist()]


def _scored(
    model: Any, prompts: Any, responses: Any, run: Run, distributed: bool
) -> tuple[Tensor, list[int], Tensor, Tensor]:
    """Where each input's pair is, the distinct pairs' lengths, all their tokens' log-probabilities in the order in
    which they were computed, and the pair that each of these tokens belongs to."""
    if run.token_budget is not None and run.token_budget < 1:
        raise ValueError(f"token_budget: must be at least 1, got {run.token_budget}")
    if run.layout not in ("auto", "joint", "shared"):
        raise ValueError(f"layout: must be 'auto', 'joint' or 'shared', got {run.layout!r}")
    if run.autocast is not None and not isinstance(run.autocast, torch.dtype):
        raise TypeError(f"autocast: must be a dtype such as torch.bfloat16, got {run.autocast!r}")
    pairs = distinct(prompts, responses, model)
    device, lengths = device_of(model), [len(r) for r in pairs.responses]
    inverse = torch.tensor(pairs.inverse, dtype=torch.int64, device=device)
    if not lengths:
        return inverse, lengths, torch.zeros(0, device=device), inverse
    if distributed and processes.number() > 1:
        tokens, owner = _dealt(model, pairs, lengths, run)
    else:
        tokens, owner = _computed(model, pairs, lengths, run)
    bad = torch.isnan(tokens.detach())
    if bool(bad.any()):
        pair = int(owner[bad].min())
        row, weights = pairs.inverse.index(pair), broken_weights(model)
        raise ValueError(f"model: NaN log-probability in row {row} ({int(bad.sum())} tokens in all); {weights}")
    return inverse, lengths, tokens, owner


def _dealt(model: Any, pairs: Pairs, lengths: list[int], run: Run) -> tuple[Tensor, Tensor]:
    """The same, each process having computed the pairs of its share of the prompts."""
    if run.gradients:
        raise ValueError("distributed: gradients are shared by `Training`, not here; use distributed=False")
    processes.check_alike("prompts, responses", pairs)
    work = [0] * len(pairs.prompts)
    for p, n in zip(pairs.prompt_of, lengths, strict=True):
        work[p] += n
    mine = set(processes.share(sorted(range(len(work)), key=lambda p: work[p] + len(pairs.prompts[p]))))
    numbers = [i for i, p in enumerate(pairs.prompt_of) if p in mine]
    place = {p: i for i, p in enumerate(sorted(mine))}
    part = Pairs(
        [pairs.prompts[p] for p in sorted(mine)],
        [pairs.responses[i] for i in numbers],
        [place[pairs.prompt_of[i]] for i in numbers],
        numbers,
    )
    device, starts = device_of(model), [0, *itertools.accumulate(lengths)]
    dtype = torch.float64 if unwrapped(model).dtype == torch.float64 else torch.float32
    tokens = torch.zeros(starts[-1], dtype=dtype, device=device)
    if numbers:
        values, owner = _computed(model, part, [lengths[i] for i in numbers], run)
        ordered = values[owner.argsort(stable=True)]
        at = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in numbers])
        tokens[at.to(device)] = ordered.to(dtype)
    every = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)], device=device)
    return processes.summed(tokens), every


def _computed(model: Any, pairs: Pairs, lengths: list[int], run: Run) -> tuple[Tensor, Tensor]:
    head = head_of(model)

    def reduce(states: Tensor, batch: list[int]) -> Tensor:
        targets = torch.tensor([t for i in batch for t in pairs.responses[i]], device=states.device)
        return gather_log_softmax(head, states, targets)

    results = response_states(model, pairs, reduce, run)
    tokens = torch.cat([values for _, values in results])
    owner = torch.tensor([i for batch, _ in results for i in batch for _ in range(lengths[i])], device=tokens.device)
    return tokens, owner


def gather_log_softmax(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor) -> Tensor:
    """log softmax(head(states))[targets], (N,), without the (N, V) tensor: chunks of rows, recomputed in the backward
    pass."""

    def chunk(part: Tensor, wanted: Tensor) -> Tensor:
        logits = head(part)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        chosen = logits.gather(-1, wanted[:, None]).squeeze(-1)
        if torch.is_grad_enabled():
            return chosen - torch.logsumexp(logits, dim=-1)
        largest = logits.amax(-1)  # in place: a fresh exp of the logits would leave the cache
        return chosen - largest - logits.sub_(largest[:, None]).exp_().sum(-1).log()

    with torch.no_grad():
        width = 4 * head(states[:1]).shape[-1]
    rows = max(1, CHUNK_BYTES // width)
    if len(states) <= rows:
        return chunk(states, targets)
    parts = zip(states.split(rows), targets.split(rows), strict=True)
    if not (torch.is_grad_enabled() and states.requires_grad):
        return torch.cat([chunk(part, wanted) for part, wanted in parts])
    kept = [checkpoint(chunk, part, wanted, use_reentrant=False) for part, wanted in parts]
    return torch.cat([value for value in kept if isinstance(value, Tensor)])
