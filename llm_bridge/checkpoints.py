"""Weights after every fit of a run, in a folder: safetensors that know which fit they belong to."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def read(folder: Path, fit: int, digest: str, like: list[Tensor]) -> tuple[list[Tensor], float] | None:
    """The weights and the residual of a fit that was made before, or None.

    Raises ValueError where the folder holds that fit of another run.
    """
    file = folder / f"fit-{fit:06d}.safetensors"
    if not file.exists():
        return None
    with safe_open(str(file), framework="pt") as held:
        told = held.metadata()
        if told["digest"] != digest:
            raise ValueError(
                f"checkpoints: {file} is of another run (other weights, data or settings); use a new folder"
            )
        return [held.get_tensor(str(i)).to(w.device) for i, w in enumerate(like)], float(told["residual"])


def write(folder: Path, fit: int, digest: str, weights: list[Tensor], residual: float) -> None:
    """Whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    draft, file = folder / f".fit-{fit:06d}.tmp", folder / f"fit-{fit:06d}.safetensors"
    tensors = {str(i): w.contiguous() for i, w in enumerate(weights)}
    save_file(tensors, str(draft), metadata={"digest": digest, "residual": repr(residual)})
    os.replace(draft, file)
