"""Hyper-parameters are checked when an algorithm is made: a misspelt choice must not run as another algorithm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import numpy as np

from simbandit.types import Contexts


def check(algorithm: Any, *, positive: Collection[str] = (), signed: Collection[str] = ()) -> None:
    """Checks every field of an algorithm against its annotation: a Literal's choices, counts that are at least 1, and
    numbers that are finite and >= 0 (> 0 for fields named `positive`, any for `signed`). Raises ValueError naming the
    field."""
    hints = get_type_hints(type(algorithm))
    for f in fields(algorithm):
        low = -math.inf if f.name in signed else math.ulp(0.0) if f.name in positive else 0.0
        _check(f.name, getattr(algorithm, f.name), hints[f.name], low)


def _check(name: str, value: Any, hint: Any, low: float) -> None:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    pairs = [p for p in parts if get_origin(p) is tuple]
    if pairs and isinstance(value, tuple):
        inner = get_args(pairs[0])
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise ValueError(f"{name}: must hold {len(kinds)} values, got {value!r}")
        for one, kind in zip(value, kinds, strict=True):
            named = isinstance(one, tuple) and one and isinstance(one[0], str)  # a loss's own parameter
            _check(one[0] if named else name, one, kind, low)
        return
    choices = [choice for p in parts if get_origin(p) is Literal for choice in get_args(p)]
    kinds = [p for p in parts if isinstance(p, type) and (is_dataclass(p) or Protocol in p.__bases__)]
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    number = float(value) if integer or isinstance(value, float) else math.nan
    fine = (
        Any in parts  # the algorithm checks it itself
        or (isinstance(value, str) and (value in choices or str in parts))
        or (value is None and NoneType in parts)
        or (isinstance(value, bool) and bool in parts)
        or (float in parts and low <= number < math.inf)
        or (int in parts and integer and number >= 1)
        or isinstance(value, tuple(kinds))
    )
    if not fine:
        allowed = [repr(choice) for choice in choices]
        words = {float: "a number > 0" if low > 0 else "a number >= 0" if low == 0 else "a finite number"}
        words |= {int: "an integer >= 1"}
        words |= {NoneType: "None", str: "a name", bool: "True or False"}
        allowed += [f"a {kind.__name__}" for kind in kinds]
        allowed += ["several numbers"] * bool(pairs) + [word for kind, word in words.items() if kind in parts]
        raise ValueError(f"{name}: must be {' or '.join(allowed)}, got {value!r}")


def warn_of_norms(contexts: Contexts, bound: float, argument: str) -> bool:
    """Whether features are longer than a theory assumes; warns with the measured norm, naming the argument."""
    norm = float(contexts.features.norm(dim=-1).max())
    if norm <= bound * (1 + 1e-9):
        return False
    warnings.warn(f"{argument}: the theory assumes ||phi|| <= {bound:g}, and features reach {norm:.4g}", stacklevel=3)
    return True
