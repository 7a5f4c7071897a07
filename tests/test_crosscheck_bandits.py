"""LinUCB action by action against two libraries: Coba's (shared) and MABWiser's (disjoint).

Neither is a dependency: `pip install coba mabwiser`. Without them these tests skip, and tests/test_bandits.py compares
with a plain NumPy loop.
"""

from typing import Any

import numpy as np
import pytest

from simbandit import algorithms
from simbandit.guarantees.statistics import paired_difference_interval
from simbandit.worlds import LinearWorld
from tests.test_bandits import SEEDS, trajectories

ROUNDS, ARMS, DIM = 120, 3, 5
PER_ARM = LinearWorld(None, ARMS, ARMS * DIM, features="per_arm", theta_norm=1.0, n_evaluation=7)


def test_every_action_is_cobas():
    """Coba plays and learns on its own. In round 0 all actions are tied (unit features) and it is told ours."""
    learners = pytest.importorskip("coba.learners", reason="coba is not installed")
    phi, actions, rewards = trajectories(algorithms.create("linucb"), ROUNDS)
    for r in range(SEEDS):
        coba = learners.LinUCBLearner(alpha=1, features=["a"])
        for t in range(ROUNDS):
            offered = [tuple(row) for row in phi[t, r].tolist()]
            if t:
                assert offered.index(tuple(coba.predict(None, offered)[0])) == actions[t, r]
            a = int(actions[t, r])
            coba.learn(None, offered[a], float(rewards[t, r, a]), 1.0)


def mabwiser(alpha: float) -> Any:
    mab = pytest.importorskip("mabwiser.mab", reason="mabwiser is not installed")
    bandit = mab.MAB(list(range(ARMS)), mab.LearningPolicy.LinUCB(alpha=alpha, l2_lambda=1.0))
    bandit.fit([0], [0.0], np.zeros((1, DIM)))  # it predicts only once fitted: on a context that teaches nothing
    return bandit


def test_every_action_is_mabwisers():
    """MABWiser learns what we played. Arms that were never played are tied; where none is, its best action is ours."""
    alpha = 0.7
    phi, actions, rewards = trajectories(algorithms.create("linucb", model="disjoint", radius=alpha), ROUNDS, PER_ARM)
    context = phi[:, :, 0, :DIM]  # the first block of the first arm
    decided = 0
    for r in range(SEEDS):
        bandit = mabwiser(alpha)
        for t in range(ROUNDS):
            scores = np.array(list(bandit.predict_expectations(context[t, r][None]).values()))
            a = int(actions[t, r])
            assert scores[a] >= scores.max() - 1e-9
            if (scores > scores.max() - 1e-9).sum() == 1:
                decided += 1
                assert int(scores.argmax()) == a
            bandit.partial_fit([a], [float(rewards[t, r, a])], context[t, r][None])
    assert decided > 0.9 * ROUNDS * SEEDS


def test_regret_is_mabwisers_on_its_own():
    """Left alone, with its own way of breaking ties: the same regret up to the interval of the paired difference."""
    phi, actions, rewards = trajectories(algorithms.create("linucb", model="disjoint"), ROUNDS, PER_ARM)
    context = phi[:, :, 0, :DIM]
    lost = rewards.max(-1, keepdims=True) - rewards  # the noise is common to a round's actions
    ours, theirs = np.take_along_axis(lost, actions[..., None], -1)[..., 0].sum(0), np.zeros(SEEDS)
    for r in range(SEEDS):
        bandit = mabwiser(1.0)
        for t in range(ROUNDS):
            a = int(bandit.predict(context[t, r][None]))
            theirs[r] += lost[t, r, a]
            bandit.partial_fit([a], [float(rewards[t, r, a])], context[t, r][None])
    difference = paired_difference_interval(ours, theirs, 0.99)
    assert difference.low <= 0 <= difference.high
    assert abs(float(difference.estimate)) < 0.25 * theirs.mean()
