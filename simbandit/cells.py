"""The cells of a study's grid, and the description by which a stored result is known.

A cell is a `Simulation` (one call of `simulate`) or a `Task` (any module-level function). Its key is the hash
of its configuration: what is stored under that key is never computed again, and whatever changes a number
changes the key.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from simbandit.simulate import Problem, simulate
from simbandit.store import RESERVED, plain
from simbandit.types import Algorithm


@dataclass(frozen=True)
class Simulation:
    """A cell that is one call of `simulate`; the fields after `labels` are its arguments."""

    labels: Mapping[str, Any]
    problem: Problem
    algorithm: Algorithm
    rounds: int
    replicates: int
    batch_size: int = 1
    seed: int = 0
    offline: Any = None
    policy: Any = None
    metrics: Sequence[Any] | None = None
    record: Any = "log"
    output: Any = "last"

    def __post_init__(self) -> None:
        _check_labels(self.labels)

    def configuration(self) -> dict[str, Any]:
        return describe(self)

    @cached_property
    def key(self) -> str:
        return _key(self.configuration())

    def run(self, device: str) -> pd.DataFrame:
        arguments = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "labels"}
        return simulate(device=device, **arguments).frame()


@dataclass(frozen=True)
class Task:
    """Any other cell: a module-level `function(replicates=, seed=, device=, **arguments)`.

    It returns a frame with the columns replicate, round, queries, metric, value. Editing the function's
    source changes the configuration, so the cell is computed again; functions that it calls are not looked
    at.
    """

    labels: Mapping[str, Any]
    function: Callable[..., pd.DataFrame]
    arguments: Mapping[str, Any]
    replicates: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_labels(self.labels)

    @property
    def algorithm(self) -> Any:
        """What a tuning phase tunes: the argument of this name."""
        if "algorithm" not in self.arguments:
            raise ValueError("tuning: a Task can be a candidate only if its arguments hold an `algorithm`")
        return self.arguments["algorithm"]

    def configuration(self) -> dict[str, Any]:
        text = inspect.getsource(self.function)
        return {**describe(self), "source": hashlib.sha256(text.encode()).hexdigest()[:16]}

    @cached_property
    def key(self) -> str:
        return _key(self.configuration())

    def run(self, device: str) -> pd.DataFrame:
        return self.function(replicates=self.replicates, seed=self.seed, device=device, **self.arguments)


def _check_labels(labels: Mapping[str, Any]) -> None:
    for name, value in labels.items():
        if name in RESERVED:
            raise ValueError(f"labels: {name!r} is a column of the results; rename the label")
        if not isinstance(plain(value), str | int | float | bool | None):
            raise ValueError(f"labels: {name} must be a string, number, bool or None, got {value!r}")


def _key(configuration: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


def describe(value: Any, where: str = "") -> Any:
    """A JSON-able description that differs whenever the content does.

    Dataclasses by class and fields, arrays, tensors and frames by a hash of their bytes, files by a hash of
    their content, functions by module and name. Raises ValueError, naming the place, for what has no stable
    description.
    """
    value = plain(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return {
            "tensor": _digest(value.detach().cpu().numpy()),
            "dtype": str(value.dtype),
            "shape": list(value.shape),
        }
    if isinstance(value, np.ndarray):
        return {"array": _digest(value), "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, pd.DataFrame):
        text = value.to_csv()  # floats in the shortest form that gives them back
        columns = {str(name): str(kind) for name, kind in value.dtypes.items()}
        return {"frame": hashlib.sha256(text.encode()).hexdigest()[:32], "columns": columns}
    if isinstance(value, Path):
        return {"file": hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else str(value)}
    if isinstance(value, Mapping):
        return {str(name): describe(item, f"{where}[{name!r}]") for name, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [describe(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        content = {f.name: describe(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value) if f.init}
        return {"class": _name(type(value), where), **content}
    if isinstance(value, partial):
        return {
            "function": describe(value.func, where),
            "args": describe(value.args),
            "keywords": describe(value.keywords),
        }
    if isinstance(value, torch.device | torch.dtype):
        return str(value)
    if inspect.isroutine(value) or isinstance(value, type):
        return _name(value, where)
    raise ValueError(f"configuration{where}: cannot describe a {type(value).__name__}; use plain data or dataclasses")


def _digest(array: np.ndarray) -> str:
    if array.dtype.hasobject:
        raise ValueError("configuration: an array of objects has no stable hash; use numbers or strings")
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:32]


def _name(item: Any, where: str) -> str:
    name = f"{item.__module__}:{item.__qualname__}"
    if "<" in name:
        raise ValueError(f"configuration{where}: {name} is local; use a function or class at the level of a module")
    return name
