"""Self-play bandits, winners by counting, and preference matching."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from simbandit import Problem, algorithms, simulate, worlds
from simbandit.algorithms.selfplay import CountWinner, Exp3, PreferenceMatching
from simbandit.draws import Draws
from simbandit.oracles import BradleyTerry, PreferenceTable, condorcet_not_borda
from simbandit.policies import Tabular, normalise, uniform
from simbandit.types import Contexts, Setting

R, X, A, B = 2, 3, 4, 7
NASH = np.array([4.0, 3.0, 4.0]) / 11  # of the game below, without regularisation
CYCLE = np.array([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]])


def flat_world(n_contexts=1, n_actions=3):
    return worlds.TableWorld(np.full((n_contexts, n_actions), -math.log(n_actions)))


def setting_of(ref, rounds=50, **changes):
    index = torch.arange(ref.shape[1]).expand(len(ref), -1)
    plain = Setting(
        replicates=len(ref),
        rounds=rounds,
        batch_size=B,
        n_actions=ref.shape[-1],
        dim=None,
        kl_coef=0.3,
        reward_range=(-2.0, 2.0),
        contexts=Contexts(index=index, ref_log_probs=ref),
        policy=Tabular(ref),
        feedback="preference",
        n_select=2,
    )
    return replace(plain, **changes)


def ragged(rng):
    """(R, X, A); the last action of context 1 is absent."""
    logits = torch.as_tensor(rng.normal(size=(R, X, A)))
    logits[:, 1, -1] = -math.inf
    return normalise(logits)


def batch(rng: np.random.Generator, setting: Setting, rounds: int = 1) -> Any:
    pool = setting.contexts
    for t in range(rounds):
        index = torch.as_tensor(rng.integers(X, size=(R, B)))
        actions = torch.as_tensor(rng.integers(A - 1, size=(R, B, 2)))
        yield t, Contexts(index=index, pool=pool), actions, torch.as_tensor((rng.random((R, B)) < 0.6).astype(float))


# ------------------------------------------------------------------------------------------------------------- EXP3


@pytest.mark.parametrize("copies", ["one", "two"])
@pytest.mark.parametrize("exploration", [0.0, 0.2])
def test_exp3_is_its_definition(copies, exploration):
    """Against loops in NumPy, with batches, several contexts and an absent action."""
    rng = np.random.default_rng(0)
    ref = ragged(rng)
    setting = setting_of(ref)
    rule: Any = Exp3(copies=copies, step_size=0.15, exploration=exploration)
    state = rule.init(setting)
    offered = np.isfinite(ref.numpy())
    unif = offered / offered.sum(-1, keepdims=True)
    n_copies = 2 if copies == "two" else 1
    loss = np.zeros((n_copies, R, X, A))
    law = np.stack([unif] * n_copies)
    played = np.zeros((R, X, A))
    for t, contexts, actions, label in batch(rng, setting, rounds=6):
        before, where = loss.copy(), contexts.index.numpy()
        for r in range(R):
            for b in range(B):
                x, (i, j), y = where[r, b], actions[r, b].tolist(), float(label[r, b])
                share = 1 / (3 - n_copies)
                loss[0, r, x, i] += share * (1 - y) / law[0, r, x, i]
                loss[-1, r, x, j] += share * y / law[-1, r, x, j]
                played[r, x] += (law[0, r, x] + law[-1, r, x]) / 2
        assert (loss >= before).all()
        weights = np.where(offered, np.exp(-0.15 * loss), 0.0)
        law = (1 - exploration) * weights / weights.sum(-1, keepdims=True) + exploration * unif
        state, _ = rule.update(state, contexts, actions, label, Draws(0, R).at(t))
        for copy, player in ((0, state.players[0]), (-1, state.players[1])):
            np.testing.assert_allclose(player.table.exp(), law[copy], rtol=1e-12)
        total = played + (law[0] + law[-1]) / 2
        mean = total / total.sum(-1, keepdims=True)
        np.testing.assert_allclose(rule.policy(state).log_probs(setting.contexts).exp(), mean, rtol=1e-12)


def test_exp3_takes_the_step_of_its_theorem_and_outputs_what_is_asked():
    ref = ragged(np.random.default_rng(1))
    setting = setting_of(ref, rounds=90)
    plays = 90 * B / X
    for context, n in ((0, A), (1, A - 1)):
        told: Any = Exp3()
        fixed: Any = Exp3(step_size=math.sqrt(2 * math.log(n) / (n * plays)))
        tables = []
        for rule in (told, fixed, replace(fixed, output="last")):
            _, contexts, actions, label = next(batch(np.random.default_rng(2), setting))
            state, _ = rule.update(rule.init(setting), contexts, actions, label, Draws(0, R).at(0))
            tables.append(rule.policy(state).log_probs(setting.contexts)[:, context])
        torch.testing.assert_close(tables[0], tables[1], rtol=1e-12, atol=0.0)
        assert (tables[1] - tables[2]).nan_to_num().abs().max() > 1e-3


@pytest.mark.parametrize("name", ["self_play_exp3", "sparring_exp3"])
def test_exp3s_average_meets_its_bound_on_a_cycle(name):
    """2 sqrt(2 A log A / n) with n = 3,000 plays is .094; the mean of 48 averages comes to the winner itself, which is
    .06 from the uniform start."""
    problem = Problem(flat_world(), PreferenceTable(CYCLE), 0.3)
    results: Any = simulate(
        problem,
        algorithms.create(name),
        rounds=1_000,
        batch_size=3,
        replicates=48,
        metrics=["unregularised_gap"],
        record=[1_000],
    )
    assert results.final("unregularised_gap").mean() < 2 * math.sqrt(2 * 3 * math.log(3) / 3_000)
    instance = problem.world.instance(48, Draws(0, 48))
    law = results.policy.log_probs(instance.evaluation).exp()[:, 0].mean(0)
    np.testing.assert_allclose(law, NASH, atol=0.02)


def test_exp3_finds_the_better_action_of_each_context():
    """Two actions, whose better one differs between contexts: a law over actions alone could not tell them apart."""
    strong = np.array([[[0.5, 0.9], [0.1, 0.5]], [[0.5, 0.1], [0.9, 0.5]]])
    problem = Problem(flat_world(2, 2), PreferenceTable(strong), 0.3)
    for name in ("self_play_exp3", "sparring_exp3"):
        results: Any = simulate(
            problem, algorithms.create(name), rounds=150, batch_size=5, replicates=8, metrics=["kl_to_ref"]
        )
        pi = results.policy.log_probs(problem.world.instance(8, Draws(0, 8)).evaluation).exp().mean(0)
        assert pi[0, 0] > 0.8
        assert pi[1, 1] > 0.8


# ---------------------------------------------------------------------------------------------------------- counting


def test_borda_and_copeland_disagree_where_theory_says_so():
    problem = Problem(flat_world(), condorcet_not_borda(), 0.3)
    for name, winner in (("borda", 1), ("copeland", 0)):
        # 150,000 uniform duels are 33,000 a pair: the margin of .02 is seven standard errors of .0027
        results: Any = simulate(
            problem,
            algorithms.create(name, exploration=1.0),
            rounds=10,
            batch_size=15_000,
            replicates=3,
            metrics=["kl_to_ref"],
        )
        pi = results.policy.log_probs(problem.world.instance(3, Draws(0, 3)).evaluation).exp()
        assert (pi[:, 0, winner] == 1).all()


@pytest.mark.parametrize("score", ["borda", "copeland"])
def test_winners_are_those_of_the_counts(score):
    rng = np.random.default_rng(3)
    ref = ragged(rng)
    setting = setting_of(ref)
    rule: Any = CountWinner(score=score)
    state = rule.init(setting)
    torch.testing.assert_close(rule.policy(state).log_probs(setting.contexts), uniform(ref))
    wins, plays = np.zeros((R, X, A, A)), np.zeros((R, X, A, A))
    for t, contexts, actions, label in batch(rng, setting, rounds=4):
        for r in range(R):
            for b in range(B):
                x, (i, j), y = int(contexts.index[r, b]), actions[r, b].tolist(), float(label[r, b])
                if i != j:
                    wins[r, x, i, j] += y
                    wins[r, x, j, i] += 1 - y
                    plays[r, x, [i, j], [j, i]] += 1
        state, _ = rule.update(state, contexts, actions, label, Draws(0, R).at(t))
        margin = np.where(plays > 0, wins / np.maximum(plays, 1), 0.5) - 0.5
        count = (margin if score == "borda" else np.sign(np.round(margin, 9))).sum(-1)
        count[~np.isfinite(ref.numpy())] = -np.inf
        best = count >= count.max(-1, keepdims=True) - 1e-12
        expected = best / best.sum(-1, keepdims=True)
        np.testing.assert_allclose(rule.policy(state).log_probs(setting.contexts).exp(), expected, rtol=1e-12)


def test_counting_explores_for_the_stated_fraction_and_then_commits():
    problem = Problem(flat_world(2, 3), condorcet_not_borda(), 0.3)
    results: Any = simulate(
        problem, CountWinner(exploration=0.3), rounds=20, batch_size=64, keep_data=True, metrics=["kl_to_ref"]
    )
    assert results.data is not None
    different = (results.data["first"] != results.data["second"]).groupby(results.data["round"]).mean()
    assert (abs(different[:6] - 2 / 3) < 0.25).all()  # four standard errors of 64 duels
    late = results.data[results.data["round"] >= 6]
    assert (late["first"] == late["second"]).all()
    assert late.groupby("context")["first"].nunique().eq(1).all()


# --------------------------------------------------------------------------------------------- preference matching


def test_preference_matching_copies_the_annotators_odds_whatever_kl_coef_and_reference():
    rng = np.random.default_rng(4)
    rewards = rng.normal(size=(2, 3))
    logits = rng.normal(size=(2, 3))
    ref = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = np.exp(rewards) / np.exp(rewards).sum(-1, keepdims=True)
    tables = []
    for kl_coef, law in ((0.01, ref), (5.0, ref), (0.01, np.full((2, 3), -math.log(3)))):
        world = worlds.TableWorld(law, rewards, reward_range=(-5.0, 5.0))
        problem = Problem(world, BradleyTerry(labels="soft"), kl_coef)
        rule = PreferenceMatching(players=("uniform", "uniform"))
        results: Any = simulate(problem, rule, rounds=4, batch_size=300, replicates=2, metrics=["fit_residual"])
        tables.append(results.policy.log_probs(world.instance(2, Draws(0, 2)).evaluation))
    np.testing.assert_allclose(tables[0].exp(), np.broadcast_to(target, (2, 2, 3)), rtol=1e-5)  # proximal 1e-6 of 200
    for other in tables[1:]:
        torch.testing.assert_close(tables[0], other, rtol=0.0, atol=1e-9)


def test_preference_matching_fits_a_linear_reward_where_there_are_features():
    world = worlds.LinearWorld(6, 5, 2, theta_norm=1.0, reference="softmax")
    problem = Problem(world, BradleyTerry(labels="soft"), 0.05)
    results: Any = simulate(
        problem, algorithms.create("pm_rlhf"), rounds=5, batch_size=80, replicates=3, metrics=["kl_to_ref"]
    )
    instance = world.instance(3, Draws(0, 3))
    target = torch.softmax(instance.rewards(instance.evaluation), dim=-1)
    torch.testing.assert_close(results.policy.log_probs(instance.evaluation).exp(), target, rtol=1e-3, atol=0.0)


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["self_play_exp3", "sparring_exp3", "borda", "copeland", "pm_rlhf"])
def test_fresh_contexts_are_refused(name):
    problem = Problem(worlds.LinearWorld(None, 4, 3), BradleyTerry(), 0.5)
    with pytest.raises(ValueError, match=r"world: .* needs a finite world \(n_contexts=\)"):
        simulate(problem, algorithms.create(name), rounds=3)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Exp3, {"exploration": 1.2}, r"exploration: a fraction in \[0, 1\], got 1.2"),
        (Exp3, {"step_size": 0.0}, "step_size: must be a number > 0 or None"),
        (Exp3, {"copies": "three"}, "copies: must be 'one' or 'two'"),
        (CountWinner, {"exploration": 1.5}, r"exploration: a fraction in \[0, 1\], got 1.5"),
        (CountWinner, {"score": "plurality"}, "score: must be 'borda' or 'copeland'"),
        (PreferenceMatching, {"players": ("reference", "current")}, "players: must be 'current' or 'uniform'"),
    ],
)
def test_hyperparameters_that_mean_nothing_are_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)
