"""Ridge regression that learns in place, one observation at a time, at O(d^2): what linear bandits run on.

One place says which engine runs: `native` turns tensors into NumPy arrays on the CPU, where small operations cost a
third of torch's and batched products of small matrices half, and leaves them alone on a GPU. The lines below are the
same for both (`xp` is numpy or torch); the rank-one update is torch's in-place `addcmul_` on either, 2.5 times as fast
as NumPy's two passes (measured at d = 16, 128 replicates). Where numba is installed, scores and updates on the CPU are
those of `compiled`, equal to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simbandit import compiled


def native(*tensors: Tensor) -> tuple[Any, ...]:
    """The module whose functions suit the tensors' device, and the tensors as its arrays (sharing memory)."""
    if tensors[0].device.type == "cpu":
        return np, *(t.numpy() for t in tensors)
    return torch, *tensors


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


class LeastSquares:
    """theta = V^-1 sum phi r with V = ridge I + sum phi phi', per replicate: recursive least squares.

    theta (R, d); `inverse` (R, d, d) of V, by Sherman and Morrison, or, with `root`, a square root of it, inverse =
    root root', by Potter's update (no factorisation is ever needed for a posterior draw); log_det (R,) = log det V -
    log det ridge I. With `arms` every action has a model of its own: theta (R, A, d), inverse (R, A, d, d), log_det
    (R, A). n: observations per replicate so far. Either form stays within rounding of a fresh factorisation (1e-13
    after 10,000 updates). theta is read as a copy; the matrix changes in place.
    """

    def __init__(
        self,
        replicates: int,
        dim: int,
        ridge: float,
        device: torch.device | str = "cpu",
        *,
        arms: int | None = None,
        root: bool = False,
    ):
        lead = (replicates,) if arms is None else (replicates, arms)
        self.arms, self.ridge, self.has_root, self.n = arms, ridge, root, 0
        eye = torch.eye(dim, dtype=torch.float64, device=device)
        self._matrix = (eye / (ridge**0.5 if root else ridge)).expand(*lead, dim, dim).clone()
        self._log_det = torch.zeros(lead, dtype=torch.float64, device=device)
        # The same memory as arrays of the engine in use: the hot path crosses between the two as rarely as it can.
        self._xp, self._array, self._theta = native(self._matrix, self._log_det.new_zeros(*lead, dim))
        self._compiled = compiled.AVAILABLE and self._xp is np and not root

    @property
    def theta(self) -> Tensor:
        return tensor(self._theta).clone()

    @property
    def inverse(self) -> Tensor:
        return self._matrix @ self._matrix.mT if self.has_root else self._matrix

    @property
    def root(self) -> Tensor:
        return self._matrix

    @property
    def log_det(self) -> Tensor:
        return self._log_det.clone()

    def mean(self, phi: Tensor) -> Tensor:
        """<theta, phi> of features (R, B, A, d): (R, B, A)."""
        return linear(phi, tensor(self._theta))

    def width(self, phi: Tensor) -> Tensor:
        """||phi||_inverse of features (R, B, A, d): (R, B, A)."""
        xp, f = native(phi)
        R, B, A, d = f.shape
        if self.arms is not None and B == 1 and phi.stride(2) == 0 and not self.has_root:
            x = phi[:, 0, 0]  # all arms see one vector: a width is one long product of the matrix with x x'
            outer = native((x[:, :, None] * x[:, None]).view(R, d * d, 1))[1]  # torch's: a quarter of NumPy's time
            squares = xp.matmul(self._array.reshape(R, self.arms, d * d), outer).reshape(R, 1, self.arms)
            return tensor(xp.sqrt(abs(squares)))
        f = f.reshape(R, B * A, d) if self.arms is None else f.swapaxes(1, 2)  # (R, n, d) or (R, A, B, d)
        half = xp.matmul(f, self._array)
        squares = xp.einsum("...d,...d->...", half, half if self.has_root else f)
        squares = squares.reshape(R, B, A) if self.arms is None else squares.swapaxes(1, 2)
        return tensor(xp.sqrt(abs(squares)))  # negative by rounding only

    def scores(self, phi: Tensor, radius: Tensor | float) -> Tensor:
        """mean + radius * width of features (R, B, A, d), radius a number, (R,), or per arm (R, A): (R, B, A)."""
        R, B, A, d = phi.shape
        if not self._compiled:
            multiplier = radius.view(R, 1, -1) if isinstance(radius, Tensor) else radius
            return self.width(phi).mul_(multiplier).add_(self.mean(phi))
        lead = (R,) if self.arms is None else (R, A)
        each = np.ascontiguousarray(radius.numpy()) if isinstance(radius, Tensor) else np.full(lead, float(radius))
        out = np.empty((R, B, A))
        if self.arms is None:
            f = np.ascontiguousarray(phi.numpy()).reshape(R, B * A, d)
            compiled.scores(f, self._theta, self._array, each, out.reshape(R, -1))
        else:
            f = np.ascontiguousarray(phi.numpy()[:, :, : 1 if phi.stride(2) == 0 else A])
            compiled.own_scores(f, self._theta, self._array, each, out)
        return torch.from_numpy(out)

    def play(self, phi: Tensor, outcomes: Tensor, uniforms: Tensor, radius: float, tolerance: float) -> Tensor | None:
        """Optimism for B rounds of one context by the compiled kernels: features (R, B, A, d), what each action would
        be answered with (R, B, A), uniforms that break ties (R, B). The actions (R, B); None without the kernels."""
        if not self._compiled:
            return None
        x = phi.numpy()[:, :, : 1 if self.arms and phi.stride(2) == 0 else None].swapaxes(0, 1)
        (R, B, _), models, d = outcomes.shape, self.arms or 1, self._array.shape[-1]
        out = np.empty((R, B), dtype=np.int64)
        (compiled.play if self.arms is None else compiled.play_own)(
            np.ascontiguousarray(x),
            np.ascontiguousarray(outcomes.numpy()),
            np.ascontiguousarray(uniforms.numpy().T),
            float(radius),
            tolerance,
            self._theta.reshape(R, models, d),
            self._array.reshape(R, models, d, d),
            self._log_det.numpy().reshape(R, models),
            out,
        )
        self.n += B
        return torch.from_numpy(out)

    def observe(self, phi: Tensor, reward: Tensor, arm: Tensor | None = None) -> None:
        """phi (R, B, d), reward (R, B), and with own models per arm the actions, arm (R, B)."""
        xp, x, r = native(phi, reward)
        for b in range(r.shape[1]):
            self.n += 1
            if self._compiled:
                self._learn(x[:, b], r[:, b], None if self.arms is None or arm is None else arm[:, b].numpy())
                continue
            if self.arms is None:
                self._theta, b1 = self._step(self._matrix, self._array, self._theta, x[:, b], r[:, b])
                self._log_det += tensor(xp.log(b1))
                continue
            assert arm is not None
            at = native(torch.arange(len(r), device=reward.device), arm[:, b])[1:]
            matrix = self._array[at]
            self._theta[at], b1 = self._step(tensor(matrix), matrix, self._theta[at], x[:, b], r[:, b])
            self._array[at] = matrix
            native(self._log_det)[1][at] += xp.log(b1)

    def _learn(self, x: np.ndarray, r: np.ndarray, arm: np.ndarray | None) -> None:
        R, d, models = len(r), self._array.shape[-1], self.arms or 1
        compiled.learn(
            x,
            r,
            np.zeros(R, dtype=np.int64) if arm is None else arm,
            self._theta.reshape(R, models, d),
            self._array.reshape(R, models, d, d),
            self._log_det.numpy().reshape(R, models),
        )

    def _step(self, matrix: Tensor, M: Any, theta: Any, x: Any, r: Any) -> tuple[Any, Any]:
        """Updates `matrix` (R, d, d), of which M is the array, in place; the new theta, and 1 + ||x||^2_inverse, by
        which det V grows."""
        xp = self._xp
        if self.has_root:
            f = xp.matmul(M.swapaxes(1, 2), x[:, :, None])[:, :, 0]
            v = xp.matmul(M, f[:, :, None])[:, :, 0]
            b = 1 + xp.einsum("rd,rd->r", f, f)
            left, right = tensor(v / (b + xp.sqrt(b))[:, None]), tensor(f)
        else:
            v = xp.matmul(M, x[:, :, None])[:, :, 0]
            b = 1 + xp.einsum("rd,rd->r", x, v)
            left = right = tensor(v / xp.sqrt(b)[:, None])
        matrix.addcmul_(left[:, :, None], right[:, None, :], value=-1.0)
        error = (r - xp.einsum("rd,rd->r", x, theta)) / b
        return theta + v * error[:, None], b


