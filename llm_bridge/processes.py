"""Several processes, one run: `accelerate launch --num_processes N ...`, one process a device.

Every process runs the same program with the same keyed draws, so all of them make the same calls in the same order;
model work (scores, draws, gradients) is dealt among them and its results shared, and files are the first one's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as group
from torch import Tensor


def number() -> int:
    """How many processes accelerate (or torchrun) has started and joined; 1 without."""
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def rank() -> int:
    return group.get_rank() if number() > 1 else 0


def share(things: list[Any]) -> list[Any]:
    """This process's part of a list, dealt in turn."""
    return things[rank() :: number()]


def summed(tensor: Tensor) -> Tensor:
    """The sum over processes, in place and the same on all of them."""
    if number() > 1:
        group.all_reduce(tensor)
    return tensor


def dealt(results: list[Any]) -> list[Any]:
    """What all processes made of their shares, in the list's own order again."""
    if number() == 1:
        return results
    parts: list[Any] = [None] * number()
    group.all_gather_object(parts, results)
    whole: list[Any] = [None] * sum(map(len, parts))
    for i, part in enumerate(parts):
        whole[i :: len(parts)] = part
    return whole


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, on all of them; an error there is an error on all."""
    if number() == 1:
        return make()
    held: list[Any] = [None, None]
    if rank() == 0:
        try:
            held[0] = make()
        except (ValueError, OSError, LookupError, RuntimeError) as error:
            held[1] = error
    group.broadcast_object_list(held)
    if held[1] is not None:
        raise held[1]
    return held[0]


def check_alike(what: str, content: Any) -> None:
    """Raises ValueError where processes differ in what they must have in common."""
    if number() == 1:
        return
    digests: list[Any] = [None] * number()
    group.all_gather_object(digests, hashlib.sha256(repr(content).encode()).hexdigest())
    if len(set(digests)) > 1:
        raise ValueError(
            f"{what}: must be the same on all {number()} processes, which share the work; use distributed=False where "
            "each has its own"
        )


def sum_gradients(weights: list[Tensor]) -> None:
    """Of all processes' shares, into every process's `grad`."""
    if number() == 1:
        return
    for p in weights:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        group.all_reduce(p.grad)
