"""Parametric general preferences: bilinear, linear in pair features, GPM embeddings, blade-chest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from simbandit.oracles.asking import (
    BoundPreference,
    PreferenceOracle,
    Question,
    drawn,
    fitted,
    games,
    given,
    hashed,
    same,
    skew,
)
from simbandit.types import Contexts
from simbandit.worlds import arrays

Link = Literal["logistic", "linear"]
LINEAR_REACH = 4.0  # the linear link 1/2 + z / 8 is a probability for |z| <= 4


@dataclass(frozen=True, eq=False)
class Bilinear(PreferenceOracle):
    """P(a > b | x) = mu(phi(x,a)' Theta phi(x,b)), Theta skew: the generalised bilinear model GBPM (2602.23116).

    theta: (d, d), skew; None draws it by the paper's spectral law, Q blockdiag(s_i [[0, 1], [-1, 0]]) Q' with
    s_i ~ U(.1, 1) and Q a random orthonormal frame, of even `rank` (2r in the paper) and Frobenius norm `norm` (S).
    link: "logistic", or "linear", mu(z) = 1/2 + z / 8, for |z| <= 4. fixed, variant: as in `UniformTriangular`.
    Raises ValueError for an odd rank or one above d, a Theta that is not skew, and scores beyond the linear link.
    """

    rank: int = 2
    theta: ArrayLike | None = None
    norm: float = 5.0
    link: Link = "logistic"
    fixed: bool = False
    variant: int = 0

    def __post_init__(self) -> None:
        _check_link(self.link)
        arrays.number("norm", self.norm, 0.0)
        if arrays.count("rank", self.rank, 2) % 2:
            raise ValueError(f"rank: a skew matrix has even rank, got {self.rank}")
        if self.theta is not None:
            theta = arrays.finite("theta", arrays.array("theta", self.theta, "dd"))
            off = math.inf if theta.shape[0] != theta.shape[1] else float(np.abs(theta + theta.T).max())
            if off > 1e-9:
                raise ValueError(
                    f"theta: must be square and skew (theta + theta' = 0), off by up to {off:.3g}; "
                    "(theta - theta') / 2 is its skew part"
                )
            object.__setattr__(self, "theta", arrays.frozen((theta - theta.T) / 2))

    __eq__ = same
    __hash__ = hashed

    def matrix(self, instance: Any) -> Tensor:
        """Theta, (R or 1, d, d)."""
        d = _dim(self, instance)
        if self.theta is not None:
            if len(np.asarray(self.theta)) != d:
                raise ValueError(f"theta: must be ({d}, {d}) like the world's features, got {np.shape(self.theta)}")
            return arrays.shared(np.asarray(self.theta), instance.evaluation.ref_log_probs.device)
        if self.rank > d:
            raise ValueError(f"rank: must be at most the world's dimension {d}, got {self.rank}")
        frame = torch.linalg.qr(drawn(self, instance, "frame", d, self.rank)).Q
        size = 0.1 + 0.9 * drawn(self, instance, "spectrum", self.rank // 2, law="uniform")
        theta = (frame[..., 0::2] * size[:, None]) @ frame[..., 1::2].mT
        theta = theta - theta.mT
        return self.norm * theta / theta.norm(dim=(-2, -1), keepdim=True)

    def bind(self, instance: Any) -> BoundPreference:
        theta = self.matrix(instance)

        def prob(question: Question) -> Tensor:
            first, second = question.features()
            return _linked(question.products(_turned(first, theta), second), self.link)

        return BoundPreference(self, lambda question: skew(prob, question))


PairFeatures = Literal["difference", "wedge", "both"]


@dataclass(frozen=True, eq=False)
class LinearPreference(PreferenceOracle):
    """P(a > b | x) = mu(<psi(x,a,b), theta>), psi skew in (a, b).

    psi: "difference", phi(x,a) - phi(x,b), which is Bradley-Terry; "wedge", phi_i(a) phi_j(b) - phi_j(a) phi_i(b) for
    i < j (every bilinear model); "both", the first and then the second; or an array (A, A, m) or (X, A, A, m). theta:
    (m,); None draws a direction, uniform on the sphere of radius `norm`. link as in `Bilinear`. Raises ValueError for a
    psi that is not skew, a theta of another length, and scores beyond the linear link.
    """

    psi: PairFeatures | ArrayLike = "both"
    theta: ArrayLike | None = None
    norm: float = 2.0
    link: Link = "logistic"
    fixed: bool = False
    variant: int = 0

    def __post_init__(self) -> None:
        _check_link(self.link)
        arrays.number("norm", self.norm, 0.0)
        if isinstance(self.psi, str):
            if self.psi not in ("difference", "wedge", "both"):
                raise ValueError(f"psi: must be 'difference', 'wedge', 'both' or an array, got {self.psi!r}")
        else:
            psi = given("psi", self.psi, "XAAm")
            off = np.abs(psi + psi.swapaxes(1, 2)).max() if psi.shape[1] == psi.shape[2] else math.inf
            if off > 1e-9:
                raise ValueError(f"psi: must be skew, psi[a, b] = -psi[b, a], off by up to {off:.3g}")
            object.__setattr__(self, "psi", psi)
        if self.theta is not None:
            object.__setattr__(self, "theta", arrays.finite("theta", arrays.array("theta", self.theta, "m")))

    __eq__ = same
    __hash__ = hashed

    def parameter(self, instance: Any) -> Tensor:
        """theta, (R or 1, m)."""
        if not isinstance(self.psi, str):
            size = np.shape(self.psi)[-1]
        else:
            d = _dim(self, instance)
            size = {"difference": d, "wedge": d * (d - 1) // 2, "both": d * (d + 1) // 2}[self.psi]
        if self.theta is not None:
            if np.shape(self.theta) != (size,):
                raise ValueError(f"theta: must have shape ({size},), one number per pair feature, got {self.theta!r}")
            return arrays.shared(np.asarray(self.theta), instance.evaluation.ref_log_probs.device)
        theta = drawn(self, instance, "theta", size)
        return self.norm * theta / theta.norm(dim=-1, keepdim=True)

    def bind(self, instance: Any) -> BoundPreference:
        theta = self.parameter(instance)
        if not isinstance(self.psi, str):
            psi = fitted("psi", self.psi, instance)
            score = torch.einsum("rxabm,rm->rxab", psi.expand(len(theta), -1, -1, -1, -1), theta)

            def entry(question: Question) -> Tensor:
                return _linked(question.entries(score), self.link)

            return BoundPreference(self, lambda question: skew(entry, question))
        d = _dim(self, instance)
        linear = theta[:, :d] if self.psi != "wedge" else None
        wedge = None
        if self.psi != "difference":
            i, j = torch.triu_indices(d, d, 1, device=theta.device)
            wedge = theta.new_zeros(len(theta), d, d)
            wedge[:, i, j] = theta[:, -len(i) :] if len(i) else theta[:, :0]
            wedge = wedge - wedge.mT

        def prob(question: Question) -> Tensor:
            first, second = question.features()
            parts = []
            if linear is not None:
                parts.append(question.differences(*(torch.einsum("rbnd,rd->rbn", x, linear) for x in (first, second))))
            if wedge is not None:
                parts.append(question.products(_turned(first, wedge), second))
            return _linked(sum(parts[1:], parts[0]), self.link)

        return BoundPreference(self, lambda question: skew(prob, question))


def pair_features(contexts: Contexts, first: Tensor, second: Tensor, psi: PairFeatures = "both") -> Tensor:
    """psi(x, a, b), (R, B, m), of actions (R, B): what `LinearPreference` is linear in."""
    pair = contexts.features_of(torch.stack([first, second], -1))
    a, b = pair[..., 0, :], pair[..., 1, :]
    i, j = torch.triu_indices(a.shape[-1], a.shape[-1], 1, device=a.device)
    wedge = a[..., i] * b[..., j] - a[..., j] * b[..., i]
    parts = {"difference": [a - b], "wedge": [wedge], "both": [a - b, wedge]}
    return torch.cat(parts[psi], -1)


@dataclass(frozen=True, eq=False)
class GPM(PreferenceOracle):
    """P(a > b | x) = sigma(s / temperature), s = sum_l lambda_l(x) (v_a,2l v_b,2l+1 - v_a,2l+1 v_b,2l).

    General preference model (2410.02197) with the sign of its Definition 4.3, <R v_a, v_b>. embeddings v: (A, 2k) or
    (X, A, 2k), used as given; None draws unit vectors with k = `n_blocks`. scales lambda: "ones", "uniform" (U[0, 1] by
    context and block), or an array (k,) or (X, k), >= 0. temperature: .1 in the paper. k = 1 with v = (r, 1) is
    Bradley-Terry. contextual: whether drawn embeddings and scales differ by context.
    """

    n_blocks: int = 2
    embeddings: ArrayLike | None = None
    scales: Literal["ones", "uniform"] | ArrayLike = "ones"
    temperature: float = 0.1
    contextual: bool = True
    fixed: bool = False
    variant: int = 0

    def __post_init__(self) -> None:
        arrays.number("temperature", self.temperature, 0.0, above=True)
        arrays.count("n_blocks", self.n_blocks)
        if self.embeddings is not None:
            embeddings = given("embeddings", self.embeddings, "XAm")
            if embeddings.shape[-1] % 2:
                raise ValueError(f"embeddings: must have even length 2k, got {embeddings.shape[-1]}")
            object.__setattr__(self, "embeddings", embeddings)
            object.__setattr__(self, "n_blocks", embeddings.shape[-1] // 2)
        if isinstance(self.scales, str):
            if self.scales not in ("ones", "uniform"):
                raise ValueError(f"scales: must be 'ones', 'uniform' or an array, got {self.scales!r}")
        else:
            scales = given("scales", self.scales, "Xk")
            if scales.shape[-1] != self.n_blocks or scales.min() < 0:
                raise ValueError(f"scales: must be {self.n_blocks} numbers >= 0 (one a block), got {scales.tolist()}")
            object.__setattr__(self, "scales", scales)

    __eq__ = same
    __hash__ = hashed

    def bind(self, instance: Any) -> BoundPreference:
        if self.embeddings is not None:
            v = fitted("embeddings", self.embeddings, instance)
        else:
            v = drawn(self, instance, "embeddings", games(self, instance), instance.n_actions, 2 * self.n_blocks)
            v = v / v.norm(dim=-1, keepdim=True)
        if isinstance(self.scales, str):
            scales = v.new_ones(1, 1, self.n_blocks)
            if self.scales == "uniform":
                scales = drawn(self, instance, "scales", games(self, instance), self.n_blocks, law="uniform")
        else:
            scales = arrays.shared(np.asarray(self.scales), v.device)
            pool = None if instance.pool is None else instance.pool.shape[1]
            if scales.shape[1] not in (1, pool):
                raise ValueError(f"scales: are for {scales.shape[1]} contexts, the world has {pool}")
        scales = scales[..., None, :]
        left = torch.cat([v[..., 0::2] * scales, -v[..., 1::2] * scales], -1) / self.temperature
        return _crossed(self, left, torch.cat([v[..., 1::2], v[..., 0::2]], -1))


@dataclass(frozen=True, eq=False)
class BladeChest(PreferenceOracle):
    """P(a > b | x) = sigma(M(a, b)), blade-chest (Chen, Joachims 2016).

    form "inner": M = blade_a . chest_b - chest_a . blade_b; "distance": M = |blade_b - chest_a|^2 - |blade_a -
    chest_b|^2, larger when a's blade is near b's chest; both + bias_a - bias_b. blades, chests: (A, dim) or
    (X, A, dim), both or neither; None draws them Gaussian with mean square `scale`^2 / dim a coordinate. biases: (A,)
    or (X, A); None is 0.
    """

    form: Literal["inner", "distance"] = "inner"
    dim: int = 2
    blades: ArrayLike | None = None
    chests: ArrayLike | None = None
    biases: ArrayLike | None = None
    scale: float = 1.0
    contextual: bool = True
    fixed: bool = False
    variant: int = 0

    def __post_init__(self) -> None:
        if self.form not in ("inner", "distance"):
            raise ValueError(f"form: must be 'inner' or 'distance', got {self.form!r}")
        arrays.count("dim", self.dim)
        arrays.number("scale", self.scale, 0.0)
        if (self.blades is None) != (self.chests is None):
            raise ValueError("blades, chests: give both or neither")
        for name, dims in (("blades", "XAm"), ("chests", "XAm"), ("biases", "XA")):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, given(name, getattr(self, name), dims))
        if self.blades is not None and self.chests is not None:
            if np.shape(self.blades) != np.shape(self.chests):
                raise ValueError(f"chests: must be like blades, {np.shape(self.blades)}, got {np.shape(self.chests)}")
            object.__setattr__(self, "dim", np.shape(self.blades)[-1])

    __eq__ = same
    __hash__ = hashed

    def bind(self, instance: Any) -> BoundPreference:
        if self.blades is not None:
            blade, chest = (fitted(name, getattr(self, name), instance) for name in ("blades", "chests"))
        else:
            shape = (games(self, instance), instance.n_actions, self.dim)
            size = self.scale / math.sqrt(self.dim)
            blade, chest = (size * drawn(self, instance, name, *shape) for name in ("blades", "chests"))
        bias = blade.new_zeros(1, 1, instance.n_actions)
        if self.biases is not None:
            bias = fitted("biases", self.biases, instance)
        if self.form == "distance":  # |b_b - c_a|^2 - |b_a - c_b|^2 multiplied out
            bias = bias + chest.square().sum(-1) - blade.square().sum(-1)
            blade, chest = math.sqrt(2) * blade, math.sqrt(2) * chest
        lead = torch.broadcast_shapes(blade.shape[:-1], bias.shape)
        blade, chest, bias = blade.expand(*lead, -1), chest.expand(*lead, -1), bias.expand(lead)[..., None]
        one = torch.ones_like(bias)
        return _crossed(self, torch.cat([blade, -chest, bias, -one], -1), torch.cat([chest, blade, one, bias], -1))


def _crossed(oracle: PreferenceOracle, left: Tensor, right: Tensor) -> BoundPreference:
    """P(a > b | x) = sigma(left_a . right_b), of vectors (R or 1, X or 1, A, m) whose products are skew."""

    def prob(question: Question) -> Tensor:
        (first, _), (_, second) = question.vectors(left), question.vectors(right)
        return torch.sigmoid(question.products(first, second))

    return BoundPreference(oracle, lambda question: skew(prob, question))


def _turned(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors (R or 1, B, n, d) times a matrix of their replicate (R or 1, d, d), which no context copies."""
    return torch.einsum("rbnd,rde->rbne", vectors, matrix)


def _linked(score: Tensor, link: Link) -> Tensor:
    if link == "logistic":
        return torch.sigmoid(score)
    largest = float(score.abs().max()) if score.numel() else 0.0
    if largest > LINEAR_REACH:
        raise ValueError(f"link: 'linear' needs scores in [-4, 4], got one of size {largest:.3g}; lower norm=")
    return 0.5 + score / 8


def _check_link(link: str) -> None:
    if link not in ("logistic", "linear"):
        raise ValueError(f"link: must be 'logistic' or 'linear', got {link!r}")


def _dim(oracle: PreferenceOracle, instance: Any) -> int:
    if instance.dim is None:
        raise ValueError(f"oracle: {type(oracle).__name__} needs a world with features; give `features=` to the world")
    return instance.dim
