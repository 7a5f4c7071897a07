"""What the command `llm-bridge` can be told: one dataclass a subcommand, whose docstrings are its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

DESCRIPTION = """The algorithms that simbandit verified, on language models.

Examples (everything runs on the toy model, without a download; put any model's name or folder in its place):
  llm-bridge toy --output toy                                a small model, trained in half a minute
  llm-bridge sample --model toy --output said.jsonl --k 4    responses to the model's prompts
  llm-bridge score --model toy --input said.jsonl --output scored.jsonl
  llm-bridge pool --model toy --judge toy:true --output pool
  llm-bridge preflight --model toy --judge toy:true --pool pool --algorithms gshf_online,greedy,inpo
  llm-bridge train --model toy --judge toy:true --algorithm inpo --rounds 4 --output trained

Annotators (--judge): toy:true, toy:length, toy:lexicon, toy:intransitive, reward:FOLDER (a sequence-classification
head), gold:FOLDER (log-likelihood under a model), pair:FOLDER (a model that says A or B, asked in both orders).
"""

Model = Annotated[str, tyro.conf.arg(metavar="FOLDER|NAME")]


@dataclass(frozen=True)
class Toy:
    """Train the toy model: a small Llama on a template grammar whose best perplexity is known."""

    output: Path
    """Folder of the model, its tokenizer and its prompts."""
    seed: int = 0
    """Seed of weights and texts."""
    dry_run: bool = False
    """Print the plan and its cost, and compute nothing."""


@dataclass(frozen=True)
class Score:
    """Log-probabilities of given responses.

    Input rows hold "prompt" and "response" texts; the output adds "log_prob" (nats, the end token included) and
    "tokens".
    """

    model: Model
    """A folder or a hub name, safetensors only."""
    input: Path
    """JSONL or Parquet."""
    output: Path
    """JSONL or Parquet."""
    chat: bool = False
    """Put prompts through the tokenizer's chat template."""
    token_budget: int = 4096
    """Tokens of one batch; halved by itself when memory runs out."""
    dry_run: bool = False
    """Print the plan and its cost, and compute nothing."""


@dataclass(frozen=True)
class Sample:
    """Draw responses; the same seed draws the same ones, whatever the batch."""

    model: Model
    """A folder or a hub name, safetensors only."""
    output: Path
    """JSONL or Parquet."""
    prompts: Path | None = None
    """JSONL or Parquet with "prompt"; default: prompts.jsonl in the model's folder."""
    limit: int | None = None
    """Only the first so many prompts."""
    k: int = 1
    """Responses per prompt."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_p: float = 1.0
    """Only the likeliest tokens of this total mass."""
    max_new_tokens: int = 32
    """Longer responses are cut there, and marked truncated."""
    chat: bool = False
    """Put prompts through the tokenizer's chat template; the first one is shown."""
    seed: int = 0
    """Seed of the draws."""
    dry_run: bool = False
    """Print the plan and its cost, and compute nothing."""


@dataclass(frozen=True)
class Pool:
    """Draw K candidates per prompt with features and scores: a finite world for every algorithm.

    Parquet rows hold prompt, response, how often it was drawn, its log-probability, and its reward; safetensors the
    means of the model's hidden states, which are whitened to features when an algorithm runs. Goes on where it was when
    the same command is given again.
    """

    model: Model
    """A folder or a hub name, safetensors only."""
    output: Path
    """Folder of the pool: Parquet and safetensors by parts."""
    prompts: Path | None = None
    """JSONL or Parquet with "prompt"; default: prompts.jsonl in the model's folder."""
    limit: int | None = None
    """Only the first so many prompts."""
    judge: str | None = None
    """A scorer among the annotators, for rewards; see `llm-bridge --help`."""
    k: int = 8
    """Draws per prompt."""
    max_new_tokens: int = 32
    """Longer responses are cut there."""
    chat: bool = False
    """Put prompts through the tokenizer's chat template."""
    seed: int = 0
    """Seed of the draws."""
    dry_run: bool = False
    """Print the plan and its cost, and compute nothing."""


@dataclass(frozen=True)
class Preflight:
    """Build a pool and run algorithms on it with many replicates, before any GPU is spent: one page.

    The page ranks the algorithms (intervals, paired comparisons), predicts their gap against queries, says whether a
    reward explains the judge (circulation, a test of Bradley-Terry), what the reference covers, how kl_coef changes the
    ranking, whose step size is beyond its stability limit, what looking at K candidates only costs, and how many
    tokens, FLOPs, bytes and hours the training run will take.
    """

    model: Model
    """A folder or a hub name, safetensors only."""
    judge: str
    """The annotator; see `llm-bridge --help`."""
    algorithms: str = "gshf_online,greedy,inpo,online_dpo"
    """Names of the registry, separated by commas; see `simbandit list`."""
    prompts: Path | None = None
    """JSONL or Parquet with "prompt"; default: prompts.jsonl in the model's folder."""
    limit: int | None = None
    """Only the first so many prompts."""
    pool: Path | None = None
    """Folder of `llm-bridge pool` (same model, prompts, k, seed), or a new one: pool, held-out draws and the judge's
    answers are kept there, and the same command goes on from there."""
    output: Path | None = None
    """Folder for the page (page.txt), report.json, replicates.parquet and the figure."""
    k: int = 8
    """Draws per prompt."""
    held: int = 16
    """Fresh draws per prompt that measure what looking at K candidates only costs; 0: do not."""
    dim: int = 8
    """Dimension of the features."""
    law: Literal["draws", "reference"] = "draws"
    """The reference on the candidates: as often as drawn, or its own probabilities renormalised, which for long texts
    leave a prompt's likeliest candidate nearly alone."""
    kl_coef: float = 0.1
    """Weight of the KL term; half and twice of it are tried too."""
    rounds: int = 60
    """Rounds of the simulation, and of the planned run."""
    batch_size: int = 16
    """Duels a round."""
    replicates: int = 32
    """Independent simulations per algorithm."""
    steps: int = 10
    """Optimiser steps a round of the planned run."""
    minibatch: int | None = None
    """Duels a step of the planned run; default: all."""
    flops: float | None = None
    """FLOP per second of the machine of the planned run, for its hours; default: measured on this one."""
    max_new_tokens: int = 32
    """Longer responses are cut there."""
    chat: bool = False
    """Put prompts through the tokenizer's chat template."""
    seed: int = 0
    """Seed of everything."""
    dry_run: bool = False
    """Print the plan and its cost, and compute nothing."""


@dataclass(frozen=True)
class Train:
    """Train weights online with any direct algorithm: draw, ask, fit, round after round.

    Goes on where it was when the same command is given again: fits and answers are kept in the output folder.
    """

    model: Model
    """A folder or a hub name, safetensors only."""
    judge: str
    """The annotator; see `llm-bridge --help`."""
    output: Path
    """Folder of the trained model, its curve (curve.csv), checkpoints and the judge's answers."""
    algorithm: str = "inpo"
    """Any direct algorithm of the registry: inpo, online_dpo, xpo, ipo_md, selm, copo, ... (see `simbandit list`),
    or gshf_dpo and its kin."""
    prompts: Path | None = None
    """JSONL or Parquet with "prompt"; default: prompts.jsonl in the model's folder."""
    limit: int | None = None
    """Only the first so many prompts."""
    kl_coef: float = 0.2
    """Weight of KL(pi || reference) in the objective (beta of DPO). From .134 on, INPO's step of 1 is stable in every
    game."""
    rounds: int = 4
    """Rounds of drawing and fitting."""
    batch_size: int = 64
    """Duels a round."""
    steps: int = 10
    """Optimiser steps a round."""
    learning_rate: float = 5e-4
    """AdamW's, per duel."""
    minibatch: int | None = None
    """Duels a step; default: all."""
    lora: int | None = None
    """Rank of an adapter; default: all weights are trained."""
    max_new_tokens: int = 32
    """Longer responses are cut there."""
    evaluation: int = 64
    """Responses by which the policy is judged every round."""
    chat: bool = False
    """Put prompts through the tokenizer's chat template."""
    seed: int = 0
    """Seed of everything."""
    dry_run: bool = False
    """Print the plan and its cost, and compute nothing."""


Command = (
    Annotated[Toy, tyro.conf.subcommand("toy", prefix_name=False)]
    | Annotated[Score, tyro.conf.subcommand("score", prefix_name=False)]
    | Annotated[Sample, tyro.conf.subcommand("sample", prefix_name=False)]
    | Annotated[Pool, tyro.conf.subcommand("pool", prefix_name=False)]
    | Annotated[Preflight, tyro.conf.subcommand("preflight", prefix_name=False)]
    | Annotated[Train, tyro.conf.subcommand("train", prefix_name=False)]
)
