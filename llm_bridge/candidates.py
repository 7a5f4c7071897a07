"""Frozen candidate pools: K drawn responses per prompt become a finite world, on which every algorithm runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from llm_bridge.batches import Run, distinct, response_states
from llm_bridge.loading import fingerprint
from llm_bridge.oracles import Judge, Scorer
from llm_bridge.policy import LMPolicy
from llm_bridge.scoring import sequence_log_probs
from simbandit.draws import generator
from simbandit.oracles import PreferenceTable
from simbandit.worlds import TableWorld

PART = 16  # prompts drawn, scored and stored at once


def candidate_pool(
    policy: LMPolicy,
    k: int,
    *,
    scorer: Scorer | None = None,
    dim: int | None = 16,
    seed: int = 0,
    temperature: float = 1.0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> TableWorld:
    """A world whose contexts are the policy's prompts and whose actions are up to k drawn responses each.

    Drawn from the policy, which is the reference; duplicates count once, and the reference is renormalised over a
    prompt's candidates (contexts with fewer offer fewer). scorer: true rewards. dim: features are the means of the
    model's last hidden states over a response's tokens, centred and whitened over the pool to this dimension and
    scaled to a mean squared norm of 1; None for none. temperature: of the draws; reference log-probabilities stay those
    of temperature 1. folder: kept there as Parquet and safetensors by parts, so that a killed build goes on where it
    was; the answer is the same. Texts are the world's `context_names` and `item_names`.
    Raises ValueError where the folder holds the pool of another model, prompts or arguments.
    """
    if k < 2:
        raise ValueError(f"k: must be at least 2 candidates, got {k}")
    states: dict[str, np.ndarray] = {}
    frames, prompts = [], policy.catalogue.prompts
    described: dict[str, Any] = {
        "model": fingerprint(policy.model),
        "prompts": [list(p) for p in prompts],
        "k": k,
        "seed": seed,
        "temperature": temperature,
        "max_new_tokens": policy.max_new_tokens,
        "scorer": None if scorer is None else scorer.name,
    }
    where = None if folder is None else _opened(Path(folder), described)
    starts = range(0, len(prompts), PART)
    for start in tqdm(starts, unit="part", disable=None if progress else True, leave=False):
        part = _read(where, start)
        if part is None:
            part = _built(policy, range(start, min(start + PART, len(prompts))), k, seed, temperature, scorer)
            _write(where, start, *part)
        frames.append(part[0])
        states |= {str(len(states)): part[1]}
    frame, hidden = pd.concat(frames, ignore_index=True), np.concatenate(list(states.values()))
    return _world(policy, frame, None if dim is None else whitened(hidden, dim))


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


def _built(
    policy: LMPolicy, numbers: range, k: int, seed: int, temperature: float, scorer: Scorer | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """One row per distinct candidate of some prompts, and their hidden states."""
    uniforms = [u for x in numbers for u in generator(seed, x, "candidates").random(k).tolist()]
    owners = [x for x in numbers for _ in range(k)]
    drawn = policy.generate(owners, uniforms, temperature=temperature)
    counts = Counter(zip(owners, drawn, strict=True))
    pairs = list(counts)
    prompts, responses = [policy.catalogue.prompts[x] for x, _ in pairs], [r for _, r in pairs]
    read = policy.catalogue
    texts = [(read.prompt_text(x), policy.tokenizer.decode(list(r), skip_special_tokens=True)) for x, r in pairs]
    frame = pd.DataFrame(
        {
            "prompt": [x for x, _ in pairs],
            "prompt_text": [p for p, _ in texts],
            "response_text": [r for _, r in texts],
            "tokens": [list(r) for r in responses],
            "drawn": list(counts.values()),
            "ref_log_prob": sequence_log_probs(policy.model, prompts, responses).double().numpy(),
            "truncated": [r[-1] not in read.end for r in responses],
        }
    )
    if scorer is not None:
        frame["reward"] = scorer(texts)
    return frame, hidden_features(policy.model, prompts, responses).numpy()


def _world(policy: LMPolicy, frame: pd.DataFrame, features: np.ndarray | None) -> TableWorld:
    row, place = frame["prompt"].to_numpy(), frame.groupby("prompt").cumcount().to_numpy()
    n, k = len(policy.catalogue.prompts), int(place.max()) + 1

    def table(values: np.ndarray, empty: float) -> np.ndarray:
        held = np.full((n, k, *values.shape[1:]), empty)
        held[row, place] = values
        return held

    ref = table(frame["ref_log_prob"].to_numpy(), -np.inf)
    return TableWorld(
        ref - np.logaddexp.reduce(ref, axis=-1, keepdims=True),
        rewards=table(frame["reward"].to_numpy(), 0.0) if "reward" in frame else None,
        features=None if features is None else table(features, 0.0),
        context_names=list(dict.fromkeys(frame["prompt_text"])),
        item_names=[list(part) for _, part in frame.groupby("prompt")["response_text"]],
    )


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
