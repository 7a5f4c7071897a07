"""The input of `human_cycles`: a table of comparisons, the synthetic stand-in, and what is computed per question."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from simbandit.draws import generator
from simbandit.equilibrium import exploitability, solve
from simbandit.hypotheses import bradley_terry_test, hodge_decomposition, transitivity_violations
from simbandit.metrics import kl
from simbandit.policies import gibbs
from simbandit.preferences import tabular_mle
from simbandit.worlds import Comparisons, bradley_terry_scores, count_comparisons, from_comparisons

FILE = "human_judgments.csv"
STAND_IN = Path(__file__).parent / "data" / "comparisons_8x6.csv"
CONTEXT_NAMES = ("context", "question", "prompt")
SIDES = ("left", "right", "winner")
KL_COEF, PSEUDO_COUNT, RIDGE, LEVEL = 0.05, 1.0, 1.0, 0.05
SIMULATIONS, CURL_DRAWS = 99, 20
Rule = Literal["half", "bradley_terry"]

# ------------------------------------------------------------------------------------------------------------- data


def load(path: Path | None, most: int) -> tuple[str, pd.DataFrame]:
    """The data's name and its comparisons (None: the stand-in) as columns context, left, right, winner, of the first
    `most` contexts that have two comparisons or more (one cannot be halved).

    Raises ValueError where left, right, winner or a column of contexts (context, question or prompt) is missing.
    """
    file = path or STAND_IN
    frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    context = next((name for name in CONTEXT_NAMES if name in frame), None)
    if context is None or any(name not in frame for name in SIDES):
        raise ValueError(
            f"data: {file.name} must have the columns left, right, winner and one of {', '.join(CONTEXT_NAMES)}; "
            f"it has {list(frame)[:12]}"
        )
    frame = pd.DataFrame({"context": frame[context], **{side: frame[side] for side in SIDES}})
    contexts, judgments = np.unique(frame["context"].to_numpy(), return_counts=True)
    kept = np.isin(frame["context"].to_numpy(), contexts[judgments > 1][:most])
    name = "human judgments" if file.name == FILE else "synthetic stand-in" if path is None else file.stem
    return name, frame.take(np.flatnonzero(kept)).reset_index(drop=True)


def stand_in(questions: int = 8, items: int = 6, duels: int = 6) -> pd.DataFrame:
    """The synthetic table that ships as studies/data/comparisons_8x6.csv: every pair but one per question compared
    `duels` times; in the even questions Bradley-Terry holds, in the odd ones three of the items beat each other in a
    cycle with probability .85."""
    draws = np.random.default_rng(20_260_101)
    rows = []
    for q in range(questions):
        s = 1.2 * draws.normal(size=items)
        P = 1 / (1 + np.exp(s[None] - s[:, None]))
        if q % 2:
            for a, b in ((0, 1), (1, 2), (2, 0)):
                P[a, b], P[b, a] = 0.85, 0.15
        missing = (items - 2, items - 1)
        for a in range(items):
            for b in range(a + 1, items):
                for _ in range(0 if (a, b) == missing else duels):
                    shown = (a, b) if draws.random() < 0.5 else (b, a)
                    won = a if draws.random() < P[a, b] else b
                    rows.append([f"q{q}", *(f"q{q}-text{i}" for i in (*shown, won))])
    return pd.DataFrame(rows, columns=["question", *SIDES])


def _count(frame: pd.DataFrame, items: Mapping[Any, Sequence[Hashable]] | None = None) -> Comparisons:
    return count_comparisons(frame, context="context", left="left", right="right", winner="winner", items=items)


def tables(frame: pd.DataFrame) -> list[np.ndarray]:
    """wins (A, A) of every context, its own items only."""
    counts = _count(frame)
    sizes = counts.offered.sum(1)
    return [wins[:n, :n] for wins, n in zip(counts.wins, sizes, strict=True)]


def per_question(values: Mapping[str, Sequence[float] | np.ndarray]) -> pd.DataFrame:
    """Rows of a Task, one replicate per question."""
    parts = [
        pd.DataFrame({"replicate": range(len(v)), "round": 0, "queries": 0.0, "metric": name, "value": np.asarray(v)})
        for name, v in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


def collect(rows: Sequence[dict[str, float]]) -> pd.DataFrame:
    return per_question({name: [row[name] for row in rows] for name in rows[0]})


# -------------------------------------------------------------------------------------------------- does BT hold?


def has_cycle(wins: np.ndarray) -> bool:
    """Whether strict majorities go round: a strongly connected group of more than one item."""
    groups = connected_components(csr_array(wins > wins.T), connection="strong", return_labels=False)
    return bool(groups < len(wins))


def curl_share(wins: np.ndarray) -> float:
    """Share of the energy of the margins, pairs weighed by their comparisons, that no score explains."""
    w = torch.from_numpy(wins)
    return float(hodge_decomposition(tabular_mle(w) - 0.5, w + w.mT).share)


def drawn_from(wins: np.ndarray, law: np.ndarray, seed: int, number: int, purpose: str) -> np.ndarray:
    """As many comparisons of every pair, won with probability `law`."""
    a, b = np.triu_indices(len(wins), 1)
    n = (wins + wins.T)[a, b].astype(int)
    won = generator(seed, number, purpose).binomial(n, law[a, b])
    drawn = np.zeros_like(wins)
    drawn[a, b], drawn[b, a] = won, n - won
    return drawn


def bradley_terry_law(wins: np.ndarray) -> np.ndarray:
    """sigma(s_a - s_b) of scores fitted with a standard normal prior."""
    names = tuple(range(len(wins)))
    counts = Comparisons(wins[None], np.ones((1, len(wins)), dtype=bool), (0,), (names,))
    s = bradley_terry_scores(counts, RIDGE)[0]
    return 1 / (1 + np.exp(s[None] - s[:, None]))


def structure(frame: pd.DataFrame, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """What the comparisons look like, question by question."""
    del replicates, seed, device
    rows, games = [], tables(frame)
    sizes = [len(wins) for wins in games]
    for wins in games:
        compared, n = np.triu(wins + wins.T, 1), len(wins)
        triples = {name: float(v[0]) for name, v in transitivity_violations(wins[None]).items()}
        rows.append(
            {
                "questions": len(games),
                "all_judgments": len(frame),
                "fewest_passages": min(sizes),
                "most_passages": max(sizes),
                "judgments": compared.sum(),
                "passages": n,
                "pairs_compared": (compared > 0).sum() / (n * (n - 1) / 2),
                "judgments_per_pair": compared.sum() / (compared > 0).sum(),
                "has_cycle": float(has_cycle(wins)),
                "intransitive_triples": triples["weak"] / max(triples["triples"], 1.0),
            }
        )
    return collect(rows)


def hypothesis(
    frame: pd.DataFrame, ridge: float, simulated: bool, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    """The test of Bradley-Terry, cycles and curl of every question; beside them cycles and curl of data drawn from the
    fitted Bradley-Terry law at the same pairs. `simulated`: the data themselves are replaced by such a draw, so that
    Bradley-Terry holds. ridge: of the scores that the test draws from."""
    del replicates, device
    rows = []
    for q, observed in enumerate(tables(frame)):
        law = bradley_terry_law(observed)
        wins = drawn_from(observed, law, seed, q, "calibration") if simulated else observed
        test = bradley_terry_test(torch.from_numpy(wins), simulations=SIMULATIONS, seed=seed + q, ridge=ridge)
        row = test.contexts.iloc[0]
        null = [drawn_from(observed, law, seed, q, f"null/{i}") for i in range(CURL_DRAWS)]
        cycle, cycle_null = float(has_cycle(wins)), float(np.mean([has_cycle(one) for one in null]))
        curl, curl_null = curl_share(wins), float(np.mean([curl_share(one) for one in null]))
        rows.append(
            {
                "p_value": test.p_value,
                "rejected": float(test.p_value <= LEVEL),
                "deviance_per_freedom": float(row["statistic"]) / max(float(row["freedom"]), 1.0),
                "has_cycle": cycle,
                "has_cycle_null": cycle_null,
                "has_cycle_excess": cycle - cycle_null,
                "curl": curl,
                "curl_null": curl_null,
                "curl_excess": curl - curl_null,
            }
        )
    return collect(rows)


# --------------------------------------------------------------------------------------------------------- policies


class Halves(NamedTuple):
    """Preferences (X, A, A) estimated from either half of each question's judgments, references and Bradley-Terry
    scores (of the first half), judgments of the second half as (context, winner, loser)."""

    fitted: Tensor
    judged: Tensor
    ref: Tensor
    scores: Tensor
    held_out: np.ndarray


def halve(frame: pd.DataFrame, rule: Rule, seed: int) -> Halves:
    """Splits every question's judgments at random. Pairs never compared within a half follow `rule`, "half" or
    "bradley_terry" of `from_comparisons`; compared pairs are smoothed by one win each way."""
    both = _count(frame)
    items = dict(zip(both.contexts, both.items, strict=True))
    at = np.array([both.contexts.index(x) for x in frame["context"].tolist()])
    first = np.zeros(len(frame), dtype=bool)
    for x in range(len(both.contexts)):
        rows = np.flatnonzero(at == x)
        first[generator(seed, x, "halves").permutation(rows)[: len(rows) // 2]] = True
    kept = np.flatnonzero(first), np.flatnonzero(~first)
    estimates, ref = [], torch.empty(0)
    for half in kept:
        with warnings.catch_warnings():  # half of the comparisons often fall into groups: `rule` says what then
            warnings.simplefilter("ignore", UserWarning)
            world, oracle = from_comparisons(
                frame.take(half),
                context="context",
                left="left",
                right="right",
                winner="winner",
                items=items,
                unseen=rule,
                pseudo_count=PSEUDO_COUNT,
                ridge=RIDGE,
            )
        estimates.append(torch.tensor(np.asarray(oracle.preference)))
        ref = torch.tensor(np.asarray(world.ref_log_probs))
    counts = _count(frame.take(kept[0]), items)
    number = [{item: i for i, item in enumerate(offer)} for offer in both.items]
    left, right, winner = (frame[side].to_numpy(dtype=object)[kept[1]] for side in SIDES)
    lost = np.where(winner == left, right, left)
    held_out = np.array([(x, number[x][w], number[x][v]) for x, w, v in zip(at[kept[1]], winner, lost, strict=True)])
    scores = torch.from_numpy(bradley_terry_scores(counts, RIDGE))
    return Halves(estimates[0], estimates[1], ref, scores, held_out)


def at_distance(score: Tensor, ref: Tensor, target: Tensor) -> Tensor:
    """The Gibbs policies of score (X, A) whose KL to the reference is `target` (X,), by bisection of log kl_coef."""
    low, high = torch.full_like(target, -12.0), torch.full_like(target, 12.0)
    for _ in range(80):
        middle = (low + high) / 2
        far = kl(gibbs(score, ref, middle.exp()[:, None]), ref) > target
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    return gibbs(score, ref, ((low + high) / 2).exp()[:, None])


def policies(halves: Halves) -> dict[str, Tensor]:
    """Log-probabilities (X, A) learnt from the first half. Nash at KL_COEF; the others as far from the reference."""
    P, ref = halves.fitted, halves.ref
    solved = solve(P, ref, KL_COEF)
    if not bool(solved.converged.all()):
        raise RuntimeError(f"equilibrium: {int((~solved.converged).sum())} games did not converge")
    distance = kl(solved.log_probs, ref)
    borda = (P @ ref.exp()[..., None]).squeeze(-1)
    return {
        "reference": ref,
        "RLHF": at_distance(halves.scores, ref, distance),
        "Borda": at_distance(borda, ref, distance),
        "Nash": solved.log_probs,
    }


def pleased(
    frame: pd.DataFrame, rule: Rule, policy: str, judged: str, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    """How one policy, learnt from the first half, fares with the raters of the first ("fitted") or the second half
    ("held out")."""
    del replicates, device
    halves = halve(frame, rule, seed)
    learnt = policies(halves)
    pi, ref = learnt[policy], halves.ref
    P = halves.judged if judged == "held out" else halves.fitted
    offered = ~torch.isneginf(ref)
    wins = (P @ pi.exp()[..., None]).squeeze(-1)  # of each passage against pi
    values = {
        "win_vs_ref": 1 - (ref.exp() * wins).sum(-1),
        "against_worst": 1 - torch.where(offered, wins, 0.0).amax(-1),
        "exploitability": exploitability(pi, P, ref, KL_COEF),
        "kl_to_ref": kl(pi, ref),
        "effective_passages": torch.exp(-(pi.exp() * torch.where(offered, pi, 0.0)).sum(-1)),
    }
    values |= {f"win_vs_{other}": 1 - (log.exp() * wins).sum(-1) for other, log in learnt.items()}
    values["nash_shortfall"] = (values["win_vs_Nash"] - 0.5).clamp_min(0.0)
    if judged == "held out":
        x, won, lost = torch.from_numpy(halves.held_out).T
        mass = torch.zeros(len(pi), 2, dtype=torch.float64)
        mass[:, 0].index_add_(0, x, pi.exp()[x, won])
        mass[:, 1].index_add_(0, x, pi.exp()[x, lost])
        values["served"] = mass[:, 0] / mass.sum(-1)
    return per_question({name: v.numpy() for name, v in values.items()})
