"""A real language model as a policy of the simulator: the rows that were verified on tables train its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llm_bridge import loading
from llm_bridge.batches import device_of
from llm_bridge.catalogue import Catalogue, TextWorld, prompt_numbers
from llm_bridge.decoding import decode
from llm_bridge.scoring import sequence_log_probs
from simbandit.objective import Descent, DuelObjective
from simbandit.types import Contexts, FitInfo


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
    """

    descent: Descent = field(default_factory=lambda: Descent(steps=30, learning_rate=1e-3))
    minibatch: int | None = None
    accumulate: int = 16384
    clip: float = 1.0
    autocast: torch.dtype | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        for name, value in (("minibatch", self.minibatch), ("accumulate", self.accumulate)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        if not self.clip > 0:
            raise ValueError(f"clip: must be > 0, got {self.clip}")


class _Body:
    """The one model in memory, whose trainable weights are those of the policy that was used last."""

    def __init__(self, model: Any):
        self.model, self.busy = model, False
        self.loaded: list[Tensor] | None = None
        self.trainable = [p for p in model.parameters() if p.requires_grad]

    def snapshot(self) -> list[Tensor]:
        self.loaded = [p.detach().clone() for p in self.trainable]
        return self.loaded

    def load(self, weights: list[Tensor]) -> Any:
        if self.loaded is not weights:
            if self.busy:
                raise RuntimeError("model: another policy was asked while this model trains; score it before the fit")
            with torch.no_grad():
                for p, w in zip(self.trainable, weights, strict=True):
                    p.copy_(w)
            self.loaded = weights
        return self.model


@dataclass(frozen=True, eq=False)
class LMPolicy:
    """Immutable, as every policy: `fit` returns another one. The model itself is in memory once; policies differ in
    their trainable weights (an adapter's, with LoRA), which are copied into it when a policy is asked.

    Contexts are prompts and actions numbers of responses in the catalogue. Responses cannot be listed: use direct rows
    with proximal=0 and players among "current", "previous" and "reference". Log-probabilities are those of whole
    responses at temperature 1, kept once computed: those of the reference and the last policy are therefore computed
    at collection, never again. One replicate at a time. The learner's bound on log-ratios is not imposed.
    """

    body: _Body
    weights: list[Tensor]
    catalogue: Catalogue
    tokenizer: Any = None
    max_new_tokens: int = 32
    token_budget: int = 4096
    training: Training | None = field(default_factory=Training)
    fits: int = 0
    known: dict[tuple[int, int], float] = field(default_factory=dict)

    @staticmethod
    def from_pretrained(
        path_or_id: str | Path,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        chat: bool = False,
        adapter: str | Path | None = None,
        lora: int | Any | None = None,
        max_new_tokens: int = 32,
        capacity: int = 4096,
        token_budget: int = 4096,
        training: Training | None = None,
        dtype: torch.dtype | str = "auto",
        device: str = "cpu",
        **options: Any,
    ) -> LMPolicy:
        """From a folder or a hub id: safetensors only, no remote code.

        prompts: texts (through the chat template with `chat`), or token ids. lora: rank of a fresh adapter on all
            linear layers, or a peft config; None trains all weights. adapter: a folder of a trained adapter.
        max_new_tokens: longer responses are cut there, which is part of the policy's law. options: of
            transformers' `from_pretrained`.
        Raises ValueError for unsafe weights, a tokenizer that does not fit, an adapter of another base, and prompts
        that leave no room for a response.
        """
        model = loading.load_model(path_or_id, dtype=dtype, device=device, **options)
        tokenizer = loading.load_tokenizer(path_or_id)
        if adapter is not None:
            model = loading.load_adapter(model, adapter, path_or_id)
        elif lora is not None:
            import peft

            config = peft.LoraConfig(r=lora, target_modules="all-linear") if isinstance(lora, int) else lora
            with torch.random.fork_rng(devices=[]):  # peft draws the adapter's start from the global stream
                model = peft.get_peft_model(model, config)
        return LMPolicy.of(
            model,
            tokenizer,
            prompts,
            chat=chat,
            max_new_tokens=max_new_tokens,
            capacity=capacity,
            token_budget=token_budget,
            training=training,
        )

    @staticmethod
    def of(
        model: Any,
        tokenizer: Any,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        chat: bool = False,
        max_new_tokens: int = 32,
        capacity: int = 4096,
        token_budget: int = 4096,
        training: Training | None = None,
    ) -> LMPolicy:
        """From a model in memory, which becomes the policy's own: its trainable parameters will change."""
        if tokenizer is not None:
            loading.agree(model, tokenizer)
        texts = [p for p in prompts if isinstance(p, str)]
        ids: Any = loading.encode_prompts(tokenizer, texts, chat=chat) if texts else prompts
        if texts and len(texts) != len(prompts):
            raise ValueError("prompts: must all be texts, or all token ids")
        catalogue = Catalogue(ids, loading.end_tokens(model, tokenizer), capacity=capacity, tokenizer=tokenizer)
        body = _Body(model)
        return LMPolicy(
            body,
            body.snapshot(),
            catalogue,
            tokenizer,
            max_new_tokens,
            token_budget,
            Training() if training is None else training,
        )

    @property
    def model(self) -> Any:
        """The model with this policy's weights in it, until another policy is asked."""
        return self.body.load(self.weights)

    def world(self, **options: Any) -> TextWorld:
        """The world of this policy's prompts; options of `TextWorld`."""
        return TextWorld(self.catalogue, **options)

    def shown(self, prompt: int) -> str:
        """The prompt as the model reads it, special tokens included."""
        return self.tokenizer.decode(list(self.catalogue.prompts[prompt]), skip_special_tokens=False)

    # ---------------------------------------------------------------------------------------------------- protocol

    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        """(1, B, k), in nats."""
        pairs, shape = _pairs(contexts, actions)
        self._learn(pairs)
        values = [self.known[pair] for pair in pairs]
        return torch.tensor(values, dtype=torch.float64, device=contexts.ref_log_probs.device).view(shape)

    def sample(self, contexts: Contexts, uniforms: Tensor) -> Tensor:
        """(1, B) numbers of responses, new ones interned."""
        numbers = prompt_numbers(contexts)[0].tolist()
        drawn = self.generate(numbers, uniforms[0].tolist())
        ids = [self.catalogue.intern(x, response) for x, response in zip(numbers, drawn, strict=True)]
        return torch.tensor([ids], device=uniforms.device)

    def generate(
        self, prompts: Sequence[int], uniforms: Sequence[float], *, temperature: float = 1.0, top_p: float = 1.0
    ) -> list[tuple[int, ...]]:
        """Responses as token ids to prompts by number: a function of the policy, the prompt and its uniform."""
        return decode(
            self.model,
            [self.catalogue.prompts[x] for x in prompts],
            uniforms,
            max_new_tokens=self.max_new_tokens,
            end=self.catalogue.end,
            temperature=temperature,
            top_p=top_p,
            token_budget=2 * self.token_budget,
            autocast=None if self.training is None else self.training.autocast,
        )

    def fit(self, objective: DuelObjective) -> tuple[LMPolicy, FitInfo]:
        """Trains from these weights; see `Training`. The residual is the gradient's norm at the last step (a
        minibatch's, where there is one); nothing claims convergence."""
        if self.training is None:
            raise TypeError("fit: this policy is frozen")
        tape = _Tape(self)
        with torch.no_grad():
            objective(tape)  # learns which log-probabilities the objective looks at
        trainer = _Trainer(self, self.training, tape)
        descent = objective.descent or self.training.descent
        self.body.busy = True
        try:
            residual = trainer.run(objective, descent)
        except BaseException:
            self.body.loaded = None  # the model holds half-trained weights that are nobody's
            raise
        finally:
            self.body.busy = False
        weights = self.body.snapshot()
        fitted = dataclasses.replace(self, weights=weights, fits=self.fits + 1, known={})
        steps = torch.full_like(residual, float(descent.steps))
        return fitted, FitInfo(residual, torch.zeros_like(residual, dtype=torch.bool), steps)

    def freeze(self) -> LMPolicy:
        """The same policy, which refuses to be fitted."""
        return dataclasses.replace(self, training=None)

    def save(self, path: str | Path) -> None:
        """Model (an adapter's weights alone, with LoRA) and tokenizer in the standard format, safetensors."""
        self.model.save_pretrained(str(path))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(path))

    # ------------------------------------------------------------------------------------------------------ inside

    def _learn(self, pairs: list[tuple[int, int]]) -> None:
        """Scores what is not known yet."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.known]
        if new:
            self.known.update(zip(new, self._scored(new).double().tolist(), strict=True))

    def _scored(self, pairs: list[tuple[int, int]], gradients: bool = False) -> Tensor:
        autocast = None if self.training is None else self.training.autocast
        return sequence_log_probs(
            self.model,
            [self.catalogue.prompts[x] for x, _ in pairs],
            [self.catalogue.tokens(x, a) for x, a in pairs],
            gradients=gradients,
            token_budget=self.token_budget,
            autocast=autocast,
        )


class _Tape:
    """Stands in for the policy in an objective: remembers what it is asked, and answers from a list of values."""

    def __init__(self, policy: LMPolicy):
        self.policy, self.calls = policy, 0
        self.asked: list[tuple[list[tuple[int, int]], tuple[int, ...]]] = []
        self.answers: list[Tensor] | None = None

    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        pairs, shape = _pairs(contexts, actions)
        if self.answers is None:
            self.asked.append((pairs, shape))
            return self.policy.log_probs(contexts, actions)
        self.calls += 1
        return self.answers[self.calls - 1]


class _Trainer:
    """Steps of an optimiser on the body's weights, by the chain rule through the log-probabilities."""

    def __init__(self, policy: LMPolicy, training: Training, tape: _Tape):
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
        if descent.optimiser == "adamw":
            optimiser: torch.optim.Optimizer = torch.optim.AdamW(
                weights, lr=descent.learning_rate, weight_decay=descent.weight_decay
            )
        else:
            optimiser = torch.optim.SGD(weights, lr=descent.learning_rate, weight_decay=descent.weight_decay)
        total, norm = objective.weight.clamp_min(1.0), torch.zeros(1)
        for step in tqdm(range(descent.steps), disable=None if self.training.progress else True, leave=False):
            chosen = self._chosen()
            optimiser.zero_grad()
            self._backward(objective, chosen, float(1 / total), fresh=step > 0)
            norm = torch.nn.utils.clip_grad_norm_(weights, self.training.clip)
            optimiser.step()
        return (norm.double() * total.to(norm.device)).view(1)

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
        at_once = sum(self.tokens[i] for i in used.tolist()) <= self.training.accumulate
        score: Callable[..., Tensor] = self.policy._scored
        named = [self.pairs[i] for i in used.tolist()]
        held = None
        if at_once:
            held = score(named, gradients=True)
            self.values[used] = held.detach().double()
        elif fresh:
            with torch.no_grad():
                self.values[used] = score(named).double()
        leaves = [self.values[index].requires_grad_(True) for index in self.index]
        self.tape.answers, self.tape.calls = leaves, 0
        value = objective(self.tape).sum() * share
        slopes = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        slope = torch.zeros_like(self.values)
        for index, part, weight in zip(self.index, slopes, chosen, strict=True):
            slope.index_add_(0, index.flatten(), (part * weight).flatten())
        if held is not None:
            (slope[used].to(held.dtype) * held).sum().backward()
            return
        for part in self._parts(used):
            values = score([self.pairs[i] for i in part], gradients=True)
            (slope[part].to(values.dtype) * values).sum().backward()

    def _parts(self, used: Tensor) -> list[list[int]]:
        """Runs of pairs, prompt by prompt, of at most `accumulate` tokens."""
        parts: list[list[int]] = [[]]
        held = 0
        for i in sorted(used.tolist(), key=lambda i: self.pairs[i]):
            if parts[-1] and held + self.tokens[i] > self.training.accumulate:
                parts.append([])
                held = 0
            parts[-1].append(i)
            held += self.tokens[i]
        return parts


def _pairs(contexts: Contexts, actions: Tensor | None) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
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
