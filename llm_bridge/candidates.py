"""Frozen candidate pools: K drawn responses per prompt become a finite world, on which every algorithm runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from llm_bridge.batches import Run, device_of, distinct, response_states
from llm_bridge.loading import fingerprint
from llm_bridge.oracles import Judge, Scorer
from llm_bridge.policy import LMPolicy
from llm_bridge.scoring import sequence_log_probs
from simbandit.draws import generator
from simbandit.oracles import PreferenceTable
from simbandit.worlds import TableWorld

PART = 16  # prompts drawn, scored and stored at once
FORMAT = 2  # of the files
Law = Literal["draws", "reference"]
"""The reference on a pool's candidates.

"draws": each of the K draws has mass 1/K, equal ones together: the empirical law. Its expectation of anything is an
unbiased estimate of the reference's, so the pool's problem estimates the whole one (the value of the best policy,
kl_coef log E exp(r / kl_coef), from below), however long the texts are.
"reference": the reference's own probabilities, renormalised over the different candidates. The optimum is then the
whole one's, conditioned on the pool. But two texts of 30 tokens easily differ by a factor e^20 in probability, which
says little about how good they are: nearly all mass goes to a prompt's likeliest candidate, and the KL term forbids
to choose another. It is for short responses, and for draws at a temperature other than 1, whose empirical law is not
the reference.
"""


class Encoder(Protocol):
    """A vector for every (prompt, response), (n, D); `name` changes whenever a vector could."""

    @property
    def name(self) -> str: ...

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Pool:
    """K draws per prompt. frame: a row per different candidate with prompt (number), prompt_text, response_text,
    tokens, drawn (how often) and draws (which of the K), ref_log_prob (not renormalised), truncated, and reward where a
    scorer was given. states: its features before whitening, (rows, D). temperature: of the draws."""

    frame: pd.DataFrame
    states: np.ndarray
    temperature: float = 1.0

    @property
    def k(self) -> int:
        return int(self.frame["drawn"].to_numpy()[self.frame["prompt"].to_numpy() == 0].sum())

    def world(self, dim: int | None = 16, law: Law = "draws") -> TableWorld:
        """The pool as a finite world; see `candidate_pool`."""
        if law not in ("draws", "reference"):
            raise ValueError(f"law: must be 'draws' or 'reference', got {law!r}")
        if law == "draws" and self.temperature != 1:
            raise ValueError(
                f"law: draws at temperature {self.temperature:g} do not follow the reference; take law='reference'"
            )
        frame, features = self.frame, None if dim is None else whitened(self.states, dim)
        masses = np.log(frame["drawn"].to_numpy()) if law == "draws" else frame["ref_log_prob"].to_numpy()
        ref = self.table(masses, -np.inf)
        return TableWorld(
            ref - np.logaddexp.reduce(ref, axis=-1, keepdims=True),
            rewards=self.table(frame["reward"].to_numpy(), 0.0) if "reward" in frame else None,
            features=None if features is None else self.table(features, 0.0),
            context_names=list(frame.groupby("prompt")["prompt_text"].first()),
            item_names=[list(part) for _, part in frame.groupby("prompt")["response_text"]],
        )

    def table(self, values: np.ndarray, empty: float) -> np.ndarray:
        """Rows of the frame (rows, ...) as (prompts, candidates, ...), `empty` past a prompt's own."""
        row, place = self.frame["prompt"].to_numpy(), self.frame.groupby("prompt").cumcount().to_numpy()
        held = np.full((int(row.max()) + 1, int(place.max()) + 1, *values.shape[1:]), empty)
        held[row, place] = values
        return held


