"""What the shortcuts of released code cost on a transformer whose responses are all listed, each against the faithful
row that differs in that one choice.

No paper's figure. Five shortcuts, and where they are found:

    data        only this round's duels, where the algorithm sums over all (RLHFlow's scripts; 2405.07863 accumulates)
    reference   reset to the policy every round, where the objective names one (RLHFlow's scripts; SELM, 2405.19332).
                Exact steps then have coefficient kl_coef / T after T rounds (`moving_reference`)
    pairs       the best against the worst of 8 draws by the policy's own implied reward, labels asked, where the
                analysis draws two responses (2405.07863; INPO's LM runs, 2407.00617)
    length      IPO with each log-ratio divided by its response's tokens (TRL's DPOTrainer), where eq. 17 of 2310.12036
                has whole responses; `normalised, rescaled` multiplies kl_coef by the reference's mean length, so that
                the average weight of the KL is the faithful one
    KL          the gradient of the sum over positions of KL(pi(.|prefix) || ref(.|prefix)) with the prefixes' law held
                fixed (TRL's Nash-MD: each token has its own log-ratio only), where KL of whole responses also charges a
                token for the log-ratios that come after it (2312.00886). Both are 0 at the reference and have the same
                value everywhere; only the gradient differs

World. A GPT-2 of two layers with two tokens and an end token; responses end by themselves or are cut at 5 tokens (63 of
them), two prompts, random weights as the reference. Each replicate has rewards of its own, uniform on [0, 3]; kl_coef
.3. DPO's annotator is Bradley-Terry and its target pi* (suboptimality); the others' adds a circulation of root mean
square 1 (HodgeMix), and the target is the KL-regularised equilibrium (duality gap). 12 rounds of 256 duels, every fit
20 steps of AdamW at .01 from the last policy; 8 replicates, five minutes of one core. The KL rows ask no duels but the
exact table (FullInformation): SPPO's loss (2405.00675) + 2 step_size kl_coef KL, whose sequence form is RSPO's
(2503.00030), so that what they end at is a bias. They run at kl_coef .1, step_size 2, 24 rounds: by the derivation
below the token form's own gap is 5 % of the reference's at .3 and 15 % at .1, and 5 % is too little to see after such
fits. That choice, and the numbers of rounds, followed short pilot runs.

Derived. With a payoff u of whole responses, the stationary policy of the token-level KL is, at every prefix, ref(token)
exp(E_pi[u | prefix, token] / kl_coef): the future's payoff in expectation, where the optimum has the log-mean-exp (the
payoff less what the KL still costs). `its own point`: KL to that policy, by backward induction and, since the payoff is
that of a game, a damped fixed-point iteration; for the sequence form it is the equilibrium itself.

Found. Costs, at equal duels and steps. Fresh data: DPO ends at .38 of suboptimality, with all duels at .085 (.73 at the
start). Moving the reference: .50 with all duels and .74 with fresh ones, which is no progress at all, and two to three
nats more KL than the target, as derived. Best/worst of 8 does DPO no harm (.068; better, undecided), but leaves INPO
half again as far from its equilibrium (.043 against .029). Length normalisation: IPO's gap is 35 times as large at the
same kl_coef (.51 against .0145; the reference's own is .07), and its answers are .6 of a token longer; with the
coefficient rescaled it is 3.4 times as large, and the longer answers are undecided. Token-level KL ends at .035, where
the derivation has .031, and the sequence form at .014, still falling; world by world the token rows are as near to the
equilibrium as to their own point (undecided), as neither fit is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from llm_bridge import need_extra
from llm_bridge.enumerable import EnumerableLM
from simbandit import algorithms, plotting
from simbandit.algorithms.direct import Moving
from simbandit.algorithms.players import Best
from simbandit.draws import Draws
from simbandit.equilibrium import duality_gap, solve
from simbandit.guarantees import Identity, Number, Ordering
from simbandit.guarantees.rows import select
from simbandit.metrics import Snapshot, kl
from simbandit.objective import Descent, DuelObjective, Loss, PairLogProbs
from simbandit.oracles import BradleyTerry, FullInformation, HodgeMix
from simbandit.policies import Rows
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Study, Task
from simbandit.types import Contexts, FitInfo, Policy
from simbandit.worlds import LinearWorld
from studies._language import gpt2

KL_COEF, EXACT_KL_COEF, STEP_SIZE = 0.3, 0.1, 2.0
PROMPTS, END, ROUNDS, DUELS, STEPS = [[1], [2, 1]], 0, 12, 256, 20
SELECTED = (Best(8), Best(8, worst=True))
Level = Literal["sequence", "token"]


# ---------------------------------------------------------------------------- two shortcuts that are choices of the fit


def per_token(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, loss: Loss, lengths: Tensor) -> Tensor:
    """A loss of average log-probabilities a token."""
    return loss(PairLogProbs(*(x / lengths for x in log_probs)), label, kl_coef)


@dataclass(frozen=True, eq=False)
class Normalised(Rows):
    """An LM that fits log-probabilities divided by the tokens of their responses, with `scale` times kl_coef."""

    lm: EnumerableLM
    scale: float = 1.0

    def rows(self, contexts: Contexts) -> Tensor:
        return self.lm.rows(contexts)

    def fit(self, objective: DuelObjective) -> tuple[Normalised, FitInfo]:
        terms = tuple(
            dataclasses.replace(t, loss=partial(per_token, loss=t.loss, lengths=self.lm.lengths[t.actions]))
            for t in objective.terms
        )
        fit = dataclasses.replace(objective, terms=terms, kl_coef=self.scale * objective.kl_coef)
        fitted, info = self.lm.fit(fit)
        return dataclasses.replace(self, lm=fitted), info


@dataclass(frozen=True, eq=False)
class Penalised(Rows):
    """An LM that adds weight x KL(pi || reference) a duel to what it minimises: of whole responses, or ("token") of the
    next token along responses whose law has no gradient."""

    lm: EnumerableLM
    reference: EnumerableLM
    weight: float
    level: Level

    def rows(self, contexts: Contexts) -> Tensor:
        return self.lm.rows(contexts)

    def fit(self, objective: DuelObjective) -> tuple[Penalised, FitInfo]:
        whole: Any = Sum(objective, self)
        fitted, info = self.lm.fit(whole)
        return dataclasses.replace(self, lm=fitted), info


@dataclass(frozen=True, eq=False)
class Sum:
    """The objective with its penalty, for a fit by steps."""

    duels: DuelObjective
    penalty: Penalised

    def __call__(self, policy: EnumerableLM) -> Tensor:
        law = policy.table.exp()
        law = law if self.penalty.level == "sequence" else law.detach()
        kl_of_each = (law * policy.kl_along(self.penalty.reference)).sum(-1)  # (R, X)
        return self.duels(policy) + self.penalty.weight * self.weight * kl_of_each.mean(-1)

    @property
    def contexts(self) -> Contexts:
        return self.duels.contexts

    @property
    def descent(self) -> Descent | None:
        return self.duels.descent

    @property
    def weight(self) -> Tensor:
        return self.duels.weight


# --------------------------------------------------------------------------------------------- where the KL rows end at


def stationary(payoff: Tensor, ref: Tensor, said: Sequence[tuple[int, ...]], level: Level, kl_coef: float) -> Tensor:
    """The policy (R, X, A) at which the gradient of E_pi[payoff] - kl_coef x (the KL of this level) is 0, payoff fixed.

    From the last token to the first: pi(token | prefix) is proportional to ref(token | prefix) exp(W / kl_coef), W the
    expected payoff after the token ("token"), or that less kl_coef times the KL still to come ("sequence": Gibbs).
    """
    worth, ref = payoff, ref.expand_as(payoff)
    nodes, law = list(range(len(said))), torch.zeros_like(payoff)
    for t in reversed(range(max(map(len, said)))):
        number: dict[tuple[int, ...], int] = {}
        place = torch.tensor([number.setdefault(r[:t], len(number)) for r in said])
        first = [nodes.index(n) for n in range(max(nodes) + 1)]  # one response of every child
        parent = place[first]

        def total(values: Tensor, parent: Tensor = parent, size: int = len(number)) -> Tensor:
            return values.new_zeros(*values.shape[:2], size).index_add(-1, parent, values)

        above = total(ref.exp()).log()
        step = ref - above[..., parent] + worth / kl_coef
        norm = total(step.exp()).log()
        step = step - norm[..., parent]
        worth = total(step.exp() * worth) if level == "token" else kl_coef * norm
        law, ref, nodes = law + step[..., torch.tensor(nodes)], above, place.tolist()
    return law


def own_point(
    table: Tensor, ref: Tensor, said: Sequence[tuple[int, ...]], level: Level, kl_coef: float
) -> tuple[Tensor, Tensor]:
    """The policy (R, X, A) that is `stationary` for its own win rates P pi - 1/2, by damped iteration, and the largest
    move of a log-probability at the end, (R,)."""
    law = ref.expand(table.shape[:-1])
    change = law.new_full(law.shape[:1], torch.inf)
    for _ in range(500):
        answer = stationary((table @ law.exp()[..., None]).squeeze(-1) - 0.5, ref, said, level, kl_coef)
        change = (answer - law).abs().amax((-1, -2))
        law = (law + 0.5 * (answer - law)).log_softmax(-1)
        if float(change.max()) < 1e-11:
            break
    return law, change


# ------------------------------------------------------------------------------------------------------------- the rows


def row(name: str, lm: EnumerableLM) -> tuple[Any, Policy]:
    """The algorithm and the policy of a row."""
    tokens = float((lm.table.exp() * lm.lengths).sum(-1).mean())
    fresh, moving, rows = {"data": "fresh"}, {"reference": Moving()}, algorithms.create
    penalty = partial(Penalised, lm, lm, 2 * STEP_SIZE * EXACT_KL_COEF)
    made: dict[str, tuple[Any, Policy]] = {
        "DPO": (rows("online_dpo"), lm),
        "DPO, fresh": (rows("online_dpo", **fresh), lm),
        "DPO, moving": (rows("online_dpo", **moving), lm),
        "DPO, fresh, moving": (rows("online_dpo", **fresh, **moving), lm),
        "DPO, best/worst": (rows("online_dpo", players=SELECTED), lm),
        "INPO": (rows("inpo"), lm),
        "INPO, best/worst": (rows("inpo", players=SELECTED), lm),
        "IPO": (rows("online_ipo"), lm),
        "IPO, normalised": (rows("online_ipo"), Normalised(lm)),
        "IPO, normalised, rescaled": (rows("online_ipo"), Normalised(lm, tokens)),
        "KL, sequence": (rows("sppo", step_size=STEP_SIZE), penalty("sequence")),
        "KL, token": (rows("sppo", step_size=STEP_SIZE), penalty("token")),
    }
    return made[name]


REWARD = ("DPO", "DPO, fresh", "DPO, moving", "DPO, fresh, moving", "DPO, best/worst")
GAME = ("INPO", "INPO, best/worst", "IPO", "IPO, normalised", "IPO, normalised, rescaled")
EXACT = ("KL, sequence", "KL, token")


def trained(name: str, rounds: int, steps: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Exact metrics of every round."""
    assert device == "cpu", "responses are listed on the CPU"
    lm = EnumerableLM(gpt2(3, window=8, width=16, seed=seed), PROMPTS, 5, Descent(steps, 0.01), end=END)
    shape = (len(PROMPTS), lm.n_responses)
    world = LinearWorld(  # one-hot features: a reward of its own for every response and replicate
        n_contexts=shape[0],
        features=np.eye(shape[0] * shape[1]).reshape(*shape, -1),
        theta="box",
        theta_norm=None,
        theta_scale=3.0,
        reference=lm.table[0].detach().exp().numpy(),
    )
    annotator: Any = BradleyTerry() if name in REWARD else HodgeMix(curl=1.0)
    oracle = FullInformation(annotator) if name in EXACT else annotator
    algorithm, policy = row(name, lm)
    lengths = lm.lengths.double()

    def target(s: Snapshot) -> Tensor:
        assert s.game is not None
        return s.optimum if name in REWARD else s.game.nash

    def longer(s: Snapshot) -> Tensor:
        return s.expect(s.log_probs, lengths) - s.expect(target(s), lengths)

    def more_kl(s: Snapshot) -> Tensor:
        return s.over_contexts(kl(s.log_probs, s.ref_log_probs) - kl(target(s), s.ref_log_probs))

    run = simulate(
        Problem(world, oracle, EXACT_KL_COEF if name in EXACT else KL_COEF),
        algorithm,
        rounds=rounds,
        batch_size=DUELS,
        replicates=replicates,
        seed=seed,
        policy=policy,
        metrics=[
            "suboptimality" if name in REWARD else "duality_gap",
            "kl_to_ref",
            ("length beyond the target's", longer),
            ("KL beyond the target's", more_kl),
        ],
        record="all",
    )
    frame = run.frame()
    if name not in EXACT:
        return frame
    instance = world.instance(replicates, Draws(seed, replicates))
    table, found = annotator.bind(instance).win_table(instance.evaluation), run.policy
    assert found is not None
    ref = instance.evaluation.ref_log_probs
    start = duality_gap(ref, table, ref, EXACT_KL_COEF).mean(-1)
    values, distance = {}, {}
    for level in ("sequence", "token"):
        point, residual = own_point(table, ref, lm.responses(), level, EXACT_KL_COEF)
        distance[level] = kl(found.log_probs(instance.evaluation), point).mean(-1)
        values[f"residual of the {level} point"] = residual
        values[f"{level} point's share"] = duality_gap(point, table, ref, EXACT_KL_COEF).mean(-1) / start
        if level == "sequence":
            values["sequence point to equilibrium"] = kl(point, solve(table, ref, EXACT_KL_COEF).log_probs).mean(-1)
    own, other = ("sequence", "token") if name == EXACT[0] else ("token", "sequence")
    values["nearer its own point"] = distance[other] - distance[own]
    last = select(frame, {"metric": "kl_to_ref", "round": rounds})
    return pd.concat([frame, *(last.assign(metric=m, value=v.numpy()) for m, v in values.items())], ignore_index=True)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    need_extra()
    names = ("DPO", "DPO, fresh", "IPO", "IPO, normalised", *EXACT) if settings.smoke else (*REWARD, *GAME, *EXACT)
    grid = []
    for name in names:
        rounds, steps = (ROUNDS * (1 + (name in EXACT)), STEPS) if not settings.smoke else (2, 2)
        arguments = {"name": name, "rounds": rounds, "steps": steps}
        grid.append(Task({"row": name}, trained, arguments, settings.replicates, settings.seed))
    return grid


