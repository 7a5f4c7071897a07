"""A language model that needs no download: trained in seconds on a grammar whose perplexity floor is known.

`train(path)` leaves a folder in the standard format (model.safetensors, config.json, tokenizer.json, prompts.jsonl), so
that everything that takes a model's name takes this path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_bridge.grammar import GOOD_WORDS, SPECIAL, Grammar
from llm_bridge.scoring import sequence_log_probs

Kind = Literal["llama", "gpt2"]
WINDOW = 128
HELD_OUT = 500  # texts on which the perplexity is judged
STEPS, BATCH = 800, 32  # of the training whose perplexity is within 1.05x of the floor
CHAT = "{% for m in messages %}{{ bos_token }}{{ m['content'] }} {% endfor %}"


@dataclass(frozen=True)
class Trained:
    """Perplexity per token of held-out texts: the model's, and the floor that no model can beat on average."""

    perplexity: float
    floor: float
    tokens: int


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    ids = {word: i for i, word in enumerate(_grammar().words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    made = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=WINDOW, **special)
    made.chat_template = CHAT
    return made


def untrained(kind: Kind = "llama", *, width: int = 48, layers: int = 2, heads: int = 4, seed: int = 0) -> Any:
    """A random model over the grammar's words; embeddings tied, of standard deviation width^-1/2."""
    size, pad, bos, eos = len(_grammar().words), *(SPECIAL.index(w) for w in ("<pad>", "<bos>", "<eos>"))
    ids: dict[str, Any] = {"pad_token_id": pad, "bos_token_id": bos, "eos_token_id": eos}
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global stream
        if kind == "gpt2":
            drop: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": WINDOW}
            model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=size, **shape, **drop, **ids))
        elif kind == "llama":
            shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=size,
                    intermediate_size=4 * width,
                    max_position_embeddings=WINDOW,
                    tie_word_embeddings=True,
                    **shape,
                    **ids,
                )
            )
        else:
            raise ValueError(f"kind: must be 'llama' or 'gpt2', got {kind!r}")
    randomise(model, np.random.default_rng([seed, 1]))
    return model


def randomise(model: nn.Module, rng: np.random.Generator) -> None:
    """Matrices N(0, 1/fan-in) (embeddings too: width^-1/2), norms 1, biases 0: from the given stream alone."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.copy_(torch.from_numpy(rng.normal(size=tuple(p.shape)) / math.sqrt(min(p.shape))).to(p.dtype))
            else:
                p.fill_(0.0)
        for module in model.modules():
            if "Norm" in type(module).__name__:
                weight: Any = module.weight
                weight.fill_(1.0)


def train(
    path: str | Path,
    *,
    kind: Kind = "llama",
    steps: int = STEPS,
    batch_size: int = BATCH,
    learning_rate: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> Trained:
    """Trains a toy model by AdamW (rate linear to 0) and saves it under `path` with tokenizer and prompts.

    With the defaults its perplexity is within 1.05x of the floor. Deterministic on one machine and thread count.
    """
    grammar, model = _grammar(), untrained(kind, seed=seed)
    texts = grammar.sample(steps * batch_size, np.random.default_rng([seed, 2]))
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: min(1.0, (t + 1) / 30) * (1 - t / steps))
    model.train()
    for step in tqdm(range(steps), disable=None if progress else True, leave=False):
        batch = texts[step * batch_size : (step + 1) * batch_size]
        longest = max(map(len, batch))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in batch])
        mask = torch.arange(longest) < torch.tensor([len(text) for text in batch])[:, None]
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    result = judged(model)
    folder = Path(path)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in grammar.prompts()]
    (folder / "prompts.jsonl").write_text("".join(lines))
    (folder / "toy.json").write_text(json.dumps({"perplexity": result.perplexity, "floor": result.floor}))
    return result


def judged(model: Any) -> Trained:
    """The model's perplexity on held-out texts (never trained on: another stream) beside the floor on the same texts.

    The floor is the exact forward filter's: the mean of its logarithm is the language's cross-entropy.
    """
    grammar = _grammar()
    texts = grammar.sample(HELD_OUT, np.random.default_rng(2**31))
    tokens = sum(len(text) - 1 for text in texts)
    own = sequence_log_probs(model, [text[:1] for text in texts], [text[1:] for text in texts])
    floor = grammar.log_probs(texts)
    return Trained(math.exp(-float(own.double().sum()) / tokens), math.exp(-floor.sum() / tokens), tokens)


# ------------------------------------------------------------------------------------------------------- what is liked

Score = Callable[[str, str], float]
"""(prompt, response) -> a reward."""


def length_reward(prompt: str, response: str) -> float:
    """Longer is better, up to twenty words: in [0, 1]."""
    del prompt
    return min(len(response.split()), 20) / 20


def lexicon_reward(prompt: str, response: str) -> float:
    """The share of words from a list of pleasant ones, times three, at most 1."""
    del prompt
    words = response.split()
    return min(1.0, 3 * sum(word in GOOD_WORDS for word in words) / max(1, len(words)))


def topic_reward(prompt: str, response: str) -> float:
    """The share of topic-bound words that fit the prompt's topic, in [0, 1]; 0 without any."""
    grammar = _grammar()
    owners = _owners()
    topic = owners.get(prompt.split()[1] if len(prompt.split()) > 1 else "", set())
    bound = [word for word in response.split() if word in grammar.number_of and len(owners.get(word, ())) == 1]
    return sum(bool(owners[word] & topic) for word in bound) / len(bound) if bound else 0.0


def grammar_reward(prompt: str, response: str) -> float:
    """1 if the grammar can write it (so far), else 0."""
    grammar = _grammar()
    unknown = grammar.number_of["<unk>"]
    ids = [grammar.number_of.get(word, unknown) for word in f"<bos> {prompt} {response}".split()]
    return float(np.isfinite(grammar.log_probs([ids])[0]))


def true_reward(prompt: str, response: str) -> float:
    """Grammatical (1), on topic (1), pleasant (1), and not long-winded (-1/2 at twenty words): in [-1/2, 3]."""
    parts = (grammar_reward(prompt, response), topic_reward(prompt, response), lexicon_reward(prompt, response))
    return sum(parts) - length_reward(prompt, response) / 2


def intransitive_raters(prompt: str, first: str, second: str) -> float:
    """P(first preferred) of a majority of three raters with cyclic tastes, in [0.1, 0.9]; P + P' = 1.

    A response's flavour is its number of words modulo three. Each rater ranks the flavours, and the three rankings are
    a Condorcet cycle: flavour f beats f + 1 with probability 0.9, and no reward explains it.
    """
    del prompt
    one, other = (len(text.split()) % 3 for text in (first, second))
    return {0: 0.5, 1: 0.9, 2: 0.1}[(other - one) % 3]


@cache
def _grammar() -> Grammar:
    return Grammar()


@cache
def _owners() -> dict[str, set[int]]:
    """The topics to which each noun, verb or adjective belongs."""
    grammar, owners = _grammar(), {}
    for row, (place, topic, _) in enumerate(grammar.states):
        if place[:4] in ("noun", "verb", "adj1", "adj2", "subj"):
            for word in np.flatnonzero(grammar.emission[row]):
                owners.setdefault(grammar.words[word], set()).add(topic)
    return owners
