"""What a direct method has seen and still learns from: duels, and single responses drawn for a bonus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simbandit.data import Duels
from simbandit.types import Contexts, Policy, Setting


class Entries(NamedTuple):
    """row (R, U): positions among the record's contexts; actions (R, U, k); weight, label (R, U)."""

    row: Tensor
    actions: Tensor
    weight: Tensor
    label: Tensor


@dataclass
class _Round:
    """One round as it came; `contexts` are fresh ones that belong to it, or the pool."""

    contexts: Contexts
    duels: Entries
    singles: Entries | None
    logged: bool


class Record:
    """Duels and single responses so far (`window` None), or of the last `window` rounds; logged ones stay.

    In a finite world everything so far is held as counts, so that the cost of a fit does not grow: duels per distinct
    pair (all ordered pairs with themselves included, where `dense`: a pointwise loss counts them), single responses per
    action. Otherwise rounds are kept as they came, fresh contexts with them. `separate` keeps logged duels apart.
    """

    def __init__(self, setting: Setting, *, window: int | None, dense: bool, separate: bool):
        self.setting, self.window, self.separate = setting, window, separate
        self.rounds: list[_Round] = []
        self.counts: dict[str, _Grid | Duels] = {}
        pool = setting.contexts
        if pool is not None and window is None:
            kinds = ("duels", "logged") if separate else ("duels",)
            for kind in kinds:
                self.counts[kind] = _Grid(pool, 2) if dense else Duels(setting.replicates, pool, None, setting.device)
            self.counts["singles"] = _Grid(pool, 1)

    def add(self, contexts: Contexts, duels: Entries, singles: Entries | None, *, logged: bool) -> None:
        kind = "logged" if logged and self.separate else "duels"
        if self.counts:
            held = self.counts[kind]
            if isinstance(held, _Grid):
                held.add(duels)
            else:
                held.add(contexts, duels.actions, duels.label)
            if singles is not None:
                grid = self.counts["singles"]
                assert isinstance(grid, _Grid)
                grid.add(singles)
            return
        self.rounds.append(_Round(contexts, duels, singles, logged))
        if self.window is not None:
            online = [r for r in self.rounds if not r.logged][-self.window :]
            self.rounds = [r for r in self.rounds if r.logged and self.separate] + (online or self.rounds[-1:])

    def entries(self) -> tuple[Contexts, dict[str, Entries]]:
        """The contexts, and what is held by kind: "duels", "logged", "singles"; kinds that hold nothing are left
        out."""
        pool = self.setting.contexts
        if self.counts:
            assert pool is not None
            found = {kind: _entries(held) for kind, held in self.counts.items()}
            return pool, {kind: e for kind, e in found.items() if bool((e.weight > 0).any()) or kind == "duels"}
        over, shift = (pool, 0) if pool is not None else (_joined([r.contexts for r in self.rounds]), 1)
        parts: dict[str, list[Entries]] = {}
        start = 0
        for r in self.rounds:
            kind = "logged" if r.logged and self.separate else "duels"
            for name, e in ((kind, r.duels), ("singles", r.singles)):
                if e is not None:
                    parts.setdefault(name, []).append(e._replace(row=e.row + shift * start))
            start += r.contexts.shape[1]
        return over, {k: Entries(*(torch.cat(c, dim=1) for c in zip(*es, strict=True))) for k, es in parts.items()}


class _Grid:
    """Weights and label masses of every k-tuple of actions of every context: (R, X A^k)."""

    def __init__(self, pool: Contexts, k: int):
        (R, X), A = pool.shape, pool.n_actions
        device = pool.ref_log_probs.device
        self.k, self.n_actions = k, A
        cells = torch.cartesian_prod(*[torch.arange(n, device=device) for n in (X, *[A] * k)]).view(-1, 1 + k)
        offered = ~torch.isneginf(pool.ref_log_probs)
        present = torch.stack([offered[:, cells[:, 0], cells[:, 1 + i]] for i in range(k)]).all(0)
        self.row = cells[:, 0].expand(R, -1)
        likely = pool.ref_log_probs.argmax(-1)[:, cells[:, 0]]  # padding names an action that exists
        self.actions = torch.where(present[..., None], cells[:, 1:], likely[..., None])
        self.weight = torch.zeros(R, cells.shape[0], dtype=torch.float64, device=device)
        self.mass = torch.zeros_like(self.weight)

    def add(self, entries: Entries) -> None:
        cell = entries.row
        for i in range(self.k):
            cell = cell * self.n_actions + entries.actions[..., i]
        self.weight.scatter_add_(1, cell, entries.weight)
        self.mass.scatter_add_(1, cell, entries.weight * entries.label)


