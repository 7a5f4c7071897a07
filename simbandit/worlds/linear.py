"""Linear worlds: rewards are <features, theta*>, drawn anew for every replicate or held fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from simbandit.draws import Draws, Round
from simbandit.types import Contexts
from simbandit.worlds import arrays
from simbandit.worlds.instance import Realisation, linear_rewards, replicates_of

FeatureLaw = Literal["sphere", "ball", "gaussian", "signs", "one_hot", "per_arm"]
ThetaLaw = Literal["sphere", "gaussian", "box", "signs", "gem"]
ReferenceLaw = Literal["uniform", "skewed", "anti_aligned", "softmax"]

NORMAL_REACH = 8.0  # a standard normal number goes beyond it once in 10^15


class Source(NamedTuple):
    """Where random objects come from: purpose and shape in, (R, *shape) or (1, *shape) out."""

    normal: Callable[..., Tensor]
    uniform: Callable[..., Tensor]
    direction: Callable[..., Tensor]


def source(draw: Callable[..., Tensor]) -> Source:
    """Of `Draws.once` or `Draws.shared`."""
    return Source(partial(draw, law="normal"), partial(draw, law="uniform"), partial(draw, law="direction"))


@dataclass(frozen=True, eq=False)
class LinearWorld:
    """Rewards linear in known features, r(x, a) = <phi(x, a), theta*>.

    n_contexts: size of a finite pool of contexts, or None: contexts (their features) are fresh every round.
    n_actions, dim: A and d. Left at their defaults they follow given arrays.
    features: a law, independent over contexts and actions: "sphere" (unit norm), "ball" (uniform in the unit
        ball), "gaussian" (N(0, I)), "signs" ({-1, 1}^d, norm sqrt(d)); "one_hot" (e_a, dim = n_actions; or
        e_(x,a), dim = n_contexts * n_actions: a tabular world); "per_arm", the disjoint model r = <x,
        theta_a> with x on the unit sphere, features e_a (x) x (held as x), dim = n_actions * size of x (action a
        owns coordinates a*size ... (a+1)*size - 1); or an array (X, A, d).
    theta: a law, "sphere", "gaussian" (N(0, I)), "box" (uniform on [0, 1]^d), "signs", "gem" (1 in the last
        coordinate, uniform on [0, 1/2] elsewhere), scaled to the norm `theta_norm`; with theta_norm=None the
        law's own norm (1 on the sphere) times `theta_scale`. Or a vector (d,), used as it is.
    reference: "uniform"; "skewed" (proportional to exp(-s a), a the action's number); "anti_aligned" with the
        reward (proportional to exp(-s <phi, theta*>)); "softmax" (of s times N(0, 1) logits), s =
        reference_strength; or probabilities (A,) or (X, A), where 0 marks an absent action.
    context_law: the law of a finite pool: None (uniform), "zipf" (proportional to 1 / (1 + x)) or
        probabilities (X,).
    fixed: the random objects are drawn once for the seed, and all replicates share them.
    n_evaluation: with fresh contexts, the number of contexts, shared by all replicates, over which the truth
        is taken.

    The instance's `reward_range` is |theta*| max |phi|, both ways, by the laws' bounds ([0, .] for one-hot
    features under "box" and "gem"). It must not depend on who else is in the batch, so Gaussian laws count as
    bounded by 8 standard deviations rather than by what was drawn.

    Raises ValueError, naming the argument, for impossible sizes, tables beyond 4 GB, NaN or infinity, and
    probabilities that do not sum to 1.
    """

    n_contexts: int | None = None
    n_actions: int = 10
    dim: int = 5
    features: FeatureLaw | ArrayLike = "sphere"
    theta: ThetaLaw | ArrayLike = "sphere"
    theta_norm: float | None = 2.0
    theta_scale: float = 1.0
    reference: ReferenceLaw | ArrayLike = "uniform"
    reference_strength: float = 1.0
    context_law: Literal["zipf"] | ArrayLike | None = None
    fixed: bool = False
    n_evaluation: int = 2048

    def __post_init__(self) -> None:
        given: dict[str, Any] = {}
        if self.n_contexts is not None:
            given["n_contexts"] = arrays.count("n_contexts", self.n_contexts)
        for name in ("n_actions", "dim", "n_evaluation"):
            given[name] = arrays.count(name, getattr(self, name))
        if not _is_law("features", self.features, FeatureLaw):
            given["features"] = arrays.finite("features", arrays.array("features", self.features, "XAd"))
            for name, size in zip(("n_contexts", "n_actions", "dim"), given["features"].shape, strict=True):
                given[name] = _follow(name, given.get(name), "features", size)
        given["theta_scale"] = arrays.number("theta_scale", self.theta_scale, 0.0, above=True)
        if self.theta_norm is not None:
            given["theta_norm"] = arrays.number("theta_norm", self.theta_norm, 0.0)
            if self.theta_scale != 1.0:
                raise ValueError("theta_scale: scales the law's own norm, so it needs theta_norm=None")
        if not _is_law("theta", self.theta, ThetaLaw):
            given["theta"] = arrays.finite("theta", arrays.array("theta", self.theta, "d"))
            given["dim"] = _follow("dim", given["dim"], "theta", len(given["theta"]), self.features)
            norm = float(np.linalg.norm(given["theta"]))
            if self.theta_norm not in (None, _default("theta_norm")) and not math.isclose(given["theta_norm"], norm):
                raise ValueError(f"theta_norm: a given theta is used as it is, norm {norm:g}, got {self.theta_norm!r}")
            given["theta_norm"] = norm
        given["reference_strength"] = arrays.number("reference_strength", self.reference_strength)
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self._check_sizes()
        if not _is_law("reference", self.reference, ReferenceLaw):
            object.__setattr__(self, "reference", self._given_reference())
        if self.context_law is not None:
            if self.n_contexts is None:
                raise ValueError("context_law: is the law of a finite pool; fresh contexts need context_law=None")
            if not _is_law("context_law", self.context_law, Literal["zipf"]):
                law = arrays.probabilities("context_law", cast(ArrayLike, self.context_law), "X")
                if len(law) != self.n_contexts:
                    raise ValueError(f"context_law: must hold n_contexts={self.n_contexts} numbers, got {len(law)}")
                object.__setattr__(self, "context_law", law)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinearWorld) and arrays.contents(self) == arrays.contents(other)

    def __hash__(self) -> int:
        return hash(arrays.contents(self))

    def instance(self, replicates: int, draws: Draws) -> Realisation:
        replicates_of(replicates, draws)
        n = self.n_contexts
        arrays.affordable("replicates", replicates * self._numbers(), f"{replicates:,} replicates' tables")
        draw = draws.shared if self.fixed else draws.once
        own = source(draw)
        theta = self._theta(own, draws.device).expand(replicates, -1)

        if n is None:
            seed = source(draws.shared)
            uniform = torch.full(
                (1, self.n_evaluation), 1 / self.n_evaluation, dtype=torch.float64, device=draws.device
            )
            evaluation = self._contexts(seed, self.n_evaluation, theta, draws.device, uniform.expand(replicates, -1))
            same = None if self._has_law("reference", "anti_aligned", "softmax") else evaluation.ref_log_probs[:, :1]

            def fresh(now: Round, batch_size: int) -> Contexts:
                drawn = Source(now.normal, now.uniform, now.direction)
                return self._contexts(drawn, batch_size, theta, draws.device, reference=same)

            return Realisation(
                replicates,
                self.n_actions,
                self.dim,
                self._reward_range(),
                evaluation,
                theta=theta,
                theta_bound=self._theta_bound(self.dim),
                own_dim=self._own_dim(),
                fresh=fresh,
                draws=draws,
            )

        law = arrays.shared(self._context_probabilities(), draws.device).expand(replicates, -1)
        index = torch.arange(n, device=draws.device).expand(replicates, -1)
        pool = self._contexts(own, n, theta, draws.device, law, index)
        rewards = linear_rewards(pool, theta)
        if pool.has_features and (pool.vector if pool.vector is not None else pool.features).stride(
            0
        ) == 0 == theta.stride(0):
            rewards = rewards[:1].clone().expand(replicates, -1, -1)
        return Realisation(
            replicates,
            self.n_actions,
            self.dim,
            self._reward_range(),
            pool,
            pool,
            theta=theta,
            reward_table=rewards,
            theta_bound=self._theta_bound(self.dim),
            own_dim=self._own_dim(),
            draws=draws,
        )

    def _contexts(
        self,
        source: Source,
        size: int,
        theta: Tensor,
        device: torch.device,
        weights: Tensor | None = None,
        index: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Contexts:
        """`size` contexts per replicate: their features, and the reference that goes with them (the given one)."""
        replicates = len(theta)
        features = vector = None
        if self._own_dim() < self.dim:
            vector = source.direction("features", size, self._own_dim()).expand(replicates, size, -1)
        else:
            features = self._features(source, size, device)

        def held(ref: Tensor, features: Tensor | None = features) -> Contexts:
            each = None if features is None else features.expand(replicates, size, -1, -1)
            ref = ref.expand(replicates, size, -1)
            offers = None if isinstance(self.reference, np.ndarray) else False
            return Contexts(
                index=index, features=each, vector=vector, ref_log_probs=ref, weights=weights, ragged=offers
            )

        if reference is None:
            every = torch.zeros(1, 1, self.n_actions, dtype=torch.float64, device=device)
            reference = self._reference(source, size, lambda: linear_rewards(held(every), theta), device)
        if features is not None and isinstance(self.reference, np.ndarray):
            features = features * (reference > -torch.inf)[..., None]
        return held(reference, features)

    def _own_dim(self) -> int:
        """Numbers in an action's features that are not zero by the law."""
        return self.dim // self.n_actions if self._has_law("features", "per_arm") else self.dim

    def _features(self, source: Source, size: int, device: torch.device) -> Tensor:
        """(R or 1, size or 1, A, d)"""
        arms, dim = self.n_actions, self.dim
        if isinstance(self.features, np.ndarray):
            return arrays.shared(self.features, device)
        match cast(FeatureLaw, self.features):  # "per_arm" never comes here
            case "sphere":
                return source.direction("features", size, arms, dim)
            case "ball":
                radius = source.uniform("features/radius", size, arms, 1) ** (1 / dim)
                return source.direction("features", size, arms, dim) * radius
            case "gaussian":
                return source.normal("features", size, arms, dim)
            case "signs":
                return torch.where(source.uniform("features", size, arms, dim) < 0.5, -1.0, 1.0).double()
            case _:  # "one_hot"
                return torch.eye(dim, dtype=torch.float64, device=device).view(1, dim // arms, arms, dim)

    def _theta(self, source: Source, device: torch.device) -> Tensor:
        """(R or 1, d)"""
        if isinstance(self.theta, np.ndarray):
            return arrays.shared(self.theta, device)
        match cast(ThetaLaw, self.theta):
            case "sphere":
                theta = source.direction("theta", self.dim)
            case "gaussian":
                theta = source.normal("theta", self.dim)
            case "box":
                theta = source.uniform("theta", self.dim)
            case "signs":
                theta = torch.where(source.uniform("theta", self.dim) < 0.5, -1.0, 1.0).double()
            case "gem":
                theta = source.uniform("theta", self.dim) / 2
                theta[:, -1] = 1.0
        return theta * self.theta_scale if self.theta_norm is None else _unit(theta) * self.theta_norm

    def _reference(self, source: Source, size: int, rewards: Callable[[], Tensor], device: torch.device) -> Tensor:
        """Log-probabilities, (R or 1, size or 1, A)"""
        if isinstance(self.reference, np.ndarray):
            table = arrays.shared(self.reference, device).log()
            return table if table.ndim == 3 else table[:, None]
        match cast(ReferenceLaw, self.reference):
            case "uniform":
                logits = torch.zeros(1, 1, self.n_actions, dtype=torch.float64, device=device)
            case "skewed":
                numbers = torch.arange(self.n_actions, dtype=torch.float64, device=device)
                logits = -self.reference_strength * numbers.view(1, 1, -1)
            case "anti_aligned":
                logits = -self.reference_strength * rewards()
            case "softmax":
                logits = self.reference_strength * source.normal("reference", size, self.n_actions)
        return torch.log_softmax(logits, -1)

    def _given_reference(self) -> np.ndarray:
        values = np.asarray(self.reference)
        per_context = values.ndim == 2
        result = arrays.probabilities("reference", values, "XA" if per_context else "A")
        if result.shape[-1] != self.n_actions or (per_context and len(result) != self.n_contexts):
            allowed = f"({self.n_actions},)" + (f" or ({self.n_contexts}, {self.n_actions})" if self.n_contexts else "")
            raise ValueError(f"reference: must have shape {allowed}, got {result.shape}")
        return result

    def _context_probabilities(self) -> np.ndarray:
        assert self.n_contexts is not None
        if isinstance(self.context_law, np.ndarray):
            return self.context_law
        weights = 1 / np.arange(1, self.n_contexts + 1) if self.context_law == "zipf" else np.ones(self.n_contexts)
        return weights / weights.sum()

    def _has_law(self, field: str, *laws: str) -> bool:
        value = getattr(self, field)
        return isinstance(value, str) and value in laws

    def _check_sizes(self) -> None:
        arms, dim, pool = self.n_actions, self.dim, self.n_contexts
        if self._has_law("features", "one_hot") and dim not in (arms, arms * (pool or 1)):
            tabular = f", or n_contexts * n_actions = {arms * pool}" if pool else ""
            raise ValueError(f"dim: one_hot features need dim = n_actions = {arms}{tabular}, got {dim}")
        if self._has_law("features", "per_arm") and dim % arms:
            raise ValueError(f"dim: per_arm features need a multiple of n_actions={arms} (one block an arm), got {dim}")
        names, rows = ("n_contexts", pool) if pool else ("n_evaluation", self.n_evaluation)
        what = f"tables of {rows:,} x {arms:,} x {dim:,} numbers"
        arrays.affordable(f"{names}, n_actions, dim", rows * arms * (dim + 2), what)

    def _numbers(self) -> int:
        """Numbers that each replicate holds for itself."""
        if self.fixed or self.n_contexts is None:
            return self.dim
        drawn = 0 if isinstance(self.features, np.ndarray) or self._has_law("features", "one_hot") else self.dim
        return self.n_contexts * self.n_actions * (drawn + 2)

    def _reward_range(self) -> tuple[float, float]:
        """By Cauchy and Schwarz, on the block of coordinates that one action's features can touch."""
        widths = {"one_hot": 1, "per_arm": self.dim // self.n_actions}
        norms = {"gaussian": NORMAL_REACH, "signs": math.sqrt(self.dim)}
        if isinstance(self.features, np.ndarray):
            largest, width = float(np.linalg.norm(self.features, axis=-1).max()), self.dim
        else:
            law = cast(str, self.features)
            largest, width = norms.get(law, 1.0), widths.get(law, self.dim)
        norm = self._theta_bound(width)
        positive = self._has_law("features", "one_hot") and self._has_law("theta", "box", "gem")
        return (0.0 if positive else -largest * norm), largest * norm

    def _theta_bound(self, width: int) -> float:
        """A bound on the norm of `width` coordinates of theta*."""
        if self.theta_norm is not None:
            return self.theta_norm
        own = {"sphere": 1.0, "gaussian": math.sqrt(width) + NORMAL_REACH}
        return self.theta_scale * own.get(cast(str, self.theta), math.sqrt(width))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def _is_law(name: str, value: Any, laws: Any) -> bool:
    """Whether `value` names a law; an unknown name is an error, anything else is an array."""
    if isinstance(value, str) and value not in get_args(laws):
        raise ValueError(f"{name}: must be one of {', '.join(get_args(laws))} or an array, got {value!r}")
    return isinstance(value, str)


def _default(name: str) -> Any:
    return next(f.default for f in fields(LinearWorld) if f.name == name)


def _follow(name: str, asked: int | None, given: str, size: int, fixed_by: Any = "") -> int:
    """The size that a given array has, unless another one was asked for."""
    if asked != size and (asked != _default(name) or not isinstance(fixed_by, str)):
        raise ValueError(f"{name}: the given {given} has {size}, got {asked}")
    return size
