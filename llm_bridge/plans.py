"""What a training run will cost: tokens, FLOPs, memory and hours, before it is started, with the assumptions said."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_bridge.batches import unwrapped
from llm_bridge.enhancers import effort
from llm_bridge.policy import LMPolicy
from llm_bridge.scoring import sequence_log_probs
from simbandit.algorithms.direct import Data, Direct

ACTIVATION_BYTES = 34  # a token, layer and hidden unit in 16 bits, without attention maps: 2205.05198, eq. 2
TRAINED_PASSES = 3  # a forward and a backward pass, the latter of about two forward ones


@dataclass(frozen=True)
class Rates:
    """Tokens per second of drawing, scoring and training (forward and backward), seconds of a judge's answer, and where
    they come from."""

    drawing: float
    scoring: float
    training: float
    question: float
    source: str


@dataclass(frozen=True)
class Size:
    """Of a model: parameters, those that are trained, bytes of all and of the trained ones, layers, width."""

    parameters: int
    trainable: int
    held: int
    trainable_bytes: int
    layers: int
    width: int
    precision: int

    @staticmethod
    def of(model: Any) -> Size:
        every, config = list(model.parameters()), unwrapped(model).config
        trained = [p for p in every if p.requires_grad]
        return Size(
            parameters=sum(p.numel() for p in every),
            trainable=sum(p.numel() for p in trained),
            held=sum(p.numel() * p.element_size() for p in every),
            trainable_bytes=sum(p.numel() * p.element_size() for p in trained),
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            precision=every[0].element_size(),
        )


@dataclass(frozen=True)
class Run:
    """A training run as `llm-bridge train` makes it. evaluation: responses judged every round, and before the first.

    data: a fit sees this round's duels, "all" so far (each scored once more every round), or, "offline", all at once.
    fits: a round. draws: responses drawn a duel, those among which a player chooses too; weighed: log-probabilities
    asked for to choose; singles: responses a duel that a bonus sees beside the pair.
    """

    rounds: int
    batch_size: int
    steps: int
    minibatch: int | None = None
    evaluation: int = 0
    accumulate: int = 16384
    data: Data = "fresh"
    fits: int = 1
    draws: int = 2
    weighed: int = 0
    singles: int = 0

    def under(self, row: Direct) -> Run:
        """The same run of this row (`rows.direct_row`), which states its own number of steps, if it does."""
        players: list[Any] = ["reference"] * 2 if row.offline else list(row.players)
        own = row.bonus is not None and row.calibration not in ("first", "second")
        work = [effort(player) for player in [*players, *([row.calibration] * own)]]
        return dataclasses.replace(
            self,
            steps=self.steps if row.descent is None else row.descent.steps,
            data=row.data,
            fits=row.passes + row.optimistic,
            draws=sum(draws for draws, _ in work),
            weighed=sum(weighed for _, weighed in work),
            singles=int(own),
        )

    def responses(self) -> dict[str, int]:
        """How many responses are drawn, scored and trained on (passes, forward and backward together), and questions to
        the judge. Upper bounds: equal responses are scored once, a duel of equal ones is not trained on."""
        T, B, E = self.rounds, self.batch_size, self.evaluation
        duels = {"fresh": [B] * T, "all": [t * B for t in range(1, T + 1)], "offline": [B * T]}[self.data]
        judged, each = E * ((1 if self.data == "offline" else T) + 1), 2 + self.singles
        return {
            "drawn": self.draws * B * T + judged + E,
            # the reference once; the policy before every fit, which at the first is the reference
            "scored": each * (B * T + self.fits * sum(duels) - duels[0]) + self.weighed * B * T + 2 * judged,
            "trained": self.fits * sum(self.steps * each * min(self.minibatch or n, n) for n in duels),
            "asked": B * T + judged,
        }


@dataclass(frozen=True)
class Plan:
    """A run's cost for a model whose responses have `response` tokens and prompts `prompt` (means)."""

    run: Run
    size: Size
    prompt: float
    response: float
    rates: Rates | None = None

    @property
    def tokens(self) -> dict[str, float]:
        """Tokens that pass through the model. Prompts are counted with every response, although several responses to
        one prompt share its encoding."""
        found = self.run.responses()
        whole = self.prompt + self.response
        return {name: found[name] * whole for name in ("drawn", "scored", "trained")}

    @property
    def flops(self) -> float:
        """2 per parameter and token forward, and attention's 4 x layers x width x (half the length); three times that
        in training."""
        tokens = self.tokens
        each = 2 * self.size.parameters + 2 * self.size.layers * self.size.width * (self.prompt + self.response)
        return each * (tokens["drawn"] + tokens["scored"] + TRAINED_PASSES * tokens["trained"])

    @property
    def memory(self) -> dict[str, float]:
        """Bytes: the model, the weights of the reference, the last and the present policy, gradient and AdamW's two
        moments, and activations of `accumulate` tokens (34 bytes a token, layer and unit in 16 bits, 2205.05198)."""
        kept = self.size.trainable_bytes
        largest = min(self.run.accumulate, self.run.batch_size * 2 * (self.prompt + self.response))
        per_token = self.size.layers * self.size.width * ACTIVATION_BYTES * self.size.precision / 2
        return {
            "model": float(self.size.held),
            "other policies": 3.0 * kept,
            "gradient and moments": 3.0 * kept,
            "activations": largest * per_token,
        }

    @property
    def hours(self) -> float | None:
        """None without rates."""
        if self.rates is None:
            return None
        tokens, rates = self.tokens, self.rates
        seconds = tokens["drawn"] / rates.drawing + tokens["scored"] / rates.scoring
        seconds += tokens["trained"] / rates.training + self.run.responses()["asked"] * rates.question
        return seconds / 3600

    def as_dict(self) -> dict[str, Any]:
        told = {"run": dataclasses.asdict(self.run), "size": dataclasses.asdict(self.size)}
        told |= {"prompt_tokens": self.prompt, "response_tokens": self.response}
        rates = None if self.rates is None else dataclasses.asdict(self.rates)
        found = self.run.responses()
        return told | {
            "rates": rates,
            "responses": found,
            "tokens": self.tokens,
            "flops": self.flops,
            "memory_bytes": self.memory,
            "hours": self.hours,
        }

    def __str__(self) -> str:
        run, tokens, memory = self.run, self.tokens, self.memory
        minibatch = "" if run.minibatch is None else f" on {run.minibatch}"
        data = {"fresh": "fresh duels", "all": "all duels so far", "offline": "all duels at once"}[run.data]
        fits = "" if run.fits == 1 else f"{run.fits} fits of "
        when = "" if run.data == "offline" else " a round"
        lines = [
            f"{run.rounds} rounds x {run.batch_size} duels, {fits}{run.steps} optimiser steps{when}{minibatch}, {data}",
            f"{self.size.parameters:,} parameters, {self.size.trainable:,} trained; {self.prompt:.0f} + "
            f"{self.response:.0f} tokens a prompt and response",
            "tokens: " + ", ".join(f"{name} {n:.3g}" for name, n in tokens.items()) + f"; {self.flops:.2g} FLOPs",
            "memory: "
            + ", ".join(f"{name} {size(n)}" for name, n in memory.items())
            + f"; {size(sum(memory.values()))} in all",
            f"questions to the judge: {run.responses()['asked']:,}",
        ]
        if self.rates is not None and self.hours is not None:
            lines.append(f"time: {duration(3600 * self.hours)}, {self.rates.source}")
        return "\n".join(lines)


