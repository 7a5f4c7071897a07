"""Worlds: frozen descriptions of bandit problems whose truth is known exactly once realised."""

from simbandit.worlds.comparisons import (
    Comparisons,
    bradley_terry_scores,
    comparison_groups,
    count_comparisons,
    from_comparisons,
)
from simbandit.worlds.frames import from_frame
from simbandit.worlds.hard import (
    HARD,
    hidden_gem,
    pessimism_failure,
    rare_arms,
    two_arm_exploration,
    worst_context_design,
)
from simbandit.worlds.instance import Coverage, Realisation
from simbandit.worlds.linear import LinearWorld
from simbandit.worlds.logs import logged_duels, logged_rewards
from simbandit.worlds.table import TableWorld

__all__ = [
    "HARD",
    "Comparisons",
    "Coverage",
    "LinearWorld",
    "Realisation",
    "TableWorld",
    "bradley_terry_scores",
    "comparison_groups",
    "count_comparisons",
    "from_comparisons",
    "from_frame",
    "hidden_gem",
    "logged_duels",
    "logged_rewards",
    "pessimism_failure",
    "rare_arms",
    "two_arm_exploration",
    "worst_context_design",
]
