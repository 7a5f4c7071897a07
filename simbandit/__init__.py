"""Simulate and verify sample-efficient RLHF algorithms in worlds whose optimum and regret are known exactly.

Everything below is imported on first use: `import simbandit` alone does not import torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from simbandit import algorithms as algorithms
    from simbandit import data as data
    from simbandit import equilibrium as equilibrium
    from simbandit import estimators as estimators
    from simbandit import guarantees as guarantees
    from simbandit import hypotheses as hypotheses
    from simbandit import losses as losses
    from simbandit import metrics as metrics
    from simbandit import oracles as oracles
    from simbandit import plotting as plotting
    from simbandit import policies as policies
    from simbandit import preferences as preferences
    from simbandit import study as study
    from simbandit import worlds as worlds
    from simbandit.results import Results as Results
    from simbandit.results import load as load
    from simbandit.simulate import Problem as Problem
    from simbandit.simulate import simulate as simulate

_NAMES = {
    "Problem": "simbandit.simulate",
    "simulate": "simbandit.simulate",
    "Results": "simbandit.results",
    "load": "simbandit.results",
}
_MODULES = (
    "algorithms",
    "data",
    "equilibrium",
    "estimators",
    "guarantees",
    "hypotheses",
    "losses",
    "metrics",
    "oracles",
    "plotting",
    "policies",
    "preferences",
    "study",
    "worlds",
)

__all__ = [
    "Problem",
    "Results",
    "algorithms",
    "data",
    "equilibrium",
    "estimators",
    "guarantees",
    "hypotheses",
    "load",
    "losses",
    "metrics",
    "oracles",
    "plotting",
    "policies",
    "preferences",
    "simulate",
    "study",
    "worlds",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"simbandit.{name}")
    raise AttributeError(f"module 'simbandit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing a submodule binds it to its name in the package; `simbandit.simulate` shall stay the
    function."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "simulate" and isinstance(value, ModuleType):
            value = value.simulate
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