def _costs(what: str, source: str, metric: str, faithful: str, shortcut: str, factor: float = 1.0) -> Ordering:
    return Ordering(what, source, metric, {"row": faithful}, {"row": shortcut}, factor=factor)


OWN, DERIVED = "own expectation", "derived"
SUB, GAP, LONGER, MORE_KL = "suboptimality", "duality_gap", "length beyond the target's", "KL beyond the target's"
claims = (
    _costs("data: only fresh duels cost", "2405.07863 (accumulates)", SUB, "DPO", "DPO, fresh"),
    _costs("reference: moving costs, on fresh duels", DERIVED, SUB, "DPO, fresh", "DPO, fresh, moving"),
    _costs("reference: moving costs, on all duels", DERIVED, SUB, "DPO", "DPO, moving"),
    *(
        Number(f"{name}: a nat more KL than the target", DERIVED, MORE_KL, {"row": name}, 1.0, 0.0, "at least")
        for name in ("DPO, fresh, moving", "DPO, moving")
    ),
    _costs("pairs: best/worst with asked labels cost DPO nothing", DERIVED, SUB, "DPO, best/worst", "DPO"),
    _costs(
        "pairs: best/worst cost INPO", "2407.00617, Proposition 6 needs pi_t's pairs", GAP, "INPO", "INPO, best/worst"
    ),
    _costs("length: normalised IPO costs", "2310.12036, eq. 17", GAP, "IPO", "IPO, normalised"),
    _costs("length: it still costs with the coefficient rescaled", OWN, GAP, "IPO", "IPO, normalised, rescaled"),
    *(
        _costs(f"length: {shortcut} answers longer than IPO", OWN, LONGER, "IPO", shortcut)
        for shortcut in ("IPO, normalised", "IPO, normalised, rescaled")
    ),
    _costs("KL: token by token costs", "2312.00886 (reward-to-go)", GAP, *EXACT),
    *(
        Number(
            f"{name}: ends nearer to its own stationary point than to the other's",
            DERIVED,
            "nearer its own point",
            {"row": name},
            0.0,
            0.0,
            "at least",
        )
        for name in EXACT
    ),
    Number(
        "KL: the token form's own point keeps a tenth of the reference's gap",
        OWN,
        "token point's share",
        {"row": EXACT[1]},
        0.1,
        0.0,
        "at least",
    ),
    Identity(
        "KL: the sequence form's own point is the equilibrium",
        DERIVED,
        "sequence point to equilibrium",
        {"row": EXACT[0]},
        1e-9,
    ),
    *(
        Identity(f"the {level} point is found", DERIVED, f"residual of the {level} point", {"row": EXACT[0]}, 1e-9)
        for level in ("sequence", "token")
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.6)
    panels = (
        ("(a) data, reference, pairs: DPO", SUB, REWARD),
        ("(b) pairs: INPO", GAP, GAME[:2]),
        ("(c) length: IPO", GAP, GAME[2:]),
        ("(d) KL, exact answers", GAP, EXACT),
    )
    for ax, (title, metric, names) in zip(axes.flat, panels, strict=True):
        shown = [name for name in names if name in set(frame["row"])]
        if not shown:  # a smoke run's subset
            continue
        plotting.curves(ax, frame, metric, "row", x="round", order=shown, looks=plotting.lines(names))
        ax.set_yscale("log")
        ax.set_title(title)
        if names == EXACT:
            start = select(frame, {"row": EXACT[0], "metric": GAP, "round": 0})["value"].to_numpy()
            share = select(frame, {"row": EXACT[0], "metric": "token point's share"})["value"].to_numpy()
            ax.axhline(float((start * share).mean()), color="0.5", linewidth=0.8, label="the token form's own point")
            ax.legend()
    return figure


study = Study(
    name="shortcuts",
    title="What shortcuts cost on a language model, each against the row that differs in that choice alone",
    source="own design; shortcuts of released code (2405.07863, 2407.00617, TRL)",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=8,
    smoke_replicates=2,
)
