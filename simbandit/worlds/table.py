"""A world given as tables: the same contexts, rewards and reference in every replicate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from simbandit.draws import Draws
from simbandit.types import Contexts
from simbandit.worlds import arrays
from simbandit.worlds.instance import Realisation, replicates_of


@dataclass(frozen=True, eq=False)
class TableWorld:
    """X contexts x A actions, as arrays; all replicates share them (replicates differ in contexts and
    labels).

    ref_log_probs (X, A): log of the reference policy; -inf marks an action that a context does not offer
        (ragged contexts): its reward and features are never looked at and become 0.
    rewards (X, A): the truth of reward-based oracles; None for general preferences, which need none.
    features (X, A, d): for linear methods; the rewards need not be linear in them. None: tabular methods
        only.
    weights (X,): the law of contexts; None is uniform.
    reward_range: the bound that learners are told; None is the actual range, or (0, 1) without rewards.
    context_names, action_names: labels, kept so that results can be read back; item_names: for each context the
    labels of its first actions, where contexts offer different things.

    Raises ValueError, naming the argument, for wrong shapes, NaN or infinity, probabilities that do not sum
    to 1 (to 1e-9), a context without actions, or rewards outside `reward_range`.
    """

    ref_log_probs: ArrayLike
    rewards: ArrayLike | None = None
    features: ArrayLike | None = None
    weights: ArrayLike | None = None
    reward_range: tuple[float, float] | None = None
    context_names: Sequence[Hashable] | None = None
    action_names: Sequence[Hashable] | None = None
    item_names: Sequence[Sequence[Hashable]] | None = None

    def __post_init__(self) -> None:
        ref = arrays.log_probabilities("ref_log_probs", self.ref_log_probs)
        given: dict[str, Any] = {"ref_log_probs": ref}
        present = ref > -np.inf
        if self.rewards is not None:
            rewards = _alike("rewards", arrays.array("rewards", self.rewards, "XA"), ref.shape)
            given["rewards"] = arrays.finite("rewards", rewards, present)
        if self.features is not None:
            features = _alike("features", arrays.array("features", self.features, "XAd"), ref.shape)
            given["features"] = arrays.finite("features", features, present[..., None])
        weights = np.full(len(ref), 1 / len(ref)) if self.weights is None else self.weights
        given["weights"] = _alike("weights", arrays.probabilities("weights", weights, "X"), ref.shape[:1])
        if self.reward_range is not None:
            actual = None if self.rewards is None else _actual_range(given["rewards"], present)
            given["reward_range"] = _bound(self.reward_range, actual)
        for name, size in (("context_names", ref.shape[0]), ("action_names", ref.shape[1])):
            labels = getattr(self, name)
            if labels is not None:
                if len(labels) != size or len(set(labels)) != size:
                    raise ValueError(f"{name}: must be {size} different labels, got {len(labels)} ({labels!r:.200})")
                given[name] = tuple(labels)
        if self.item_names is not None:
            if len(self.item_names) != len(ref) or any(len(items) > ref.shape[1] for items in self.item_names):
                raise ValueError(f"item_names: must be {len(ref)} lists of at most {ref.shape[1]} labels")
            given["item_names"] = tuple(map(tuple, self.item_names))
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableWorld) and arrays.contents(self) == arrays.contents(other)

    def __hash__(self) -> int:
        return hash(arrays.contents(self))

    @property
    def n_contexts(self) -> int:
        return np.shape(self.ref_log_probs)[0]

    @property
    def n_actions(self) -> int:
        return np.shape(self.ref_log_probs)[1]

    @property
    def dim(self) -> int | None:
        return None if self.features is None else np.shape(self.features)[2]

    def instance(self, replicates: int, draws: Draws) -> Realisation:
        def expanded(values: ArrayLike | None) -> Tensor | None:
            table = None if values is None else arrays.shared(np.asarray(values), draws.device)
            return None if table is None else table.expand(replicates, *table.shape[1:])

        replicates_of(replicates, draws)
        pool = Contexts(
            index=torch.arange(self.n_contexts, device=draws.device).expand(replicates, -1),
            features=expanded(self.features),
            ref_log_probs=expanded(self.ref_log_probs),
            weights=expanded(self.weights),
        )
        return Realisation(
            replicates=replicates,
            n_actions=self.n_actions,
            dim=self.dim,
            reward_range=self._known_range(),
            evaluation=pool,
            pool=pool,
            reward_table=expanded(self.rewards),
            draws=draws,
        )

    def _known_range(self) -> tuple[float, float]:
        if self.reward_range is not None or self.rewards is None:
            return self.reward_range or (0.0, 1.0)
        return _actual_range(np.asarray(self.rewards), np.asarray(self.ref_log_probs) > -np.inf)


def _alike(name: str, values: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    if values.shape[: len(lead)] != lead:
        raise ValueError(f"{name}: must agree with ref_log_probs, {lead}, got {values.shape}")
    return values


def _actual_range(rewards: np.ndarray, present: np.ndarray) -> tuple[float, float]:
    offered = rewards[present]
    return float(offered.min()), float(offered.max())


def _bound(given: tuple[float, float], actual: tuple[float, float] | None) -> tuple[float, float]:
    if len(given) != 2:
        raise ValueError(f"reward_range: must be two numbers (low, high), got {given!r}")
    low, high = (arrays.number("reward_range", value) for value in given)
    if low > high:
        raise ValueError(f"reward_range: low must be <= high, got {given!r}")
    if actual is not None and not low <= actual[0] <= actual[1] <= high:
        raise ValueError(
            f"reward_range: must hold the rewards, which run from {actual[0]} to {actual[1]}, got {given!r}"
        )
    return low, high
