"""Direct rows of the registry as a language model can run them: it draws responses and cannot list them."""

from __future__ import annotations

from typing import Any

from llm_bridge.enhancers import GSHF_DPO, sampled
from simbandit import algorithms
from simbandit.algorithms.direct import Direct, Expected


def direct_row(name: str, **hyperparameters: Any) -> Direct:
    """`simbandit.algorithms.create` with proximal=0 and nothing that lists responses. The names of `enhancers.GSHF_DPO`
    are rows here too.

    Deviations: a bonus's expectation over a player's law is estimated by one draw a duel (vpo, copo, hypo, spac), which
    is what is done with language models. Players that are computed from a list are drawn (`enhancers.sampled`):
    ipo_md's geometric mixture by importance resampling among 16 draws of pi_t, selm's likeliest response as the
    likeliest of the greedy one and 8 draws. copo counts whole responses by their number in the catalogue; where the
    same words are hardly said twice, every count is 0 or 1 and weighs 1, so that the bonus no longer tells the rare
    from the known (the paper's coin-flip network generalises between responses).

    Raises ValueError for rows that are not direct.
    """
    if name in GSHF_DPO:
        return direct_row("online_dpo", **({"players": GSHF_DPO[name]} | hyperparameters))
    registered = algorithms.create(name)
    if not isinstance(registered, Direct):
        raise ValueError(f"name: {name} is model-based, it needs features and candidates: run it on a candidate pool")
    given: dict[str, Any] = {"proximal": 0.0, "players": registered.players, "calibration": registered.calibration}
    given |= hyperparameters
    if isinstance(given["calibration"], Expected):
        given["calibration"] = given["calibration"].player
    given["players"] = tuple(map(sampled, given["players"]))
    if given["calibration"] not in ("first", "second"):
        given["calibration"] = sampled(given["calibration"])
    algorithm = algorithms.create(name, **given)
    assert isinstance(algorithm, Direct)
    return algorithm


def names() -> list[str]:
    """The direct rows that train a sampled LM."""
    return [*(name for name in algorithms.names() if _direct(name)), *GSHF_DPO]


def _direct(name: str) -> bool:
    return name in algorithms.REGISTRY and isinstance(algorithms.REGISTRY[name], Direct)