def longest(policy: LMPolicy, run: Run, flop_rate: float | None = None) -> Plan:
    """A run's plan without drawing anything: every response as long as it may be; hours only at a rate given."""
    prompts = policy.catalogue.prompts
    mean = sum(map(len, prompts)) / len(prompts)
    plan = Plan(run, Size.of(policy.model), mean, float(policy.max_new_tokens))
    return plan if flop_rate is None else dataclasses.replace(plan, rates=given(flop_rate, plan))


def cost(model: Any, tokens: int) -> str:
    """One line: parameters, their memory, tokens and the forward FLOPs of about 2 per parameter and token."""
    held = Size.of(model)
    told = f"{held.parameters:,} parameters ({size(held.held)}), at most about {tokens:,} tokens"
    return f"{told}, {2 * held.parameters * tokens:.2g} FLOPs"


def measured(policy: LMPolicy, *, responses: int = 64, question: float = 0.0) -> tuple[Rates, float, float]:
    """Rates on this machine from that many responses, and the mean tokens of a prompt and a response. question: seconds
    of a judge's answer, measured elsewhere. Weights are left alone."""
    n = len(policy.catalogue.prompts)
    owners = [i % n for i in range(responses)]
    prompts = [policy.catalogue.prompts[x] for x in owners]
    uniforms = [(i + 0.5) / responses for i in range(responses)]
    policy.generate(owners[:2], uniforms[:2])  # the first call builds what later ones reuse
    drawing, drawn = _timed(lambda: policy.generate(owners, uniforms))
    scoring, _ = _timed(lambda: sequence_log_probs(policy.model, prompts, drawn, token_budget=policy.token_budget))

    def trained() -> None:
        model = policy.model
        sequence_log_probs(model, prompts, drawn, gradients=True, token_budget=policy.token_budget).sum().backward()
        model.zero_grad(set_to_none=True)

    training, _ = _timed(trained)
    lengths = sum(map(len, prompts)), sum(map(len, drawn))
    tokens = sum(lengths)
    source = f"extrapolated from {responses} responses drawn, scored and trained on here ({_machine(policy.model)})"
    rates = Rates(tokens / drawing, tokens / scoring, tokens / training, question, source)
    return rates, lengths[0] / responses, lengths[1] / responses


def given(flop_rate: float, plan: Plan, question: float = 0.0) -> Rates:
    """Rates at a sustained number of FLOP per second that the user states."""
    if not flop_rate > 0:
        raise ValueError(f"flops: must be a rate > 0 in FLOP per second, got {flop_rate}")
    forward = flop_rate / (
        2 * plan.size.parameters + 2 * plan.size.layers * plan.size.width * (plan.prompt + plan.response)
    )
    source = (
        f"at the {flop_rate:.3g} FLOP/s given, for drawing too (which memory bandwidth often limits to a tenth of it)"
    )
    return Rates(forward, forward, forward / TRAINED_PASSES, question, source)


def question_seconds(judge: Any, asked: Sequence[tuple[str, str, str]]) -> float:
    """Seconds of an answer: of the judge itself, where answers are cached."""
    seconds, _ = _timed(lambda: getattr(judge, "judge", judge)(asked))
    return seconds / len(asked)


def size(n: float) -> str:
    """Bytes in words."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            break
        n /= 1024
    return f"{n:,.3g} {unit}"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _machine(model: Any) -> str:
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return max(time.perf_counter() - start, 1e-9), result
