"""Training a language model's weights on a direct objective, whatever its losses: the chain rule through log-probs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llm_bridge import processes
from llm_bridge.catalogue import prompt_numbers
from llm_bridge.models import device_of
from simbandit.objective import Descent, DuelObjective
from simbandit.types import Contexts

if TYPE_CHECKING:
    from llm_bridge.policy import LMPolicy


@dataclass(frozen=True)
class Training:
    """How `fit` trains. The objective's sum is divided by its total weight, so a learning rate is per duel.

    descent: steps, learning rate, optimiser; moments start afresh in every fit. An algorithm that states its own
        descent gets that one.
    minibatch: duels a step, drawn without replacement (None: all). Their gradients are exact, those of the others
        left out, and the sum scaled up. A loss that mixes the duels of a batch sees the others at their last known
        values.
    accumulate: tokens whose activations are held at once. Beyond it the gradient in the log-probabilities comes first
        (one more forward pass), then that of the weights part by part: the same gradient in less memory.
    clip: largest norm of a step's gradient. seed: of the minibatches.
    autocast: compute in this dtype (mixed precision: weights and optimiser stay as they are). compiled: the body goes
        through torch.compile.
    """

    descent: Descent = field(default_factory=lambda: Descent(steps=10, learning_rate=5e-4))
    minibatch: int | None = None
    accumulate: int = 16384
    clip: float = 1.0
    autocast: torch.dtype | None = None
    compiled: bool = False
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        for name, value in (("minibatch", self.minibatch), ("accumulate", self.accumulate)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        if not self.clip > 0:
            raise ValueError(f"clip: must be > 0, got {self.clip}")


class Tape:
    """Stands in for the policy in an objective: remembers what it is asked, and answers from a list of values."""

    def __init__(self, policy: LMPolicy):
        self.policy, self.calls = policy, 0
        self.asked: list[tuple[list[tuple[int, int]], tuple[int, ...]]] = []
        self.answers: list[Tensor] | None = None

    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        pairs, shape = pairs_of(contexts, actions)
        if self.answers is None:
            self.asked.append((pairs, shape))
            return self.policy.log_probs(contexts, actions)
        self.calls += 1
        return self.answers[self.calls - 1]


class Trainer:
    """Steps of an optimiser on the body's weights, by the chain rule through the log-probabilities."""

    def __init__(self, policy: LMPolicy, training: Training, tape: Tape):
        self.policy, self.training, self.tape = policy, training, tape
        every = [pair for pairs, _ in tape.asked for pair in pairs]
        self.pairs = list(dict.fromkeys(every))
        number = {pair: i for i, pair in enumerate(self.pairs)}
        self.device = device_of(policy.model)
        self.values = torch.tensor([policy.known[p] for p in self.pairs], dtype=torch.float64, device=self.device)
        self.index = [torch.tensor([number[p] for p in ps], device=self.device).view(s) for ps, s in tape.asked]
        self.rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([training.seed, policy.fits])))
        catalogue = policy.catalogue
        self.tokens = [len(catalogue.prompts[x]) + len(catalogue.tokens(x, a)) for x, a in self.pairs]

    def run(self, objective: DuelObjective, descent: Descent) -> Tensor:
        """The norm of the last step's gradient of the whole objective, (1,)."""
        weights = self.policy.body.trainable
        optimiser = descent.over(weights)
        total, norm = objective.weight.clamp_min(1.0), torch.zeros(1)
        for step in tqdm(range(descent.steps), disable=None if self.training.progress else True, leave=False):
            chosen = self._chosen()
            optimiser.zero_grad()
            self._backward(objective, chosen, float(1 / total), fresh=step > 0)
            norm = torch.nn.utils.clip_grad_norm_(weights, self.training.clip)
            optimiser.step()
        return (norm.double() * total.to(norm.device)).view(1)

    def digest(self, objective: DuelObjective, descent: Descent) -> str:
        """sha256 of all that a fit depends on: the weights, the responses, and the objective by its slopes at them."""
        catalogue = self.policy.catalogue
        said = [(catalogue.prompts[x], catalogue.tokens(x, a)) for x, a in self.pairs]
        found = hashlib.sha256(json.dumps([said, repr(descent), repr(self.training), self.policy.fits]).encode())
        for tensor in (*self.policy.weights, *self._slopes(objective)):
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def _slopes(self, objective: DuelObjective) -> tuple[Tensor, ...]:
        """Of the objective in the log-probabilities that it asks for, call by call, at their last known values."""
        leaves = [self.values[index].requires_grad_(True) for index in self.index]
        self.tape.answers, self.tape.calls = leaves, 0
        value = objective(self.tape).sum()
        return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)

    def _chosen(self) -> list[Tensor]:
        """The share of each entry in this step's gradient, per call of the objective, (1, U, 1)."""
        sizes = [index.shape[1] for index in self.index]
        wanted = self.training.minibatch
        if wanted is None or wanted >= sum(sizes):
            return [torch.ones(1, n, 1, device=self.device) for n in sizes]
        mask = torch.zeros(sum(sizes))
        mask[torch.from_numpy(self.rng.choice(sum(sizes), wanted, replace=False))] = sum(sizes) / wanted
        return [part[None, :, None].to(self.device) for part in mask.split(sizes)]

    def _backward(self, objective: DuelObjective, chosen: list[Tensor], share: float, *, fresh: bool) -> None:
        used = torch.cat([i[s.expand_as(i) > 0] for i, s in zip(self.index, chosen, strict=True)]).unique()
        # with several processes each takes the gradient of its part, and the parts are summed
        mine = processes.share(used.tolist()) if self.policy.distributed else used.tolist()
        at_once = sum(self.tokens[i] for i in mine) <= self.training.accumulate
        if self.policy.distributed:
            at_once = all(processes.dealt([at_once]))
        score: Callable[..., Tensor] = self.policy.scored
        held = None
        if at_once:
            held = score([self.pairs[i] for i in mine], gradients=True)
            found = torch.zeros_like(self.values)
            found[mine] = held.detach().double()
            if self.policy.distributed:
                processes.summed(found)
            self.values[used] = found[used]
        elif fresh:
            with torch.no_grad():
                self.values[used] = score([self.pairs[i] for i in used.tolist()]).double()
        slopes = self._slopes(objective)
        slope = torch.zeros_like(self.values)
        for index, part, weight in zip(self.index, slopes, chosen, strict=True):
            slope.index_add_(0, index.flatten(), (share * part * weight).flatten())
        if held is not None:
            if mine:
                (slope[mine].to(held.dtype) * held).sum().backward()
        else:
            for part in self._parts(mine):
                values = score([self.pairs[i] for i in part], gradients=True)
                (slope[part].to(values.dtype) * values).sum().backward()
        if self.policy.distributed:
            processes.sum_gradients(self.policy.body.trainable)

    def _parts(self, used: list[int]) -> list[list[int]]:
        """Runs of pairs, prompt by prompt, of at most `accumulate` tokens."""
        parts: list[list[int]] = [[]] if used else []
        held = 0
        for i in sorted(used, key=lambda i: self.pairs[i]):
            if parts[-1] and held + self.tokens[i] > self.training.accumulate:
                parts.append([])
                held = 0
            parts[-1].append(i)
            held += self.tokens[i]
        return parts


def pairs_of(contexts: Contexts, actions: Tensor | None) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """(prompt, response) numbers of the actions (1, B, k), and that shape."""
    if actions is None:
        raise TypeError(
            "log_probs: a language model cannot list its responses; use a row with proximal=0 whose players and bonus "
            "only draw (current, previous, reference)"
        )
    if len(actions) != 1:
        raise ValueError(f"replicates: a language model runs one at a time, got {len(actions)}")
    numbers = prompt_numbers(contexts)[..., None].expand_as(actions)
    return list(zip(numbers.flatten().tolist(), actions.flatten().tolist(), strict=True)), tuple(actions.shape)
