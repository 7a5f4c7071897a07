"""A real language model as a policy of the simulator: the rows that were verified on tables train its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_bridge import checkpoints, loading, processes
from llm_bridge.catalogue import Catalogue, TextWorld, prompt_numbers
from llm_bridge.decoding import decode
from llm_bridge.scoring import sequence_log_probs
from llm_bridge.training import Tape, Trainer, Training, pairs_of
from simbandit.objective import Descent, DuelObjective
from simbandit.types import Contexts, FitInfo


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

    checkpoints: a folder that keeps the weights after every fit. The same run started again then draws and asks as
    before (on a CPU bit for bit) and reads each fit that it finds instead of training, so it goes on where it was.
    token_budget: tokens of a batch; None for what suits the device.
    distributed: the processes that accelerate has started run the same loop and share the work: each draws, scores and
        takes the gradient of its part; files are the first one's (see `processes`).
    """

    body: _Body = field(repr=False)
    weights: list[Tensor] = field(repr=False)
    catalogue: Catalogue
    tokenizer: Any = None
    max_new_tokens: int = 32
    token_budget: int | None = None
    training: Training | None = field(default_factory=Training)
    fits: int = 0
    checkpoints: Path | None = None
    known: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)
    distributed: bool = False

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
        token_budget: int | None = None,
        training: Training | None = None,
        distributed: bool = False,
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
            distributed=distributed,
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
        token_budget: int | None = None,
        training: Training | None = None,
        distributed: bool = False,
    ) -> LMPolicy:
        """From a model in memory, which becomes the policy's own: its trainable parameters will change."""
        if tokenizer is not None:
            loading.agree(model, tokenizer)
        texts = [p for p in prompts if isinstance(p, str)]
        ids: Any = loading.encode_prompts(tokenizer, texts, chat=chat) if texts else prompts
        if texts and len(texts) != len(prompts):
            raise ValueError("prompts: must all be texts, or all token ids")
        loading.room(model, ids, max_new_tokens)
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
            distributed=distributed,
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
        pairs, shape = pairs_of(contexts, actions)
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
        asked = list(zip(prompts, uniforms, strict=True))
        mine = processes.share(asked) if self.distributed else asked
        drawn = decode(
            self.model,
            [self.catalogue.prompts[x] for x, _ in mine],
            [u for _, u in mine],
            max_new_tokens=self.max_new_tokens,
            end=self.catalogue.end,
            temperature=temperature,
            top_p=top_p,
            token_budget=8192 if self.token_budget is None else 2 * self.token_budget,
            autocast=None if self.training is None else self.training.autocast,
        )
        return processes.dealt(drawn) if self.distributed else drawn

    def fit(self, objective: DuelObjective) -> tuple[LMPolicy, FitInfo]:
        """Trains from these weights; see `Training`. The residual is the gradient's norm at the last step (a
        minibatch's, where there is one); nothing claims convergence."""
        if self.training is None:
            raise TypeError("fit: this policy is frozen")
        tape = Tape(self)
        with torch.no_grad():
            objective(tape)  # learns which log-probabilities the objective looks at
        trainer = Trainer(self, self.training, tape)
        descent = objective.descent or self.training.descent
        held = digest = None
        if self.checkpoints is not None:
            digest = trainer.digest(objective, descent)
            read = partial(checkpoints.read, self.checkpoints, self.fits, digest, self.weights)
            held = processes.from_first(read) if self.distributed else read()
        if held is None:
            residual = self._trained(trainer, objective, descent)
            weights = self.body.snapshot()
            if self.checkpoints is not None and digest is not None and not (self.distributed and processes.rank()):
                checkpoints.write(self.checkpoints, self.fits, digest, weights, float(residual))
        else:
            weights = [w.to(p.device) for w, p in zip(held[0], self.weights, strict=True)]
            residual = torch.tensor([held[1]], dtype=torch.float64)
        fitted = dataclasses.replace(self, weights=weights, fits=self.fits + 1, known={})
        steps = torch.full_like(residual, float(descent.steps))
        return fitted, FitInfo(residual, torch.zeros_like(residual, dtype=torch.bool), steps)

    def _trained(self, trainer: Trainer, objective: DuelObjective, descent: Descent) -> Tensor:
        self.body.busy = True
        try:
            return trainer.run(objective, descent)
        except BaseException:
            self.body.loaded = None  # the model holds half-trained weights that are nobody's
            raise
        finally:
            self.body.busy = False

    def freeze(self) -> LMPolicy:
        """The same policy, which refuses to be fitted."""
        return dataclasses.replace(self, training=None)

    def save(self, path: str | Path) -> None:
        """Model (an adapter's weights alone, with LoRA) and tokenizer in the standard format, safetensors."""
        if self.distributed and processes.rank():
            return
        self.model.save_pretrained(str(path))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(path))

    # ------------------------------------------------------------------------------------------------------ inside

    def _learn(self, pairs: list[tuple[int, int]]) -> None:
        """Scores what is not known yet."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.known]
        if new:
            self.known.update(zip(new, self.scored(new).double().tolist(), strict=True))

    def scored(self, pairs: list[tuple[int, int]], gradients: bool = False) -> Tensor:
        """Log-probabilities of (prompt, response) numbers under the weights that are in the model now, (n,). Processes
        share the work where no gradients are asked for."""
        training = self.training
        return sequence_log_probs(
            self.model,
            [self.catalogue.prompts[x] for x, _ in pairs],
            [self.catalogue.tokens(x, a) for x, a in pairs],
            gradients=gradients,
            token_budget=self.token_budget,
            autocast=None if training is None else training.autocast,
            compiled=training is not None and training.compiled,
            distributed=self.distributed and not gradients,
        )
