"""The registry: every algorithm by its field's name. A new one is a frozen dataclass and a line here."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from simbandit.algorithms.active import Active, DOptimal
from simbandit.algorithms.bandits import EpsilonGreedy, ExploreThenCommit, LinTS, LinUCB
from simbandit.algorithms.direct import Direct
from simbandit.algorithms.dueling import CoLSTIM, PairUCB
from simbandit.algorithms.dueling_sampling import FGTS
from simbandit.algorithms.dueling_tables import RUCB, DoubleThompson
from simbandit.algorithms.games import (
    BestResponse,
    Comal,
    ExtraGradient,
    FictitiousPlay,
    MagneticDescent,
    MirrorDescent,
    MirrorProx,
    MultiplicativeWeights,
    NashEMA,
    NashMD,
    OptimisticWeights,
)
from simbandit.algorithms.glm import GLMUCB
from simbandit.algorithms.gshf import GSHF
from simbandit.algorithms.inverse_gap import Exp4, Falcon, SquareCB
from simbandit.algorithms.layers import VACDB
from simbandit.algorithms.matrix_games import OptimisticMatrixGame
from simbandit.algorithms.nash import OELHF, NashETC, NashGreedy
from simbandit.algorithms.offline import KLPCB, RSO, GSHFOffline, PessimisticMLE
from simbandit.algorithms.online import KLUCB, Greedy, TwoStage, Uniform
from simbandit.algorithms.pelhf import PELHF
from simbandit.algorithms.queries import ADPO, APPO
from simbandit.algorithms.row_checks import loss_parameters
from simbandit.algorithms.rows import ALIGNMENT, GAMES
from simbandit.algorithms.selfplay import CountWinner, Exp3, PreferenceMatching
from simbandit.types import Algorithm

REGISTRY: dict[str, Any] = {
    "uniform": Uniform(),
    "greedy": Greedy(),
    "kl_ucb": KLUCB(),
    "two_stage": TwoStage(),
    "gshf_online": GSHF(),
    "gshf_hybrid": GSHF(enhancer="reference"),
    "gshf_offline": GSHFOffline(),
    "pessimistic_mle": PessimisticMLE(),
    "kl_pcb": KLPCB(),
    "rso": RSO(steps=4),
    **ALIGNMENT,
    "mirror_descent": MirrorDescent(),
    "mtpo": MirrorDescent(schedule=True),
    "mwu": MultiplicativeWeights(),
    "omwu": OptimisticWeights(),
    "nash_md": NashMD(),
    "nash_ema": NashEMA(),
    "egpo": ExtraGradient(),
    "nash_mp": MirrorProx(),
    "mpo": MagneticDescent(),
    "comal": Comal(),
    "best_response": BestResponse(damping=0.5),
    "fictitious_play": FictitiousPlay(),
    "pelhf": PELHF(),
    "oelhf": OELHF(),
    "nash_greedy": NashGreedy(),
    "nash_etc": NashETC(),
    "optimistic_matrix_game": OptimisticMatrixGame(),
    **GAMES,
    "sparring_exp3": Exp3(copies="two"),
    "self_play_exp3": Exp3(),
    "borda": CountWinner(),
    "copeland": CountWinner(score="copeland"),
    "pm_rlhf": PreferenceMatching(),
    "linucb": LinUCB(),
    "lints": LinTS(),
    "squarecb": SquareCB(),
    "falcon": Falcon(),
    "epsilon_greedy": EpsilonGreedy(),
    "explore_then_commit": ExploreThenCommit(),
    "glm_ucb": GLMUCB(),
    "exp4": Exp4(),
    "maxinp": PairUCB(),
    "maxpairucb": PairUCB(rule="sum"),
    "ginop": PairUCB(matrix="hessian"),
    "colstim": CoLSTIM(),
    "vacdb": VACDB(),
    "fgts": FGTS(),
    "rucb": RUCB(),
    "double_thompson": DoubleThompson(),
    "apo": Active(),
    "uncertainty": Active(rule="uncertainty"),
    "bald": Active(rule="bald"),
    "coreset": Active(rule="coreset"),
    "d_optimal": DOptimal(),
    "appo": APPO(),
    "adpo": ADPO(),
}


def names() -> list[str]:
    """The registered algorithms."""
    return sorted(REGISTRY)


def create(name: str, **hyperparameters: Any) -> Algorithm:
    """A registered algorithm, with some of its hyper-parameters changed.

    A direct method also takes its loss's and its bonus's own parameters by name: `create("inpo", step_size=0.5)`.
    Raises ValueError for an unknown name (nearest offered) or hyper-parameter (allowed ones listed).
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=3) or names()
        raise ValueError(f"name: no algorithm is called {name!r}; did you mean {', '.join(near)}?")
    algorithm: Any = REGISTRY[name]
    fields = {f.name for f in dataclasses.fields(algorithm)}
    if isinstance(algorithm, Direct):
        for choice in ("loss", "bonus"):
            chosen = hyperparameters.get(choice, getattr(algorithm, choice))
            own = [] if chosen is None else loss_parameters(chosen)
            values = {k: v for k, v in getattr(algorithm, f"{choice}_parameters") if k in own}
            values |= {k: hyperparameters.pop(k) for k in own if k in hyperparameters}
            hyperparameters.setdefault(f"{choice}_parameters", tuple(sorted(values.items())))
            fields |= set(own)
    unknown = sorted(set(hyperparameters) - fields)
    if unknown:
        raise ValueError(f"{unknown[0]}: {name} has no such hyper-parameter; it has {', '.join(sorted(fields))}")
    made: Any = dataclasses.replace(algorithm, **hyperparameters)
    return made