def candidate_pool(
    policy: LMPolicy,
    k: int,
    *,
    scorer: Scorer | None = None,
    encoder: Encoder | None = None,
    dim: int | None = 16,
    seed: int = 0,
    law: Law = "draws",
    temperature: float = 1.0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> TableWorld:
    """A world whose contexts are the policy's prompts and whose actions are up to k drawn responses each.

    Drawn from the policy, which is the reference; equal draws are one candidate (contexts with fewer offer fewer).
    law: the reference on the candidates, `Law`; "draws", the empirical law, by default. scorer: true rewards. dim:
    features are the encoder's, by default the means of the model's last hidden states over a response's tokens, centred
    and whitened over the pool to this dimension and scaled to a mean squared norm of 1; None for none. temperature: of
    the draws; other than 1 it needs law="reference", whose probabilities stay those of temperature 1. folder: kept
    there as Parquet and safetensors by parts, so that a killed build goes on where it was; the answer is the same.
    Texts are the world's `context_names` and `item_names`.
    Raises ValueError where the folder holds the pool of another model, prompts or arguments.
    """
    pool = drawn_pool(
        policy,
        k,
        scorer=scorer,
        encoder=encoder,
        seed=seed,
        temperature=temperature,
        folder=folder,
        progress=progress,
    )
    return pool.world(dim, law)


def drawn_pool(
    policy: LMPolicy,
    k: int,
    *,
    scorer: Scorer | None = None,
    encoder: Encoder | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    folder: str | Path | None = None,
    purpose: str = "candidates",
    progress: bool = False,
) -> Pool:
    """The draws of `candidate_pool`, before they are a world. purpose: names the random stream, so that another one
    gives fresh draws (those that measure what the restriction to the first ones costs)."""
    if k < 2:
        raise ValueError(f"k: must be at least 2 candidates, got {k}")
    drawing = _Drawing(policy, k, scorer, encoder, seed, temperature, purpose)
    where = None if folder is None else _opened(Path(folder), drawing.described())
    frames, states, prompts = [], [], policy.catalogue.prompts
    starts = range(0, len(prompts), PART)
    for start in tqdm(starts, unit="part", disable=None if progress else True, leave=False):
        part = _read(where, start)
        if part is None:
            part = drawing.part(range(start, min(start + PART, len(prompts))))
            _write(where, start, *part)
        frames.append(part[0])
        states.append(part[1])
    return Pool(pd.concat(frames, ignore_index=True), np.concatenate(states), temperature)


def preference_table(world: TableWorld, judge: Judge) -> PreferenceTable:
    """A judge's answers about every pair of a pool's candidates, asked in both orders and averaged, as an oracle."""
    assert world.context_names is not None
    assert world.item_names is not None
    table = np.full((world.n_contexts, world.n_actions, world.n_actions), 0.5)
    asked = [
        (x, a, b)
        for x, items in enumerate(world.item_names)
        for a in range(len(items))
        for b in range(len(items))
        if a != b
    ]
    texts = [
        (str(world.context_names[x]), str(world.item_names[x][a]), str(world.item_names[x][b])) for x, a, b in asked
    ]
    for (x, a, b), p in zip(asked, judge(texts), strict=True):
        table[x, a, b] = p
    return PreferenceTable((table + 1 - table.swapaxes(-1, -2)) / 2)


def whitened(states: np.ndarray, dim: int) -> np.ndarray:
    """Principal components of rows (n, D), each of variance 1 / dim: (n, dim). Raises ValueError where the rows do not
    span `dim` directions."""
    centred = states - states.mean(0)
    u, scale, _ = np.linalg.svd(centred, full_matrices=False)
    rank = int((scale > 1e-6 * scale[0]).sum()) if scale[0] > 0 else 0
    if not 1 <= dim <= rank:
        raise ValueError(f"dim: must be between 1 and {rank}, the rank of these hidden states, got {dim}")
    return u[:, :dim] * np.sqrt(len(states) / dim)


def hidden_features(model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Tensor:
    """Means of the last hidden states over each response's tokens: (n, D)."""
    pairs = distinct(prompts, responses, model)

    def reduce(states: Tensor, batch: list[int]) -> Tensor:
        parts = states.double().split([len(pairs.responses[i]) for i in batch])
        return torch.stack([part.mean(0) for part in parts])

    found = response_states(model, pairs, reduce, Run(layout="joint"), reading=True)
    order = torch.tensor([i for batch, _ in found for i in batch]).argsort()
    return torch.cat([values for _, values in found])[order][torch.tensor(pairs.inverse)]


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Means of a frozen encoder's last hidden states over the tokens of "{prompt} {response}"."""

    model: Any
    tokenizer: Any
    template: str = "{prompt} {response}"

    @property
    def name(self) -> str:
        return f"encoder:{fingerprint(self.model)}:{self.template}"

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.model.eval()
        rows = []
        for prompt, response in pairs:  # one at a time: no padding for an encoder's attention to see
            given = self.tokenizer(self.template.format(prompt=prompt, response=response), return_tensors="pt")
            with torch.no_grad():
                states = self.model(**given.to(device_of(self.model))).last_hidden_state
            rows.append(states[0].double().mean(0).cpu().numpy())
        return np.stack(rows)


@dataclass(frozen=True, eq=False)
class _Drawing:
    policy: LMPolicy
    k: int
    scorer: Scorer | None
    encoder: Encoder | None
    seed: int
    temperature: float
    purpose: str

    def described(self) -> dict[str, Any]:
        """All that the pool depends on."""
        return {
            "format": FORMAT,
            "model": fingerprint(self.policy.model),
            "prompts": [list(p) for p in self.policy.catalogue.prompts],
            "k": self.k,
            "seed": self.seed,
            "temperature": self.temperature,
            "max_new_tokens": self.policy.max_new_tokens,
            "scorer": None if self.scorer is None else self.scorer.name,
            "encoder": None if self.encoder is None else self.encoder.name,
            "purpose": self.purpose,
        }

    def part(self, numbers: range) -> tuple[pd.DataFrame, np.ndarray]:
        """One row per distinct candidate of some prompts, and their hidden states."""
        policy, read = self.policy, self.policy.catalogue
        uniforms = [u for x in numbers for u in generator(self.seed, x, self.purpose).random(self.k).tolist()]
        owners = [x for x in numbers for _ in range(self.k)]
        drawn = policy.generate(owners, uniforms, temperature=self.temperature)
        draws: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for i, pair in enumerate(zip(owners, drawn, strict=True)):
            draws.setdefault(pair, []).append(i % self.k)
        prompts, responses = [read.prompts[x] for x, _ in draws], [r for _, r in draws]
        texts = [(read.prompt_text(x), policy.tokenizer.decode(list(r), skip_special_tokens=True)) for x, r in draws]
        frame = pd.DataFrame(
            {
                "prompt": [x for x, _ in draws],
                "prompt_text": [p for p, _ in texts],
                "response_text": [r for _, r in texts],
                "tokens": [list(r) for r in responses],
                "drawn": [len(which) for which in draws.values()],
                "draws": list(draws.values()),
                "ref_log_prob": sequence_log_probs(policy.model, prompts, responses).double().cpu().numpy(),
                "truncated": [r[-1] not in read.end for r in responses],
            }
        )
        if self.scorer is not None:
            frame["reward"] = self.scorer(texts)
        if self.encoder is not None:
            return frame, np.asarray(self.encoder(texts))
        return frame, hidden_features(policy.model, prompts, responses).cpu().numpy()


def _opened(folder: Path, described: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pool.json"
    if file.exists():
        held = json.loads(file.read_text())
        changed = [name for name in described if held.get(name) != described[name]]
        if changed:
            raise ValueError(f"folder: {folder} holds a pool with another {', '.join(changed)}; use another folder")
    _replaced(file, json.dumps(described).encode())
    return folder


def _read(folder: Path | None, start: int) -> tuple[pd.DataFrame, np.ndarray] | None:
    if folder is None or not (folder / f"part-{start:06d}.parquet").exists():
        return None
    frame = pd.read_parquet(folder / f"part-{start:06d}.parquet")
    return frame, load_file(str(folder / f"part-{start:06d}.safetensors"))["states"]


def _write(folder: Path | None, start: int, frame: pd.DataFrame, states: np.ndarray) -> None:
    """The states first: a part exists once its Parquet file does."""
    if folder is None:
        return
    for name, save in (
        (f"part-{start:06d}.safetensors", lambda path: save_file({"states": states}, str(path))),
        (f"part-{start:06d}.parquet", lambda path: frame.to_parquet(path)),
    ):
        draft = folder / f".{name}.tmp"
        save(draft)
        os.replace(draft, folder / name)


def _replaced(file: Path, content: bytes) -> None:
    draft = file.with_name(f".{file.name}.tmp")
    draft.write_bytes(content)
    os.replace(draft, file)
