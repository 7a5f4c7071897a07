"""Direct rows of the registry as a language model can run them: it draws responses and cannot list them."""

from __future__ import annotations

from typing import Any

from llm_bridge.enhancers import GSHF_DPO, sampled
from simbandit import algorithms
from simbandit.algorithms.direct import Direct, Expected

NEED_A_LIST = {
    "copo": "counts every response of a finite world",
    "ipo_md": "draws from a geometric mixture of whole responses",
    "selm": "takes the likeliest of all responses",
}
"""Rows that a sampled LM cannot run, and why; an `EnumerableLM` runs them."""


def direct_row(name: str, **hyperparameters: Any) -> Direct:
    """`simbandit.algorithms.create` with proximal=0, and bonuses that are expectations over all responses estimated by
    one draw a duel (`calibration`), which is what is done with language models; players that are computed from a list
    of all responses are drawn instead. The names of `enhancers.GSHF_DPO` are rows here too.

    Raises ValueError for rows that are not direct, or need a list of all responses.
    """
    if name in NEED_A_LIST:
        raise ValueError(f"name: {name} {NEED_A_LIST[name]}; run it on an EnumerableLM or on a candidate pool")
    if name in GSHF_DPO:
        return direct_row("online_dpo", **({"players": GSHF_DPO[name]} | hyperparameters))
    registered = algorithms.create(name)
    if not isinstance(registered, Direct):
        raise ValueError(f"name: {name} is model-based, it needs features and candidates: run it on a candidate pool")
    given: dict[str, Any] = {"proximal": 0.0}
    if isinstance(registered.calibration, Expected):
        given["calibration"] = registered.calibration.player
    players = hyperparameters.get("players", registered.players)
    given |= hyperparameters | {"players": tuple(sampled(player) for player in players)}
    algorithm = algorithms.create(name, **given)
    assert isinstance(algorithm, Direct)
    return algorithm


def names() -> list[str]:
    """The direct rows that train a sampled LM."""
    return [*(name for name in algorithms.names() if _direct(name) and name not in NEED_A_LIST), *GSHF_DPO]


def _direct(name: str) -> bool:
    return name in algorithms.REGISTRY and isinstance(algorithms.REGISTRY[name], Direct)
