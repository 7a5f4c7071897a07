"""Compiled kernels of the hot path: blocks of random numbers, unit vectors, LinUCB's scores, choice and update.

They need the extra `compiled` (numba) and are used wherever it is installed, on the CPU, unless the environment sets
SIMBANDIT_COMPILED=0. Drawn numbers are those of NumPy's SFC64 to the last bit; scores and updates differ from the plain
lines (`draws`, `least_squares`, `choosing`) by rounding. The tests hold each kernel against its plain version.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

AVAILABLE = importlib.util.find_spec("numba") is not None and os.environ.get("SIMBANDIT_COMPILED", "1") != "0"

if AVAILABLE:
    from numba import njit
    from numba.np.random import _constants as ziggurat

    KI, WI, FI = ziggurat.ki_double, ziggurat.wi_double, ziggurat.fi_double
    TAIL, INVERSE_TAIL = ziggurat.ziggurat_nor_r, ziggurat.ziggurat_nor_inv_r
else:  # the functions below then stay plain Python, which nobody calls

    def njit(**options: Any) -> Callable[[Any], Any]:
        del options
        return lambda function: function

    KI = WI = FI = np.empty(0)
    TAIL = INVERSE_TAIL = 0.0

exact = njit(cache=True, nogil=True)
fast = njit(cache=True, nogil=True, fastmath=True)

U32, U64 = np.uint32, np.uint64
TO_DOUBLE = 1.0 / 9007199254740992.0
BLOCK = 16  # rounds


# ----------------------------------------------------------------------------------------------------- random streams


@exact
def _hashmix(value: Any, constant: Any, multiplier: Any) -> Any:
    value = U32(value ^ constant)
    constant = U32(constant * multiplier)
    value = U32(value * constant)
    return U32(value ^ (value >> U32(16))), constant


@exact
def _seeded(entropy: Any) -> Any:
    """State of SFC64(SeedSequence(entropy)), entropy at most four 32-bit words: NumPy's hash, then 12 steps."""
    pool = np.zeros(4, dtype=U32)
    constant = U32(0x43B0D7E5)
    for i in range(4):
        word = entropy[i] if i < len(entropy) else U32(0)
        pool[i], constant = _hashmix(word, constant, U32(0x931E8875))
    for source in range(4):
        for target in range(4):
            if source != target:
                value, constant = _hashmix(pool[source], constant, U32(0x931E8875))
                mixed = U32(U32(0xCA01F9DD) * pool[target] - U32(0x4973F715) * value)
                pool[target] = U32(mixed ^ (mixed >> U32(16)))
    words = np.empty(3, dtype=U64)
    constant = U32(0x8B51F9DD)
    for i in range(3):
        low, constant = _hashmix(pool[(2 * i) % 4], constant, U32(0x58F38DED))
        high, constant = _hashmix(pool[(2 * i + 1) % 4], constant, U32(0x58F38DED))
        words[i] = U64(low) | (U64(high) << U64(32))
    state = (words[0], words[1], words[2], U64(1))
    for _ in range(12):
        _, state = _next(state)
    return state


@exact
def _next(state: Any) -> Any:
    a, b, c, count = state
    answer = a + b + count
    return answer, (b ^ (b >> U64(11)), c + (c << U64(3)), ((c << U64(24)) | (c >> U64(40))) + answer, count + U64(1))


@exact
def _uniform(state: Any) -> Any:
    word, state = _next(state)
    return (word >> U64(11)) * TO_DOUBLE, state


@exact
def _beside(state: Any, layer: Any, magnitude: Any, x: Any) -> Any:
    """What follows where the ziggurat's first test fails, once in 80 numbers: the number, or NaN to try again."""
    if layer > 0:
        u, state = _uniform(state)
        accepted = (FI[layer - 1] - FI[layer]) * u + FI[layer] < np.exp(-0.5 * x * x)
        return (x if accepted else np.nan), state
    while True:
        u, state = _uniform(state)
        v, state = _uniform(state)
        xx, yy = -INVERSE_TAIL * np.log1p(-u), -np.log1p(-v)
        if yy + yy > xx * xx:
            return (-(TAIL + xx) if (magnitude >> U64(8)) & U64(1) else TAIL + xx), state


@exact
def seed(entropy: Any, replicates: Any, states: Any) -> None:
    """states[r] (R, 4): the start of the stream keyed by `entropy`, whose second word becomes replicates[r]."""
    for r in range(len(replicates)):
        entropy[1] = replicates[r]
        states[r, 0], states[r, 1], states[r, 2], states[r, 3] = _seeded(entropy)


