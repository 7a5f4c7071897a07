"""Annotators that read text: reward models, pairwise judges, a gold model's likelihood, and exact synthetic ones.

A judge takes (prompt, first, second) texts and gives P(first preferred); `TextOracle` puts it behind the simulator's
duels. `Cached` keeps every answer by content, so that a rerun asks nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_bridge import processes
from llm_bridge.batches import buckets
from llm_bridge.catalogue import Catalogue, prompt_numbers
from llm_bridge.loading import encode_prompts, fingerprint, load_model, load_tokenizer, refuse_unsafe
from llm_bridge.models import device_of
from llm_bridge.scoring import sequence_log_probs
from simbandit.draws import Round
from simbandit.types import Contexts, Feedback

Asked = Sequence[tuple[str, str, str]]


class Judge(Protocol):
    """P(first preferred) for every (prompt, first, second). `name` changes whenever an answer could."""

    @property
    def name(self) -> str: ...

    def __call__(self, asked: Asked) -> list[float]: ...


class Scorer(Protocol):
    """A reward for every (prompt, response)."""

    @property
    def name(self) -> str: ...

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]: ...


# ------------------------------------------------------------------------------------------------------------ scorers


@dataclass(frozen=True)
class Written:
    """A reward written as a function of (prompt, response), such as those of `llm_bridge.toy`."""

    function: Callable[[str, str], float]

    @property
    def name(self) -> str:
        return f"written:{self.function.__module__}.{self.function.__qualname__}"

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [float(self.function(prompt, response)) for prompt, response in pairs]


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A sequence-classification head with one output. template joins prompt and response ("{prompt} {response}")."""

    model: Any
    tokenizer: Any
    template: str = "{prompt} {response}"
    token_budget: int = 4096

    def __post_init__(self) -> None:
        if self.model.config.num_labels != 1:
            raise ValueError(f"model: a reward model has one output, this one has {self.model.config.num_labels}")

    @property
    def name(self) -> str:
        return f"reward:{fingerprint(self.model)}:{self.template}"

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        rows = [self.tokenizer(self.template.format(prompt=p, response=r))["input_ids"] for p, r in pairs]
        lengths, scores = [len(row) for row in rows], [0.0] * len(rows)
        self.model.eval()
        for bucket in buckets(lengths, self.token_budget):
            # rows of one length: classification heads look for the last token that is not padding
            for length in sorted({lengths[i] for i in bucket}):
                batch = [i for i in bucket if lengths[i] == length]
                ids = torch.tensor([rows[i] for i in batch], device=device_of(self.model))
                with torch.no_grad():
                    logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
                for i, score in zip(batch, logits.tolist(), strict=True):
                    scores[i] = score
        return scores


@dataclass(frozen=True, eq=False)
class GoldLM:
    """The log-likelihood of a gold language model, in nats, the end token included."""

    model: Any
    tokenizer: Any
    chat: bool = False

    @property
    def name(self) -> str:
        return f"gold:{fingerprint(self.model)}"

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        prompts = encode_prompts(self.tokenizer, [p for p, _ in pairs], chat=self.chat)
        end = self.tokenizer.eos_token_id
        said = [[*self.tokenizer(r, add_special_tokens=False)["input_ids"], end] for _, r in pairs]
        return sequence_log_probs(self.model, prompts, said).tolist()


# ------------------------------------------------------------------------------------------------------------- judges


@dataclass(frozen=True)
class BradleyTerry:
    """sigma((r_first - r_second) / temperature) of a scorer."""

    scorer: Scorer
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature: must be > 0, got {self.temperature}")

    @property
    def name(self) -> str:
        return f"bradley_terry:{self.temperature}:{self.scorer.name}"

    def __call__(self, asked: Asked) -> list[float]:
        pairs = list(dict.fromkeys((p, text) for p, *both in asked for text in both))
        score = dict(zip(pairs, self.scorer(pairs), strict=True))
        margins = torch.tensor([score[p, a] - score[p, b] for p, a, b in asked], dtype=torch.float64)
        return torch.sigmoid(margins / self.temperature).tolist()


@dataclass(frozen=True)
class Preferring:
    """A preference written as a function of (prompt, first, second)."""

    function: Callable[[str, str, str], float]

    @property
    def name(self) -> str:
        return f"preferring:{self.function.__module__}.{self.function.__qualname__}"

    def __call__(self, asked: Asked) -> list[float]:
        return [float(self.function(*question)) for question in asked]


TEMPLATE = "{prompt}\n\nResponse A: {first}\n\nResponse B: {second}\n\nThe better response is"


@dataclass(frozen=True, eq=False)
class PairJudge:
    """A language model that says A or B: the likelihood of the two answers, asked in both orders and averaged.

    answers: how the two begin. least: the probability that the two must have together in either order; a judge that
    says something else is an error, not a coin. `biases` collects P(A) averaged over both orders of each question,
    which is 1/2 without position bias.
    """

    model: Any
    tokenizer: Any
    template: str = TEMPLATE
    answers: tuple[str, str] = (" A", " B")
    least: float = 0.01
    chat: bool = False
    biases: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"pair:{fingerprint(self.model)}:{self.template}:{self.answers}:{self.chat}"

    def __call__(self, asked: Asked) -> list[float]:
        orders = [(p, a, b) for p, a, b in asked] + [(p, b, a) for p, a, b in asked]
        texts = [self.template.format(prompt=p, first=a, second=b) for p, a, b in orders]
        prompts = encode_prompts(self.tokenizer, texts, chat=self.chat)
        said = [self.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in self.answers]
        scores = sequence_log_probs(self.model, [p for p in prompts for _ in said], said * len(prompts)).double()
        scores = scores.view(-1, 2)
        heard = torch.logsumexp(scores, -1).exp()
        if bool((heard < self.least).any()):
            worst = int(heard.argmin()) % len(asked)
            raise ValueError(
                f"judge: says neither {self.answers[0]!r} nor {self.answers[1]!r} to question {worst} (together they "
                f"have probability {float(heard.min()):.2g}, at least {self.least} is asked for); change the template"
            )
        p_a = torch.softmax(scores, -1)[:, 0]
        first, turned = p_a.split(len(asked))
        self.biases.extend(((first + turned) / 2).tolist())
        return ((first + 1 - turned) / 2).tolist()

    def position_bias(self) -> float:
        """Mean P(A) - 1/2 over everything asked so far."""
        return sum(self.biases) / len(self.biases) - 0.5 if self.biases else 0.0


