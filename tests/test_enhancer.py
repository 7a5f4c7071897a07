"""The KL-ball enhancer's search: feasible always, and near the best that enumeration or brute force finds."""

import numpy as np
import torch

from simbandit import Problem, simulate
from simbandit.algorithms.gshf import GSHF, kl_ball_tilt
from simbandit.estimators import width
from simbandit.metrics import kl
from simbandit.oracles import BradleyTerry
from simbandit.policies import LogLinear
from simbandit.types import Contexts
from simbandit.worlds.hard import hidden_gem


def searched(contexts, theta, inverse, radius, kl_coef, direction=None, size=None):
    """Gamma and kl_coef KL of the tilt that the search returns, (R,) each."""
    direction = torch.zeros_like(theta) if direction is None else direction
    size = torch.zeros_like(theta[:, 0]) if size is None else size
    main = LogLinear(theta)
    v, s = kl_ball_tilt(contexts, main, inverse, radius, kl_coef, direction, size)
    return judged(contexts, theta, inverse, radius, kl_coef, v, s)


def judged(contexts, theta, inverse, radius, kl_coef, v, s):
    log_pi1, log_pi2 = (LogLinear(t).rows(contexts) for t in (theta, theta + s[:, None] * v))
    difference = (log_pi2.exp() - log_pi1.exp()) / contexts.shape[1]
    u = torch.einsum("rxa,rxad->rd", difference, contexts.features)
    return radius * width(u[:, None], inverse)[:, 0], kl_coef * kl(log_pi2, log_pi1).mean(-1)


def test_on_one_hot_features_it_finds_the_most_uncertain_arm_that_the_constraint_allows():
    # Arms 0 to 2 have been compared with each other many times, 3 to 6 hardly; the main agent is nearly certain of
    # arm 0. The top eigenvector of Sigma^-1 is (1, ..., 1), along which a tilt changes nothing.
    arms, radius, kl_coef = 7, 1.0, 0.1
    contexts = Contexts(
        features=torch.eye(arms, dtype=torch.float64)[None, None].expand(2, -1, -1, -1),
        ref_log_probs=torch.full((2, 1, arms), -np.log(arms), dtype=torch.float64),
    )
    seen = torch.zeros(arms, arms, dtype=torch.float64)
    for a, b, weight in ((0, 1, 5), (1, 2, 5), (0, 2, 5), (0, 3, 0.06), (0, 4, 0.05), (1, 5, 0.04), (2, 6, 0.1)):
        z = torch.eye(arms, dtype=torch.float64)[a] - torch.eye(arms, dtype=torch.float64)[b]
        seen += weight * z[:, None] * z
    inverse = torch.linalg.inv(0.01 * torch.eye(arms, dtype=torch.float64) + seen).expand(2, -1, -1)
    theta = torch.tensor([[6.0, 3, 2, 1, 0, -1, -2], [9.0, -1, 0, 0, 1, 2, 0]], dtype=torch.float64)
    stale = torch.eye(arms, dtype=torch.float64)[[1, 2]]  # last round's direction: towards an arm that is known by now
    gamma, cost = searched(contexts, theta, inverse, radius, kl_coef, stale, torch.full((2,), 3.0, dtype=torch.float64))
    log_pi1 = LogLinear(theta).rows(contexts)[:, 0]
    vertices = radius * width(torch.eye(arms, dtype=torch.float64) - log_pi1.exp()[:, None], inverse)
    allowed = torch.where(-kl_coef * log_pi1 <= vertices, vertices, 0.0)
    assert (cost <= gamma + 1e-12).all()
    assert (gamma >= 0.99 * allowed.amax(-1)).all()


def test_online_it_gets_round_to_almost_every_arm():
    # A search that starts only from last round's direction stays with the 2 to 4 arms that it knows. An arm or two may
    # stay out of reach: the constraint forbids what the main agent thinks too unlikely.
    problem = Problem(hidden_gem(n_actions=9), BradleyTerry(), kl_coef=0.1)
    results = simulate(problem, GSHF(), rounds=20, batch_size=32, replicates=6, metrics=["kl_to_ref"], keep_data=True)
    assert results.data is not None
    assert min(results.data.groupby("replicate")["second"].nunique()) >= 7


def test_it_comes_near_the_best_of_thousands_of_random_tilts():
    replicates, n, arms, dim, radius, kl_coef = 40, 3, 5, 4, 1.0, 0.5
    rng = np.random.default_rng(11)

    def normal(*shape):
        return torch.from_numpy(rng.normal(size=shape))

    contexts = Contexts(
        features=normal(replicates, n, arms, dim) / 2,
        ref_log_probs=torch.log_softmax(normal(replicates, n, arms), -1),
    )
    theta, root = 2 * normal(replicates, dim), normal(replicates, dim, dim)
    inverse = root @ root.mT
    gamma, cost = searched(contexts, theta, inverse, radius, kl_coef)
    assert (cost <= gamma + 1e-12).all()
    best = torch.zeros(replicates, dtype=torch.float64)
    for _ in range(150):
        v = normal(replicates, dim)
        for s in np.geomspace(0.1, 30, 12):
            found, paid = judged(contexts, theta, inverse, radius, kl_coef, v, torch.full((replicates,), float(s)))
            best = torch.where((paid <= found) & (found > best), found, best)
    # The search is local: of 40 problems it misses the best maximum of a few, and loses 2 or 3 % on average.
    assert float((gamma / best).mean()) >= 0.96
    assert float((gamma >= 0.99 * best).double().mean()) >= 0.75


def test_with_radius_zero_there_is_nothing_to_find():
    contexts = Contexts(
        features=torch.eye(3, dtype=torch.float64)[None, None], ref_log_probs=torch.zeros(1, 1, 3).double() - np.log(3)
    )
    gamma, cost = searched(contexts, torch.zeros(1, 3).double(), torch.eye(3).double()[None], 0.0, 0.5)
    assert (gamma == 0).all()
    assert (cost <= 1e-12).all()
