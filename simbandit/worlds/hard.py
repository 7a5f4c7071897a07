"""Hard instances of the papers, by name: small worlds on which a plausible method fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from simbandit.worlds import arrays
from simbandit.worlds.linear import LinearWorld
from simbandit.worlds.table import TableWorld


def pessimism_failure() -> LinearWorld:
    """Four actions on which the greedy MLE fails for every n: Zhu, Jordan, Jiao (2301.11270), Theorem 3.9,
    App. B.3.

    phi = (1,1,0), (1,0,0), (0,0,0), (0,1,0), theta* = (-1, .1, .9), so r* = (-.9, -1, 0, .1): the fourth
    action is best and the third .1 worse. With n - 1 duels of actions (0, 1) and a single one of (1, 2), that
    one duel says 1 > 2 with probability sigma(-1) = .27; the MLE then plays action 0 or 1 for ever (loss 1 to
    1.1), while its error in the data norm vanishes. Pessimism (reference vector 0) stays at loss .1. The
    duels are the study's: any reference will do here, it is uniform. The paper's ball is |theta| <= 2, sum 0.
    """
    features = [[[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]]
    return LinearWorld(features=features, theta=(-1.0, 0.1, 0.9))


def hidden_gem(n_actions: int = 12, gem_probability: float = 1e-3) -> LinearWorld:
    """One context, one-hot actions; the last is worth 1 and almost never drawn, the others U[0, 1/2], by
    replicate.

    Exploration pays: data from the reference or from the learner's own policy hardly ever shows the gem, and
    an MLE without pessimism first becomes worse than the reference. Own design, for the main agent and
    enhancer of GSHF (2312.11456), which has no simulation; kl_coef = .1 with 32 duels a batch makes the
    point.
    """
    n_actions = arrays.count("n_actions", n_actions, 2)
    gem = arrays.number("gem_probability", gem_probability, 0.0, 1.0, above=True)
    if gem == 1:
        raise ValueError("gem_probability: must be < 1, got 1: the other actions need some mass")
    reference = np.full(n_actions, (1 - gem) / (n_actions - 1))
    reference[-1] = gem
    return LinearWorld(
        n_contexts=1,
        n_actions=n_actions,
        dim=n_actions,
        features="one_hot",
        theta="gem",
        theta_norm=None,
        reference=reference,
    )


def two_arm_exploration(kl_coef: float, c: float = 0.125) -> TableWorld:
    """r = (1, 1/2), ref(first) = exp(-c / kl_coef): the lower bound on passive exploration of XPO
    (2405.21046), Prop. 2.1.

    For T <= exp(1 / (8 kl_coef)) / 2 rounds, with constant probability every iterate of online (and offline,
    and iterative) DPO stays at least 1/8 suboptimal; drawing both actions from the current policy does not
    help. Use the same kl_coef in the Problem.
    """
    kl_coef = arrays.number("kl_coef", kl_coef, 0.0, above=True)
    log_first = -arrays.number("c", c, 0.0, above=True) / kl_coef
    return TableWorld(
        ref_log_probs=[[log_first, math.log(-math.expm1(log_first))]],
        rewards=[[1.0, 0.5]],
        features=np.eye(2)[None],
        reward_range=(0.0, 1.0),
    )


def worst_context_design(n_contexts: int = 200, dim: int = 8, theta_norm: float = 3.0) -> LinearWorld:
    """Most contexts share one direction, the last dim - 1 carry one each: uniform sampling starves these.

    Two actions, phi = e_k and 0, theta* = +-theta_norm / sqrt(dim) in every coordinate, signs by replicate.
    The worst context's gap stays near theta_norm / sqrt(dim) under uniform sampling until T is several times
    n_contexts, while active pairs (APO, Das et al. 2402.10500) learn it in O(dim) duels; the mean gap hides
    it. Own design after APO's claim.
    """
    n_contexts, dim = arrays.count("n_contexts", n_contexts), arrays.count("dim", dim)
    if n_contexts < dim:
        raise ValueError(f"n_contexts: must be >= dim={dim}, one context for each direction, got {n_contexts}")
    direction = np.zeros(n_contexts, dtype=int)
    direction[n_contexts - dim + 1 :] = np.arange(1, dim)
    features = np.stack([np.eye(dim)[direction], np.zeros((n_contexts, dim))], axis=1)
    return LinearWorld(features=features, theta="signs", theta_norm=theta_norm)


def rare_arms(n_rare: int = 50, good_probability: float = 0.5) -> TableWorld:
    """One common good arm (r = .5) and many rare bad ones (r = 0): over-optimisation of an offline reward
    estimate.

    Each rare arm is seen a few times or never; with unit noise some of them look better than the good arm,
    and a greedy or weakly regularised policy moves there. After the motivation of chi-PO (2407.13399), whose
    own instance is not published; meant for `NoisyReward(1.0)` or duels.
    """
    n_rare = arrays.count("n_rare", n_rare)
    good = arrays.number("good_probability", good_probability, 0.0, 1.0, above=True)
    if good == 1:
        raise ValueError("good_probability: must be < 1, got 1: the rare arms need some mass")
    return TableWorld(
        ref_log_probs=np.log([[good, *[(1 - good) / n_rare] * n_rare]]),
        rewards=[[0.5, *[0.0] * n_rare]],
        features=np.eye(n_rare + 1)[None],
        reward_range=(0.0, 1.0),
    )


HARD: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (pessimism_failure, hidden_gem, two_arm_exploration, worst_context_design, rare_arms)
}
"""Name -> function returning the world."""