class Cached:
    """A judge whose answers are kept by content in a JSONL file, next to the name of the judge.

    distributed: of several processes the first one alone asks and keeps, and tells the others.
    Raises ValueError where the file belongs to another judge (a changed model, another template).
    """

    def __init__(self, judge: Judge, path: str | Path | None = None, *, distributed: bool = False):
        follows = distributed and processes.rank() > 0
        self.judge, self.path, self.asked = judge, None if path is None or follows else Path(path), 0
        self.distributed = distributed
        self.held: dict[str, float] = {}
        self.name = judge.name
        if self.path is not None and self.path.exists():
            first, *lines = self.path.read_text().splitlines()
            owner = json.loads(first)["judge"]
            if owner != self.name:
                raise ValueError(
                    f"path: {self.path} holds the answers of {owner}, and the judge is {self.name}; use another file"
                )
            whole = [line for line in lines if line.endswith("}")]
            if len(whole) < len(lines):  # a killed process left half a line
                self.path.write_text("\n".join([first, *whole]) + "\n")
            self.held = {row["key"]: row["p"] for row in map(json.loads, whole)}
        elif self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"judge": self.name}) + "\n")

    def __call__(self, asked: Asked) -> list[float]:
        return processes.from_first(lambda: self._answers(asked)) if self.distributed else self._answers(asked)

    def _answers(self, asked: Asked) -> list[float]:
        keys = [hashlib.sha256(json.dumps(question).encode()).hexdigest() for question in asked]
        new = {key: question for key, question in zip(keys, asked, strict=True) if key not in self.held}
        if new:
            answers = self.judge(list(new.values()))
            for question, p in zip(new.values(), answers, strict=True):
                if not 0 <= p <= 1:
                    raise ValueError(f"judge: gave {p} for {question}; a preference lies in [0, 1]")
            self.asked += len(new)
            self.held |= dict(zip(new, answers, strict=True))
            if self.path is not None:
                with self.path.open("a") as file:
                    file.writelines(json.dumps({"key": k, "p": self.held[k]}) + "\n" for k in new)
        return [self.held[key] for key in keys]


@dataclass(frozen=True, eq=False)
class TextOracle:
    """A judge of texts as the simulator's annotator of duels; prompts and responses are read from the catalogue.

    soft: answers P(first preferred) itself instead of a label drawn from it.
    """

    catalogue: Catalogue
    judge: Judge
    soft: bool = False

    @property
    def feedback(self) -> Feedback:
        return "preference"

    @property
    def n_select(self) -> int:
        return 2

    def bind(self, instance: Any) -> TextOracle:
        del instance  # the truth is the judge
        return self

    def prob(self, contexts: Contexts, first: Tensor, second: Tensor) -> Tensor:
        """P(first preferred), (1, B)."""
        rows = zip(prompt_numbers(contexts)[0].tolist(), first[0].tolist(), second[0].tolist(), strict=True)
        read = self.catalogue
        asked = [(read.prompt_text(x), read.text(x, a), read.text(x, b)) for x, a, b in rows]
        return torch.tensor([self.judge(asked)], dtype=torch.float64, device=first.device)

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        p = self.prob(contexts, actions[..., 0], actions[..., 1])
        return p if self.soft else (draws.uniform("annotator", actions.shape[1]) < p).to(p.dtype)


# ---------------------------------------------------------------------------------------------- by name, for shells


def named_scorer(name: str) -> Scorer:
    """toy:true, toy:length, toy:lexicon, toy:topic, toy:grammar, reward:FOLDER or gold:FOLDER."""
    kind, _, rest = name.partition(":")
    if kind == "toy":
        from llm_bridge import toy

        function = getattr(toy, f"{rest}_reward", None)
        if function is None:
            raise ValueError(f"judge: toy:{rest} is no toy reward; there are true, length, lexicon, topic, grammar")
        return Written(function)
    if kind == "reward":
        from transformers import AutoModelForSequenceClassification

        refuse_unsafe(rest)
        model = AutoModelForSequenceClassification.from_pretrained(rest, use_safetensors=True, trust_remote_code=False)
        return RewardModel(model, load_tokenizer(rest))
    if kind == "gold":
        return GoldLM(load_model(rest), load_tokenizer(rest))
    raise ValueError(f"judge: must be toy:NAME, reward:FOLDER or gold:FOLDER to give rewards, got {name!r}")


def named_judge(name: str) -> Judge:
    """toy:intransitive, pair:FOLDER, or Bradley-Terry of a named scorer."""
    kind, _, rest = name.partition(":")
    if name == "toy:intransitive":
        from llm_bridge import toy

        return Preferring(toy.intransitive_raters)
    if kind == "pair":
        return PairJudge(load_model(rest), load_tokenizer(rest))
    return BradleyTerry(named_scorer(name))