@exact
def fill(states: Any, normal: bool, out: Any) -> None:
    """Fills out[:, r] of (L, R, n) from states[r], which moves on: uniforms on [0, 1), or standard normals by Marsaglia
    and Tsang's ziggurat in NumPy's form."""
    L, R, n = out.shape
    for r in range(R):
        state = (states[r, 0], states[r, 1], states[r, 2], states[r, 3])
        for t in range(L):
            row, i = out[t, r], 0
            if not normal:
                for i in range(n):
                    row[i], state = _uniform(state)
                continue
            while i < n:
                word, state = _next(state)
                layer = word & U64(0xFF)
                magnitude = (word >> U64(9)) & U64(0x000FFFFFFFFFFFFF)
                x = magnitude * WI[layer]
                if (word >> U64(8)) & U64(1):
                    x = -x
                if magnitude >= KI[layer]:
                    x, state = _beside(state, layer, magnitude, x)
                row[i] = x
                i += not np.isnan(x)
        states[r, 0], states[r, 1], states[r, 2], states[r, 3] = state


# ------------------------------------------------------------------------------------------------------ linear bandits


@fast
def unit(x: Any) -> None:
    """Divides the rows of x (n, d) by their norms, in place."""
    n, d = x.shape
    for i in range(n):
        square = 0.0
        for j in range(d):
            square += x[i, j] * x[i, j]
        scale = 1.0 / np.sqrt(square)
        for j in range(d):
            x[i, j] *= scale


@fast
def scores(phi: Any, theta: Any, inverse: Any, radius: Any, out: Any) -> None:
    """out = <theta, phi> + radius ||phi||_inverse: phi (R, n, d), theta (R, d), inverse (R, d, d), radius (R,)."""
    R, n, d = phi.shape
    half = np.empty((n, d))
    for r in range(R):
        np.dot(phi[r], inverse[r], half)
        for a in range(n):
            square = mean = 0.0
            for j in range(d):
                square += half[a, j] * phi[r, a, j]
                mean += theta[r, j] * phi[r, a, j]
            out[r, a] = mean + radius[r] * np.sqrt(abs(square))


@fast
def own_scores(phi: Any, theta: Any, inverse: Any, radius: Any, out: Any) -> None:
    """The same with a model per arm: phi (R, B, A, d), or (R, B, 1, d) where all arms see one vector, theta (R, A, d),
    inverse (R, A, d, d), radius (R, A), out (R, B, A). A width is one long product of the matrix with x x'."""
    R, B, A = out.shape
    d, common = theta.shape[2], phi.shape[2] == 1
    outer, squares = np.empty(d * d), np.empty(A)
    for r in range(R):
        matrices = inverse[r].reshape(A, d * d)
        for b in range(B):
            for a in range(A):
                x = phi[r, b, 0 if common else a]
                if a == 0 or not common:
                    for i in range(d):
                        for j in range(d):
                            outer[i * d + j] = x[i] * x[j]
                if not common:
                    square = 0.0
                    for i in range(d * d):
                        square += outer[i] * matrices[a, i]
                    squares[a] = square
                elif a == 0:
                    np.dot(matrices, outer, squares)
                mean = 0.0
                for i in range(d):
                    mean += theta[r, a, i] * x[i]
                out[r, b, a] = mean + radius[r, a] * np.sqrt(abs(squares[a]))


@fast
def _learn(x: Any, reward: Any, r: Any, m: Any, theta: Any, inverse: Any, log_det: Any, v: Any) -> None:
    d, b, error = len(x), 1.0, reward
    for i in range(d):
        total = 0.0
        for j in range(d):
            total += inverse[r, m, i, j] * x[j]
        v[i] = total
        b += total * x[i]
        error -= theta[r, m, i] * x[i]
    for i in range(d):
        theta[r, m, i] += v[i] * (error / b)
        for j in range(d):
            inverse[r, m, i, j] -= v[i] * v[j] / b
    log_det[r, m] += np.log(b)


@fast
def learn(phi: Any, reward: Any, arm: Any, theta: Any, inverse: Any, log_det: Any) -> None:
    """One observation phi (R, d), reward (R,) of model arm[r] in theta (R, M, d), inverse (R, M, d, d), log_det (R, M),
    in place: Sherman and Morrison."""
    v = np.empty(phi.shape[1])
    for r in range(len(phi)):
        _learn(phi[r], reward[r], r, arm[r], theta, inverse, log_det, v)


@exact
def _picked(scores: Any, uniform: Any, tolerance: Any) -> Any:
    best = scores.max()
    low, ties = best - tolerance * (1.0 + abs(best)), 0
    for score in scores:
        ties += score >= low
    wanted = int(uniform * ties)
    for i in range(len(scores)):
        if scores[i] >= low:
            if wanted == 0:
                return i
            wanted -= 1
    return 0  # NaN


