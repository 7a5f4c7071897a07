"""Random streams keyed by (seed, replicate, purpose, block of rounds), never by algorithm, chunk or position.

Replicate 7 therefore sees the same numbers alone or among a thousand, on one worker or twenty, before or after a
resume, and two algorithms on one replicate meet the same world, contexts and annotator. A generator costs about 10
microseconds to build, so every (replicate, purpose) has one for a block of rounds; the block's length depends on the
shape alone. Within a block numbers are drawn in pieces that fit the cache. They are those of NumPy's SFC64, drawn on
the CPU (four times as fast where `compiled` is available, the same bits) and moved to the device.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simbandit import compiled

Law = Literal["uniform", "normal", "direction"]
BLOCK_NUMBERS = 2**14
LONGEST_BLOCK = 256
PIECE_NUMBERS = 2**18  # drawn at once for all replicates: 2 MB
LOGGED = "offline/"  # the stream of logged data
EVERY_REPLICATE = 2**32 - 1  # the key of objects that all replicates share


@cache
def block_length(numbers_per_round: int) -> int:
    """Rounds drawn at once: a power of two, at most 256, about 2^14 numbers a block."""
    return max(1, min(LONGEST_BLOCK, 2 ** ((BLOCK_NUMBERS // max(1, numbers_per_round)).bit_length() - 1)))


def generator(seed: int, replicate: int, purpose: str, *block: int) -> np.random.Generator:
    key: list[int] | np.ndarray = [seed, replicate, zlib.crc32(purpose.encode()), *block]
    if max(key) < 2**32:
        key = np.array(key, dtype=np.uint32)  # the same stream as from the list, at half the time
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


class _Streams:
    """The streams of some replicates for one purpose and block, read from the start on."""

    def __init__(self, law: Law, seed: int, replicates: Sequence[int], key: str, *block: int):
        self.law = law
        purpose = f"{'normal' if law == 'direction' else law}/{key}"
        self._states = self._sources = None
        if compiled.AVAILABLE and max(seed, *replicates, *block, 0) < 2**32:
            entropy = np.array([seed, 0, zlib.crc32(purpose.encode()), *block], dtype=np.uint32)
            self._states = np.empty((len(replicates), 4), dtype=np.uint64)
            compiled.seed(entropy, np.asarray(replicates, dtype=np.uint32), self._states)
        else:
            self._sources = [generator(seed, r, purpose, *block) for r in replicates]

    def next(self, rounds: int, *shape: int) -> Tensor:
        """(rounds, R, *shape)"""
        if self._states is not None:
            out = np.empty((rounds, len(self._states), *shape))
            compiled.fill(self._states, self.law != "uniform", out.reshape(*out.shape[:2], -1))
            if self.law == "direction":
                compiled.unit(out.reshape(-1, shape[-1]))
            return torch.from_numpy(out)
        assert self._sources is not None
        out = np.empty((rounds, len(self._sources), *shape))
        for i, source in enumerate(self._sources):
            out[:, i] = (source.random if self.law == "uniform" else source.standard_normal)((rounds, *shape))
        if self.law == "direction":
            out /= np.sqrt(np.einsum("...d,...d->...", out, out))[..., None]
        return torch.from_numpy(out)


class _Piece(NamedTuple):
    """Some rounds of block `number`, from `start` on, and the streams that stand behind them."""

    streams: _Streams
    number: int
    start: int
    rounds: Tensor  # (rounds, R, *shape)


class Draws:
    """The streams of some replicates: `once` for a world's own objects, `at(t)` for round t.

    `replicates` is a count (0, 1, ..., count - 1) or the replicates' own numbers. `stream` separates the numbers of
    logged and validation data from those of the online rounds.
    """

    def __init__(
        self, seed: int, replicates: int | Sequence[int], device: torch.device | str = "cpu", stream: str = ""
    ):
        if seed < 0:
            raise ValueError(f"seed: must be a non-negative integer, got {seed}")
        self.seed = seed
        self.replicates = range(replicates) if isinstance(replicates, int) else replicates
        self.device, self.stream = torch.device(device), stream
        self._pieces: dict[tuple[Law, str, tuple[int, ...]], _Piece] = {}

    def once(self, purpose: str, *shape: int, law: Law = "normal") -> Tensor:
        """(R, *shape), another draw for every replicate."""
        return _Streams(law, self.seed, self.replicates, f"once/{purpose}").next(1, *shape)[0].to(self.device)

    def shared(self, purpose: str, *shape: int, law: Law = "normal") -> Tensor:
        """(1, *shape), one draw that all replicates of this seed share."""
        return _Streams(law, self.seed, [EVERY_REPLICATE], f"once/{purpose}").next(1, *shape)[0].to(self.device)

    def at(self, t: int, rounds: int = 1) -> Round:
        """Round t, or `rounds` of them from t on as one, a context each."""
        return Round(self, t, rounds)

    def _stretch(self, law: Law, purpose: str, shape: tuple[int, ...], t: int, rounds: int) -> Tensor:
        """(R, *shape): of one round, or of several, shape (rounds, ...), in the numbers that each has by itself."""
        if rounds == 1:
            return self._slice(law, purpose, shape, t, 1)[0]
        if shape[0] != rounds:
            raise ValueError(f"shape: {rounds} rounds as one have a context each, got {shape}")
        parts, end = [], t + rounds
        while t < end:
            parts.append(self._slice(law, purpose, (1, *shape[1:]), t, end - t))
            t += len(parts[-1])
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[:, :, 0].movedim(0, 1)

    def _slice(self, law: Law, purpose: str, shape: tuple[int, ...], t: int, rounds: int) -> Tensor:
        """The numbers (n, R, *shape) of n <= rounds rounds from t on."""
        numbers = math.prod(shape)
        length = block_length(numbers)
        number, offset = divmod(t, length)
        key = (law, purpose, shape)
        held = self._pieces.get(key)
        if held is None or held.number != number or offset < held.start:
            streams = _Streams(law, self.seed, self.replicates, self.stream + purpose, number)
            held = _Piece(streams, number, 0, torch.empty(0))
        while offset >= held.start + len(held.rounds):
            start = held.start + len(held.rounds)
            size = min(length - start, max(rounds, PIECE_NUMBERS // max(1, numbers * len(self.replicates))))
            self._pieces[key] = held = held._replace(
                start=start, rounds=held.streams.next(size, *shape).to(self.device)
            )
        return held.rounds[offset - held.start :][:rounds]


class Round:
    """The numbers of one round, or of several. Asking twice for one purpose and shape returns the same numbers."""

    def __init__(self, draws: Draws, t: int, rounds: int = 1):
        self._draws, self.t, self._rounds = draws, t, rounds

    @property
    def logged(self) -> bool:
        """Whether this is not a round but the logged data before the first."""
        return self._draws.stream == LOGGED

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(R, *shape) on [0, 1)"""
        return self._draws._stretch("uniform", purpose, shape, self.t, self._rounds)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """(R, *shape)"""
        return self._draws._stretch("normal", purpose, shape, self.t, self._rounds)

    def direction(self, purpose: str, *shape: int) -> Tensor:
        """(R, *shape), uniform on the unit sphere of the last axis: the normals of the same purpose, normalised."""
        return self._draws._stretch("direction", purpose, shape, self.t, self._rounds)
