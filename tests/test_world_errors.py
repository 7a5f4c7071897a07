"""What a world refuses: every message names the argument, what was wrong and what is allowed."""

import numpy as np
import pytest

from simbandit.draws import Draws
from simbandit.worlds import LinearWorld, TableWorld

X, A, D = 7, 4, 5
FLAT = np.full((2, 3), -np.log(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_contexts": 0}, r"n_contexts: must be an integer >= 1, got 0"),
        ({"n_actions": -2}, r"n_actions: must be an integer >= 1, got -2"),
        ({"dim": 2.5}, r"dim: must be an integer >= 1, got 2.5"),
        ({"n_actions": True}, r"n_actions: .* got True"),
        ({"n_evaluation": 0}, r"n_evaluation: must be"),
        (
            {"n_contexts": 10**7, "dim": 100},
            r"n_contexts, n_actions, dim: .* would need 30\.4 GB; at most 4 GB",
        ),
        ({"n_contexts": None, "dim": 10**9}, r"n_evaluation, n_actions, dim: .* GB"),
        ({"features": "cube"}, r"features: must be one of sphere, ball, .* or an array, got 'cube'"),
        ({"theta": "cube"}, r"theta: must be one of sphere"),
        ({"reference": "cube"}, r"reference: must be one of uniform"),
        ({"context_law": "cube"}, r"context_law: must be one of zipf"),
        ({"theta_norm": -1.0}, r"theta_norm: must be a finite number >= 0, got -1.0"),
        ({"theta_norm": np.nan}, r"theta_norm: must be a finite number >= 0, got nan"),
        ({"theta_scale": 2.0}, r"theta_scale: .* needs theta_norm=None"),
        ({"theta_scale": 0.0, "theta_norm": None}, r"theta_scale: must be a finite number > 0, got 0.0"),
        ({"reference_strength": np.inf}, r"reference_strength: must be a finite number, got inf"),
        (
            {"features": "one_hot", "dim": 6},
            r"dim: one_hot features need dim = n_actions = 4, or .* = 28, got 6",
        ),
        ({"features": "per_arm", "dim": 6}, r"dim: per_arm features need a multiple of n_actions=4"),
        ({"features": np.zeros((2, A, D)), "n_contexts": 9}, r"n_contexts: the given features has 2, got 9"),
        ({"features": np.zeros((X, 3, D))}, r"n_actions: the given features has 3, got 4"),
        (
            {"features": np.zeros((A, D))},
            r"features: must have shape \(X, A, d\), none of them 0, got \(4, 5\)",
        ),
        (
            {"features": np.full((X, A, D), np.nan)},
            r"features: must be finite, got nan at \[0, 0, 0\] \(140 such",
        ),
        ({"theta": [1.0, np.inf, 0, 0, 0]}, r"theta: must be finite, got inf at \[1\]"),
        ({"theta": ["a"] * 5}, r"theta: must be an array of numbers"),
        (
            {"theta": np.ones(D), "theta_norm": 1.0},
            r"theta_norm: a given theta is used as it is, norm 2.23607",
        ),
        ({"theta": np.ones(3), "features": np.zeros((X, A, D))}, r"dim: the given theta has 3, got 5"),
        ({"theta": np.ones(3), "dim": 6}, r"dim: the given theta has 3, got 6"),
        (
            {"reference": (0.5, 0.2, 0.2, 0.2)},
            r"reference: probabilities must sum to 1 \(to 1e-09\), got 1.1",
        ),
        ({"reference": (0.5, 0.2, 0.2, 0.1 + 1e-8)}, r"reference: probabilities must sum to 1"),
        ({"reference": (1.5, -0.5, 0, 0)}, r"reference: probabilities must be >= 0, got -0.5"),
        ({"reference": (0, 0, 0, 0)}, r"reference: probabilities must sum to 1 .* got 0"),
        ({"reference": (0.5, 0.5)}, r"reference: must have shape \(4,\) or \(7, 4\), got \(2,\)"),
        (
            {"reference": np.full((3, A), 0.25)},
            r"reference: must have shape \(4,\) or \(7, 4\), got \(3, 4\)",
        ),
        ({"reference": np.full((3, A), 0.25), "n_contexts": None}, r"reference: must have shape \(4,\), got"),
        ({"context_law": (0.5, 0.5)}, r"context_law: must hold n_contexts=7 numbers, got 2"),
        ({"context_law": (0.5, np.nan)}, r"context_law: must be finite"),
        ({"context_law": "zipf", "n_contexts": None}, r"context_law: is the law of a finite pool"),
    ],
)
def test_a_linear_world_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        LinearWorld(**{"n_contexts": X, "n_actions": A, "dim": D, **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"ref_log_probs": np.zeros(3)},
            r"ref_log_probs: must have shape \(X, A\), none of them 0, got \(3,\)",
        ),
        ({"ref_log_probs": np.zeros((0, 3))}, r"ref_log_probs: must have shape"),
        (
            {"ref_log_probs": np.full((2, 3), np.nan)},
            r"ref_log_probs: must be finite, or -inf .* NaN or \+inf",
        ),
        (
            {"ref_log_probs": np.zeros((2, 3))},
            r"ref_log_probs: probabilities must sum to 1 \(to 1e-09\), got 3",
        ),
        ({"ref_log_probs": [[0.0, -np.inf], [-np.inf, -np.inf]]}, r"context 1 has zero mass everywhere"),
        ({"rewards": np.zeros((3, 2))}, r"rewards: must agree with ref_log_probs, \(2, 3\), got \(3, 2\)"),
        ({"rewards": [[0, 1, np.inf], [0, 0, 0]]}, r"rewards: must be finite, got inf at \[0, 2\] \(1 such"),
        ({"features": np.zeros((2, 3))}, r"features: must have shape \(X, A, d\)"),
        ({"features": np.zeros((2, 4, 3))}, r"features: must agree with ref_log_probs"),
        ({"weights": [0.5, 0.6]}, r"weights: probabilities must sum to 1"),
        ({"weights": [0.5, 0.25, 0.25]}, r"weights: must agree with ref_log_probs"),
        ({"reward_range": (1.0, 0.0)}, r"reward_range: low must be <= high"),
        ({"reward_range": (0.0, np.nan)}, r"reward_range: must be a finite number, got nan"),
        ({"reward_range": (0.0, 1.0, 2.0)}, r"reward_range: must be two numbers"),
        (
            {"reward_range": (0.0, 0.5), "rewards": np.eye(2, 3)},
            r"reward_range: must hold the rewards, .* 0.0 to 1.0",
        ),
        ({"context_names": ["a"]}, r"context_names: must be 2 different labels, got 1"),
        ({"action_names": ["a", "b", "a"]}, r"action_names: must be 3 different labels"),
    ],
)
def test_a_table_world_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        TableWorld(**{"ref_log_probs": FLAT, **arguments})


def test_an_instance_refuses_too_many_or_other_replicates():
    with pytest.raises(ValueError, match=r"replicates: must be 3, as many as the draws hold, got 4"):
        LinearWorld().instance(4, Draws(0, 3))
    with pytest.raises(ValueError, match=r"replicates: must be 3"):
        TableWorld(FLAT).instance(4, Draws(0, 3))
    large = LinearWorld(n_contexts=1000, n_actions=100, dim=100)
    with pytest.raises(ValueError, match=r"replicates: 500 replicates' tables would need 38\.0 GB; at most 4 GB"):
        large.instance(500, Draws(0, 500))


def test_a_world_without_rewards_says_so():
    instance = TableWorld(FLAT).instance(3, Draws(0, 3))
    assert not instance.has_rewards
    with pytest.raises(ValueError, match="this world has no rewards"):
        instance.rewards(instance.evaluation)
    with pytest.raises(ValueError, match="no features"):
        _ = instance.evaluation.features
