"""Metrics of games against sums by hand."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from simbandit import Problem, algorithms, simulate, worlds
from simbandit.draws import Draws
from simbandit.equilibrium import minimax
from simbandit.metrics import METRICS
from simbandit.oracles import BradleyTerry, FullInformation, PreferenceTable, UniformTriangular, rock_paper_scissors
from simbandit.policies import Tabular, gibbs

REF = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.25, 0.0]])
with np.errstate(divide="ignore"):
    LOG_REF = np.log(REF)
NAMES = ["von_neumann_regret", "minority_mass", "matching_divergence", "borda_regret", "unregularised_gap"]


def snapshots(problem: Problem, algorithm: Any, rounds: int = 3, **options: Any) -> list[Any]:
    seen: list[Any] = []

    def keep(snapshot: Any) -> torch.Tensor:
        seen.append(snapshot)
        return torch.zeros(snapshot.instance.replicates)

    simulate(problem, algorithm, rounds=rounds, metrics=[("keep", keep)], record="all", replicates=3, **options)
    return seen


def measure(name: str, snapshot: Any) -> Any:
    return METRICS[name].function(snapshot)


def test_regret_to_the_von_neumann_winner_is_that_of_the_duels_played():
    problem = Problem(worlds.TableWorld(LOG_REF), UniformTriangular(), 0.1)
    for s in snapshots(problem, algorithms.create("uniform"), batch_size=5)[:-1]:
        P, index, actions = s.game.preference, s.contexts.index, s.actions
        for r in range(3):
            winner = []
            for x, offered in enumerate(REF > 0):
                keep = np.flatnonzero(offered)
                w = np.zeros(4)
                w[keep] = minimax(P[r, x][keep][:, keep]).numpy()
                assert (w @ P[r, x].numpy()[:, keep]).min() >= 0.5 - 1e-9
                winner.append(w)
            losses = [
                (winner[x] @ P[r, x].numpy()[:, a] + winner[x] @ P[r, x].numpy()[:, b]) / 2 - 0.5
                for x, (a, b) in zip(index[r], actions[r], strict=True)
            ]
            assert float(measure("von_neumann_regret", s)[r]) == pytest.approx(np.mean(losses), abs=1e-9)
            assert min(losses) > -1e-9
    last = snapshots(problem, algorithms.create("uniform"), rounds=1)[-1]
    assert measure("von_neumann_regret", last) is None  # nothing is played in the last row
    full = Problem(worlds.TableWorld(LOG_REF), FullInformation(UniformTriangular()), 0.1)
    assert measure("von_neumann_regret", snapshots(full, algorithms.create("egpo"))[0]) is None


def test_a_condorcet_winner_has_no_regret_and_the_worst_action_the_most():
    P = np.full((1, 3, 3), 0.5)
    P[0, 0, 1:], P[0, 1:, 0] = (0.7, 0.9), (0.3, 0.1)
    problem = Problem(worlds.TableWorld(np.log(np.full((1, 3), 1 / 3))), PreferenceTable(P), 0.1)
    for s in snapshots(problem, algorithms.create("uniform"), batch_size=4)[:-1]:
        loss = torch.tensor([0.0, 0.2, 0.4], dtype=torch.float64)[s.actions].mean((-1, -2))
        torch.testing.assert_close(measure("von_neumann_regret", s), loss, atol=1e-9, rtol=0)
    kept = simulate(problem, algorithms.create("copeland"), rounds=400, metrics=NAMES, record="all", replicates=2)
    frame = kept.frame()
    late = frame.query("metric == 'von_neumann_regret' and round > 300")["value"].to_numpy()
    assert late.max() < 1e-9  # it commits to the winner


def test_minorities_and_matching_under_bradley_terry():
    """Against softmax of reward / temperature, which the metric only sees as win probabilities."""
    rewards = np.array([[0.0, 1.5, 0.3, -0.7], [1.0, 0.2, 0.9, 9.0]])
    world = worlds.TableWorld(LOG_REF, rewards, reward_range=(-1.0, 9.0))
    weights = _weights(world)
    for temperature in (1.0, 0.4):
        s = snapshots(Problem(world, BradleyTerry(temperature=temperature), 0.3), algorithms.create("online_dpo"))[-1]
        matching = np.where(REF > 0, np.exp(rewards / temperature), 0.0)
        matching /= matching.sum(-1, keepdims=True)
        pi = s.log_probs.exp().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(matching > 0, matching * np.log(matching / pi), 0.0).sum(-1)
        assert measure("matching_divergence", s).numpy() == pytest.approx(terms @ weights, rel=1e-9)
        rest = 1 - pi[:, [0, 1], [1, 0]]  # the favourites: action 1, and 0 (3 is not offered)
        assert measure("minority_mass", s).numpy() == pytest.approx(rest @ weights, rel=1e-9)


def test_collapse_and_matching_tell_rlhf_from_pm():
    """RLHF at a small coefficient collapses; preference matching keeps the minority's share."""
    rewards = torch.tensor([[0.0, 0.8, 0.3]], dtype=torch.float64)
    ref = torch.full((1, 3), -np.log(3), dtype=torch.float64)
    world = worlds.TableWorld(ref.numpy(), rewards.numpy())
    share = 1 - float(rewards.softmax(-1).max())
    problem = Problem(world, BradleyTerry(), 0.05)
    start = snapshots(problem, algorithms.create("uniform"), rounds=1)[0]
    found = {}
    for name, law in (("rlhf", gibbs(rewards, ref, 0.05)), ("matching", torch.log_softmax(rewards, -1))):
        moved = type(start)(**{**_fields(start), "policy": Tabular(law.expand(3, 1, 3))})
        found[name] = float(measure("minority_mass", moved)[0]), float(measure("matching_divergence", moved)[0])
    assert found["matching"] == (pytest.approx(share), pytest.approx(0, abs=1e-14))
    assert found["rlhf"][0] < 1e-4
    assert found["rlhf"][1] > 1


def test_sure_winners_have_no_odds():
    problem = Problem(worlds.TableWorld(np.log(np.full((1, 3), 1 / 3))), rock_paper_scissors(), 0.1)
    with pytest.raises(ValueError, match="matching_divergence needs win probabilities strictly between"):
        simulate(problem, algorithms.create("uniform"), rounds=1, metrics=["matching_divergence"])


def _fields(snapshot: Any) -> dict[str, Any]:
    return {f.name: getattr(snapshot, f.name) for f in fields(snapshot) if f.init}


def _weights(world: worlds.TableWorld) -> np.ndarray:
    weights = world.instance(1, Draws(0, 1)).evaluation.weights
    assert weights is not None
    return weights[0].numpy()