class Ahead:
    """B rounds of one context each with a model per arm, played before its matrices see any of them.

    Means, squared widths and V^-1 phi of all contexts and arms are products of whole matrices, which are read once.
    What is observed on the way is kept as v = V^-1 phi / sqrt(1 + ||phi||^2_inverse), which corrects what follows by
    inner products alone, and `close` writes all rank-one updates in one product: delayed updates, as in blocked
    factorisations. The same numbers as round by round, to rounding.
    """

    def __init__(self, model: LeastSquares, phi: Tensor):
        R, B, A, d = phi.shape
        self._model, common = model, phi.stride(2) == 0
        if common:  # all arms see one vector
            phi = phi[:, :, :1]
            half = torch.bmm(phi[:, :, 0], model.inverse.view(R, A * d, d).mT).view(R, B, A, d)
        else:
            half = (phi.transpose(1, 2) @ model.inverse).transpose(1, 2)
        xp, self._phi, self._half, self._means = native(phi, half, linear(phi, tensor(model._theta)).contiguous())
        self._squares = xp.einsum("rbad,rbcd->rba" if common else "rbad,rbad->rba", self._half, self._phi)
        observed = (phi.new_empty(R, B, d), phi.new_empty(R, B), phi.new_empty(R, B), phi.new_zeros(R, B, A))
        self._v, self._error, self._growth, self._played = native(*observed)[1:]  # played: one-hot
        self._xp, self._each = native(torch.arange(R, device=phi.device))

    def scores(self, b: int, radius: float) -> Any:
        """mean + radius * width of round b, (R, A), after the rounds before it."""
        xp, means, squares = self._xp, self._means[:, b], self._squares[:, b]
        if b:
            v, played, x = self._v[:, :b], self._played[:, :b], self._phi[:, b]
            if x.shape[1] > 1:
                x = x[self._each[:, None], xp.argmax(played, -1)]  # as each v's arm sees it
                self._inner = xp.einsum("rbd,rbd->rb", v, x)[:, None]
            else:
                self._inner = xp.matmul(x, v.swapaxes(1, 2))
            squares -= xp.matmul(self._inner * self._inner, played)[:, 0]
            means += xp.matmul(self._inner * self._error[:, None, :b], played)[:, 0]
        return means + radius * xp.sqrt(abs(squares))  # negative by rounding only

    def observe(self, b: int, arm: Any, reward: Any) -> None:
        """The reward (R,) of round b's action, (R,)."""
        at = (self._each, b, arm)
        v, growth = self._half[at], 1 + self._squares[at]
        if b:
            same = self._played[self._each, :b, arm][:, None]
            v = v - self._xp.matmul(self._inner * same, self._v[:, :b])[:, 0]
        root = self._xp.sqrt(growth)
        self._v[:, b], self._growth[:, b] = v / root[:, None], growth
        self._error[:, b] = (reward - self._means[at]) / root
        self._played[at] = 1.0

    def close(self) -> None:
        """Tells the model."""
        model, (R, B, d) = self._model, self._v.shape
        v, played, error, growth = map(tensor, (self._v, self._played, self._error, self._growth))
        updates = (played[..., None] * v[:, :, None]).view(R, B, -1)
        model.inverse.view(R, -1, d).baddbmm_(updates.mT, v, alpha=-1)
        tensor(model._theta).add_(played.mT @ (error[..., None] * v))
        model._log_det.add_((played.mT @ growth.log()[..., None])[..., 0])
        model.n += B


def linear(phi: Tensor, theta: Tensor) -> Tensor:
    """<theta, phi> of features (R, B, A, d), theta (R, d) or, with a model per arm, (R, A, d): (R, B, A)."""
    xp, f, t = native(phi, theta)
    if theta.ndim == 3 and (phi.stride(2) == 0 or f.shape[2] == 1):
        return tensor(xp.matmul(t, f[:, :, 0].swapaxes(1, 2)).swapaxes(1, 2))
    if theta.ndim == 3:
        return tensor(xp.einsum("rbad,rad->rba", f, t))
    R, B, A, d = f.shape
    return tensor(xp.matmul(f.reshape(R, B * A, d), t[:, :, None]).reshape(R, B, A))