class Plays:
    """How often each response has been played, N(x, a), per replicate: what was never played takes no room, so the
    responses need not be listed. With `coins`, every play is dealt so many random signs, and their sums are kept.

    number (R, n): of contexts; actions (R, n); weight (R, n); signs (R, n, coins).
    Complexity: an addition sorts the distinct responses so far, a question is a binary search.
    """

    def __init__(self, n_actions: int, coins: int, device: torch.device):
        self.n_actions = n_actions
        self.cells = torch.empty(0, dtype=torch.int64, device=device)  # ascending
        self.sums = torch.empty(0, 1 + coins, dtype=torch.float64, device=device)

    def add(self, number: Tensor, actions: Tensor, weight: Tensor, signs: Tensor) -> None:
        new = torch.cat([weight[..., None], weight[..., None] * signs], dim=-1).flatten(0, 1)
        both = torch.cat([self.cells, self._cell(number, actions).flatten()])
        self.cells, place = torch.unique(both, return_inverse=True)
        sums = new.new_zeros(len(self.cells), new.shape[-1])
        self.sums = sums.index_add_(0, place, torch.cat([self.sums, new]))

    def rarity(self, number: Tensor, actions: Tensor) -> Tensor:
        """N(x, a)^-1/2 (R, n), or the root mean square of the coins' averages; 1 for what was never played."""
        cell = self._cell(number, actions)
        at = torch.searchsorted(self.cells, cell).clamp_max(len(self.cells) - 1)
        held = torch.where((self.cells[at] == cell)[..., None], self.sums[at], 0.0)
        count = held[..., 0].clamp_min(1.0)
        if held.shape[-1] == 1:
            return count.rsqrt()
        average = (held[..., 1:] / count[..., None]).square().mean(-1).sqrt()
        return torch.where(held[..., 0] > 0, average, 1.0)  # a coin-flip network's prior

    def _cell(self, number: Tensor, actions: Tensor) -> Tensor:
        replicate = torch.arange(len(number), device=number.device)[:, None]
        return (number * self.n_actions + actions) * len(number) + replicate


def _entries(held: _Grid | Duels) -> Entries:
    if isinstance(held, _Grid):
        return Entries(held.row, held.actions, held.weight, held.mass / held.weight.clamp_min(1e-300))
    return Entries(held.context, held.actions, held.count, held.wins / held.count.clamp_min(1e-300))


def _joined(parts: list[Contexts]) -> Contexts:
    """Fresh contexts of several rounds as one batch; with their numbers, where they have any (prompts of an LM)."""
    numbers = [c.index for c in parts if c.index is not None]
    index = torch.cat(numbers, dim=1) if len(numbers) == len(parts) else None
    features = torch.cat([c.features for c in parts], dim=1) if parts[0].has_features else None
    return Contexts(index=index, features=features, ref_log_probs=torch.cat([c.ref_log_probs for c in parts], dim=1))


def every_pair(pool: Contexts, law: Tensor, table: Tensor, total: float) -> Entries:
    """All ordered pairs of every context with their exact labels, table (R, X, A, A), weighted by the law of contexts
    times that of pairs, law its logarithm; `total` in all."""
    (R, X, A), device = law.shape[:3], law.device
    cells = torch.cartesian_prod(*[torch.arange(n, device=device) for n in (X, A, A)])
    offered = ~torch.isneginf(pool.ref_log_probs)
    present = (offered[..., :, None] & offered[..., None, :]).reshape(R, -1)
    likely = pool.ref_log_probs.argmax(-1)[:, cells[:, 0]]  # padding names an action that exists
    actions = torch.where(present[..., None], cells[:, 1:].expand(R, -1, -1), likely[..., None])
    assert pool.weights is not None
    weight = total * pool.weights[..., None, None] * law.exp()
    return Entries(cells[:, 0].expand(R, -1), actions, weight.reshape(R, -1), table.reshape(R, -1))


def every_action(contexts: Contexts, player: Policy, total: float) -> Entries:
    """Every action, weighted by the law of contexts times the player's, `total` in all."""
    law = player.log_probs(contexts).exp()
    (R, X, A), offered = law.shape, ~torch.isneginf(contexts.ref_log_probs)
    cells = torch.cartesian_prod(torch.arange(X, device=law.device), torch.arange(A, device=law.device))
    likely = contexts.ref_log_probs.argmax(-1)[:, cells[:, 0]]
    actions = torch.where(offered.reshape(R, -1), cells[:, 1].expand(R, -1), likely)[..., None]
    share = law.new_full((R, X), 1 / X) if contexts.weights is None else contexts.weights
    weight = torch.where(offered, total * share[..., None] * law, 0.0).reshape(R, -1)
    return Entries(cells[:, 0].expand(R, -1), actions, weight, torch.zeros_like(weight))


def shared(entries: dict[str, Entries], share: float) -> dict[str, Entries]:
    """Online and logged duels reweighted, so that the logged ones make up `share` of the same total."""
    mass = {kind: entries[kind].weight.sum(-1, keepdim=True) for kind in ("duels", "logged")}
    total = mass["duels"] + mass["logged"]
    wanted = {"duels": 1 - share, "logged": share}
    return {
        kind: entries[kind]._replace(weight=entries[kind].weight * wanted[kind] * total / mass[kind].clamp_min(1e-300))
        for kind in wanted
    }


def win_rate_labels(over: Contexts, row: Tensor, actions: Tensor, label: Tensor) -> Tensor:
    """sigma(r_1 - r_2), (R, U): r is a response's share of these duels in its context that it won, the duels with
    itself (one win in two) among them."""
    cell = (row[..., None] * over.n_actions + actions).flatten(1)
    played = label.new_zeros(label.shape[0], over.shape[1] * over.n_actions)
    won = played.scatter_add(1, cell, torch.stack([label, 1 - label], dim=-1).flatten(1))
    rate = (won / played.scatter_add(1, cell, torch.ones_like(cell, dtype=label.dtype))).gather(1, cell)
    rate = rate.view(actions.shape)
    return torch.sigmoid(rate[..., 0] - rate[..., 1])