@fast
def play(
    phi: Any,
    outcomes: Any,
    uniforms: Any,
    radius: Any,
    tolerance: Any,
    theta: Any,
    inverse: Any,
    log_det: Any,
    out: Any,
) -> None:
    """L rounds of one context: scores, choice and update, replicate by replicate, whose matrix stays in the cache.

    phi (L, R, A, d); outcomes (R, L, A); uniforms (L, R); radius a number; theta (R, 1, d), inverse (R, 1, d, d) and
    log_det (R, 1) in place; out (R, L).
    """
    L, R, A, d = phi.shape
    table, half, v = np.empty(A), np.empty((A, d)), np.empty(d)
    for r in range(R):
        for t in range(L):
            x = phi[t, r]
            np.dot(x, inverse[r, 0], half)
            for a in range(A):
                square = mean = 0.0
                for i in range(d):
                    square += half[a, i] * x[a, i]
                    mean += theta[r, 0, i] * x[a, i]
                table[a] = mean + radius * np.sqrt(abs(square))
            out[r, t] = chosen = _picked(table, uniforms[t, r], tolerance)
            _learn(x[chosen], outcomes[r, t, chosen], r, 0, theta, inverse, log_det, v)


@fast
def play_own(
    phi: Any,
    outcomes: Any,
    uniforms: Any,
    radius: Any,
    tolerance: Any,
    theta: Any,
    inverse: Any,
    log_det: Any,
    out: Any,
) -> None:
    """The same with a model per arm: phi (L, R, A, d), or (L, R, 1, d) where all arms see one vector, theta (R, A, d),
    inverse (R, A, d, d), log_det (R, A). As `least_squares.Ahead` does, block by block: products of the contexts with
    the matrices first, then inner products with what is observed on the way. Time is the last axis, along which loops
    are long."""
    (L, R, n, d), A = phi.shape, theta.shape[1]
    xs, halves, v = np.empty(n * d * BLOCK), np.empty(A * d * BLOCK), np.empty(d)
    squares, means, inner, table = np.empty((A, BLOCK)), np.empty((A, BLOCK)), np.empty(BLOCK), np.empty(A)
    for r in range(R):
        for start in range(0, L, BLOCK):
            T = min(BLOCK, L - start)
            x, half = xs[: n * d * T].reshape(n, d, T), halves[: A * d * T].reshape(A, d, T)
            for t in range(T):
                for k in range(n):
                    for i in range(d):
                        x[k, i, t] = phi[start + t, r, k, i]
            if n == 1:
                np.dot(inverse[r].reshape(A * d, d), x[0], half.reshape(A * d, T))
            for a in range(A):
                k = a if n > 1 else 0
                if n > 1:
                    np.dot(inverse[r, a], x[k], half[a])
                squares[a], means[a] = 0.0, 0.0
                for i in range(d):
                    for t in range(T):
                        squares[a, t] += half[a, i, t] * x[k, i, t]
                        means[a, t] += theta[r, a, i] * x[k, i, t]
            for t in range(T):
                for a in range(A):
                    table[a] = means[a, t] + radius * np.sqrt(abs(squares[a, t]))
                out[r, start + t] = a = _picked(table, uniforms[start + t, r], tolerance)
                k, growth = a if n > 1 else 0, 1.0 + squares[a, t]
                scale = 1.0 / np.sqrt(growth)
                error = (outcomes[r, start + t, a] - means[a, t]) * scale
                log_det[r, a] += np.log(growth)
                inner[:] = 0.0
                for i in range(d):
                    v[i] = half[a, i, t] * scale
                    theta[r, a, i] += v[i] * error
                    for s in range(T):
                        inner[s] += v[i] * x[k, i, s]
                for s in range(T):  # the past too, which is not read again: loops of one length are twice as fast
                    squares[a, s] -= inner[s] * inner[s]
                    means[a, s] += inner[s] * error
                for i in range(d):
                    for j in range(d):
                        inverse[r, a, i, j] -= v[i] * v[j]
                    for s in range(T):
                        half[a, i, s] -= v[i] * inner[s]


@exact
def pick(table: Any, uniforms: Any, tolerance: float, out: Any) -> None:
    """out[r]: the index of the largest of table[r] (n,), among ties (within the tolerance, relative to 1 + |largest|)
    the floor(uniform * ties)-th."""
    for r in range(len(table)):
        out[r] = _picked(table[r], uniforms[r], tolerance)
