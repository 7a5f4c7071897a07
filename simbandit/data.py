"""What has been observed: duels as counts per distinct pair, rankings, and logged data that users bring."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from simbandit.types import Contexts

if TYPE_CHECKING:
    from simbandit.types import Policy, Setting

_UNSEEN = 2**31 - 1
_PENDING = 2**30


class Duels:
    """Duels so far. In a finite world they are counts per distinct (context, unordered pair), so the cost of a refit
    does not grow with the number of duels; with fresh contexts every duel is its own row. Grows in place.

    Rows are padded to the largest number U of distinct pairs of any replicate; padding has count 0. The first action of
    a row is the smaller id. A duel of an action with itself says nothing and is not stored, but `informative` counts
    the others. Views (R, U): `context`, `count`, `wins` (label mass of the first); `actions` (R, U, 2); `differences`
    (R, U, d); `member_count`, `member_wins` (R, U, members) of a bootstrap ensemble.
    """

    def __init__(self, replicates: int, pool: Contexts | None, dim: int | None, device: torch.device, members: int = 0):
        self.pool, self.dim = pool, dim
        self.used = torch.zeros(replicates, dtype=torch.int64, device=device)
        self.total = 0
        self.informative = torch.zeros(replicates, dtype=torch.float64, device=device)
        if pool is not None:
            n_pairs = pool.shape[1] * max(1, pool.n_actions * (pool.n_actions - 1) // 2)
            self._slot = torch.full((replicates, n_pairs), _UNSEEN, dtype=torch.int32, device=device)
        self._held: dict[str, Tensor] = {
            "context": torch.zeros(replicates, 0, dtype=torch.int64, device=device),
            "actions": torch.zeros(replicates, 0, 2, dtype=torch.int64, device=device),
            "count": torch.zeros(replicates, 0, dtype=torch.float64, device=device),
            "wins": torch.zeros(replicates, 0, dtype=torch.float64, device=device),
        }
        if members:
            zeros = torch.zeros(replicates, 0, members, dtype=torch.float64, device=device)
            self._held |= {"member_count": zeros, "member_wins": zeros.clone()}
        if dim is not None:
            self._held["differences"] = torch.zeros(replicates, 0, dim, dtype=torch.float64, device=device)

    def __getattr__(self, name: str) -> Tensor:
        held = self.__dict__.get("_held", {})
        if name not in held:
            raise AttributeError(name)
        return held[name][:, : max(1, int(self.used.max()))]

    def add(self, contexts: Contexts, actions: Tensor, label: Tensor, weights: Tensor | None = None) -> None:
        """actions (R, B, 2); label (R, B), the probability that the first wins, in [0, 1]; weights (R, B, members), of
        the bootstrap ensemble."""
        first, second = actions[..., 0], actions[..., 1]
        swap = first > second
        low, high = torch.where(swap, second, first), torch.where(swap, first, second)
        wins = torch.where(swap, 1 - label, label)
        said = (low != high).to(torch.float64)
        self.total += label.shape[1]
        self.informative += said.sum(-1)
        slot, is_new = self._slots(contexts, low, high)
        self._reserve(max(1, int(self.used.max())))
        r, b = is_new.nonzero(as_tuple=True)
        at = slot[r, b]
        pair = torch.stack([low, high], dim=-1)
        if contexts.index is not None:
            self._held["context"][r, at] = contexts.index[r, b]
        self._held["actions"][r, at] = pair[r, b]
        if self.dim is not None:
            phi = contexts.features_of(pair)
            self._held["differences"][r, at] = (phi[..., 0, :] - phi[..., 1, :])[r, b]
        self._held["count"].scatter_add_(1, slot, said)
        self._held["wins"].scatter_add_(1, slot, said * wins)
        if weights is not None:
            at_member = slot[..., None].expand(weights.shape)
            self._held["member_count"].scatter_add_(1, at_member, said[..., None] * weights)
            self._held["member_wins"].scatter_add_(1, at_member, (said * wins)[..., None] * weights)

    def _slots(self, contexts: Contexts, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Each duel's row (R, B), and whether it is the one that opens that row."""
        position = torch.arange(low.shape[1], dtype=torch.int32, device=low.device).expand(low.shape)
        if self.pool is None:
            slot = self.used[:, None] + position
            self.used = self.used + low.shape[1]
            return slot, torch.ones_like(slot, dtype=torch.bool)
        assert contexts.index is not None
        pairs = self._slot.shape[1] // self.pool.shape[1]
        key = contexts.index * pairs + torch.where(low < high, high * (high - 1) // 2 + low, 0)
        slot = self._slot.gather(1, key)
        informative = low < high
        unseen = (slot == _UNSEEN) & informative
        if not unseen.any():
            return torch.where(informative, slot, 0).long(), unseen
        # Of the duels that share a new pair the earliest opens the row: a minimum, so the order of writing cannot
        # matter.
        self._slot.scatter_reduce_(1, key, torch.where(unseen, _PENDING + position, slot), "amin")
        opens = unseen & (self._slot.gather(1, key) == _PENDING + position)
        rank = (self.used[:, None] + opens.cumsum(1) - 1).to(torch.int32)
        self._slot.scatter_reduce_(1, key, torch.where(opens, rank, _UNSEEN), "amin")
        self.used = self.used + opens.sum(1)
        return torch.where(informative, self._slot.gather(1, key), 0).long(), opens

    def _reserve(self, needed: int) -> None:
        held = self._held["count"].shape[1]
        if needed > held:
            grow = max(needed, 2 * held, 64) - held
            for name, old in self._held.items():
                self._held[name] = torch.cat([old, old.new_zeros(old.shape[0], grow, *old.shape[2:])], dim=1)
            if self.pool is not None:  # padding must name an action that exists, or its log-probability is -inf
                self._held["actions"][:, held:] = self.pool.ref_log_probs[:, 0].argmax(-1)[:, None, None]


@dataclass(frozen=True)
class Logged:
    """Offline data drawn per replicate: `size` interactions whose actions are independent draws of `policy`
    (`second`, where given, draws the second action of a duel)."""

    policy: Policy
    size: int
    second: Policy | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: logged data needs at least one interaction, got {self.size}")


def frame_batch(frame: pd.DataFrame, pool: Contexts | None, setting: Setting) -> tuple[Contexts, Tensor, Tensor]:
    """A user's logged interactions as one batch, the same for every replicate.

    Columns context, first, second, preferred (a probability that the first wins) for duels; context, action, reward for
    rewards. Ids are positions in the world. Raises ValueError naming the column, the first bad row and what is allowed.
    """
    if pool is None:
        raise ValueError("offline: a frame refers to contexts by id and needs a finite world; use Logged(policy, size)")
    names = ["first", "second"] if setting.feedback == "preference" else ["action"]
    label = "preferred" if setting.feedback == "preference" else "reward"
    if setting.feedback not in ("preference", "reward"):
        raise ValueError(f"offline: frames hold duels or rewards, not {setting.feedback} feedback; use Logged")
    missing = [c for c in ("context", *names, label) if c not in frame.columns]
    if missing:
        raise ValueError(f"offline: columns {missing} are missing; there are {list(frame.columns)}")
    if frame.empty:
        raise ValueError("offline: the frame has no rows")
    for column, size in [("context", pool.shape[1]), *((name, pool.n_actions) for name in names)]:
        ids = frame[column].to_numpy()
        bad = ~np.isin(ids, np.arange(size))
        if bad.any():
            raise ValueError(f"offline: {column} must be an integer in [0, {size}), {_first(frame, column, bad)}")
    values = frame[[label]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float, na_value=np.nan)[:, 0]
    bad = ~np.isfinite(values) | ((values < 0) | (values > 1) if label == "preferred" else False)
    if bad.any():
        allowed = "a probability in [0, 1]" if label == "preferred" else "finite"
        raise ValueError(f"offline: {label} must be {allowed}, {_first(frame, label, bad)}")
    R, device = setting.replicates, setting.device
    index = torch.tensor(frame["context"].tolist(), dtype=torch.int64, device=device)
    actions = torch.tensor(frame[names].to_numpy().tolist(), dtype=torch.int64, device=device)
    absent = torch.isneginf(pool.ref_log_probs[0, index[:, None], actions]).cpu().numpy()
    for i, name in enumerate(names):
        if absent[:, i].any():
            raise ValueError(
                f"offline: {name} must be an action that its context offers, {_first(frame, name, absent[:, i])}"
            )
    labels = torch.tensor(values, dtype=torch.float64, device=device)
    return Contexts(index=index.expand(R, -1), pool=pool), actions.expand(R, -1, -1), labels.expand(R, -1)


def _first(frame: pd.DataFrame, column: str, bad: np.ndarray) -> str:
    row = int(bad.argmax())
    return f"row {frame.index.tolist()[row]!r} has {frame[column].tolist()[row]!r}"


def to_jsonl(
    duels: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
) -> None:
    """Duels as prompt / chosen / rejected lines, the format that language-model trainers read. Soft labels are rounded
    to the likelier winner, and an exact tie (0.5) is refused.

    prompts: one text per context; responses: one text per context and action.
    """
    ties = duels["preferred"].to_numpy() == 0.5
    if ties.any():
        raise ValueError(
            f"duels: {int(ties.sum())} labels are exact ties, which chosen/rejected cannot express; drop them"
        )
    if not duels["preferred"].between(0, 1).all():
        raise ValueError("duels: preferred must be a probability in [0, 1] in every row")
    with open(path, "w", encoding="utf-8") as file:
        for context, first, second, preferred in duels[["context", "first", "second", "preferred"]].itertuples(
            index=False
        ):
            winner, loser = (first, second) if preferred > 0.5 else (second, first)
            texts = responses[int(context)]
            line = {
                "prompt": prompts[int(context)],
                "chosen": texts[int(winner)],
                "rejected": texts[int(loser)],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
