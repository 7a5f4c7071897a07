"""Losses and the policies that minimise them, against finite differences, closed forms and SciPy."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, special

from simbandit.fits import TOLERANCE, fit_log_linear, fit_tabular
from simbandit.losses import dpo, inpo
from simbandit.objective import DuelObjective, PairLogProbs, Term, variance
from simbandit.policies import LogLinear, Tabular, gibbs, normalise
from simbandit.types import Contexts

R, C, A, U, D = 3, 4, 5, 31, 2
INF = math.inf
LOSSES: dict[str, Any] = {"dpo": dpo, "inpo": partial(inpo, step_size=0.7)}


def winners(log_probs, label, kl_coef):
    """Maximum likelihood of the winner: no function of the gap, and linear, so that all comes from the chain rule."""
    del kl_coef
    return -label * log_probs.now[..., 0] - (1 - label) * log_probs.now[..., 1]


def tensor(array):
    return torch.as_tensor(np.asarray(array, dtype=float))


def random_table(rng, *, absent=False, spread=1.5):
    """(R, C, A) log-probabilities; with `absent`, context x does not offer its first x % 3 actions."""
    logits = tensor(rng.normal(size=(R, C, A)) * spread)
    if absent:
        for x in range(C):
            logits[:, x, : x % 3] = -INF
    return normalise(logits)


def gather(table, row, actions):
    return table[torch.arange(R)[:, None, None], row[..., None], actions]


def problem(rng, loss, *, kl_coef=0.8, bound=INF, proximal=1e-3, absent=False, weight=None, features=None, unseen=0):
    """Random soft duels between different actions; the last `unseen` contexts are in none."""
    ref, last = random_table(rng, absent=absent), random_table(rng, absent=absent)
    row = torch.as_tensor(rng.integers(0, C - unseen, size=(R, U)))
    offered = np.array([[x % 3 if absent else 0, A] for x in range(C)])[row.numpy()]
    first = rng.integers(offered[..., 0], offered[..., 1])
    other = rng.integers(offered[..., 0], offered[..., 1] - 1)
    actions = torch.as_tensor(np.stack([first, other + (other >= first)], axis=-1))
    index = torch.arange(C).expand(R, -1)
    return DuelObjective(
        contexts=Contexts(index=index, ref_log_probs=ref, features=features),
        terms=(
            Term(
                row=row,
                actions=actions,
                weight=tensor(rng.integers(1, 5, size=(R, U))) if weight is None else weight,
                label=tensor(rng.random((R, U))),
                last=gather(last, row, actions),
                ref=gather(ref, row, actions),
                loss=loss,
            ),
        ),
        kl_coef=kl_coef,
        anchored=lambda contexts: ref,
        proximal=proximal,
        bound=bound,
    )


def objective_by_loops(objective, table, r):
    """The docstring's sum, one duel at a time, with the loss on scalars."""
    total, anchor = 0.0, objective.anchored(objective.contexts)
    (duels,) = objective.terms
    for u in range(U):
        x, (a, b) = int(duels.row[r, u]), duels.actions[r, u].tolist()
        now = torch.stack([table[x, a], table[x, b]])
        pair = PairLogProbs(now, duels.last[r, u], duels.ref[r, u])
        total += float(duels.weight[r, u] * duels.loss(pair, duels.label[r, u], objective.kl_coef))
    for x in range(C):
        drift = (table[x] - anchor[r, x])[torch.isfinite(anchor[r, x])]
        total += objective.proximal * float(((drift - drift.mean()) ** 2).mean())
    return total


# ------------------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("name", LOSSES)
def test_losses_against_finite_differences_and_affine_in_the_label(name):
    rng, loss = np.random.default_rng(0), LOSSES[name]
    now, last, ref = (tensor(rng.normal(size=(4, 2)) * 2) for _ in range(3))
    label = tensor([0.0, 1.0, 0.3, 0.5])

    def at(now):
        return loss(PairLogProbs(now, last, ref), label, 0.6)

    now = now.requires_grad_(True)
    assert torch.autograd.gradcheck(at, now, atol=1e-8)
    assert torch.autograd.gradgradcheck(at, now, atol=1e-7)
    ends = [loss(PairLogProbs(now, last, ref), torch.full((4,), y, dtype=torch.float64), 0.6) for y in (0.0, 1.0)]
    torch.testing.assert_close(at(now), (1 - label) * ends[0] + label * ends[1])
    swapped = loss(PairLogProbs(now.flip(-1), last.flip(-1), ref.flip(-1)), 1 - label, 0.6)
    torch.testing.assert_close(at(now), swapped)


def test_losses_are_the_papers_formulas():
    now, last, ref = ([-1.0, -2.5], [-0.3, -1.1], [-0.9, -0.7])
    pair = PairLogProbs(tensor(now), tensor(last), tensor(ref))
    margin = 0.6 * ((now[0] - ref[0]) - (now[1] - ref[1]))
    for y in (1.0, 0.25):
        expected = -y * math.log(special.expit(margin)) - (1 - y) * math.log(special.expit(-margin))
        assert float(dpo(pair, tensor(y), 0.6)) == pytest.approx(expected, rel=1e-14)
    tau, eta = 0.6, 1 / 0.7  # the paper's letters: eq. 9 with y the winner
    h = (now[0] - now[1]) - tau / eta * (ref[0] - ref[1]) - (eta - tau) / eta * (last[0] - last[1])
    assert float(inpo(pair, tensor(1.0), tau, step_size=1 / eta)) == pytest.approx((h - 1 / (2 * eta)) ** 2, rel=1e-13)
    assert float(inpo(pair, tensor(0.0), tau, step_size=1 / eta)) == pytest.approx((-h - 1 / (2 * eta)) ** 2, rel=1e-13)


# --------------------------------------------------------------------------------------------------------- objective


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("absent", [False, True], ids=["full", "ragged"])
def test_the_objective_is_the_sum_of_its_docstring(name, absent):
    rng = np.random.default_rng(1)
    objective = problem(rng, LOSSES[name], absent=absent)
    table = random_table(rng, absent=absent)
    values = objective(Tabular(table))
    for r in range(R):
        assert float(values[r]) == pytest.approx(objective_by_loops(objective, table[r], r), rel=1e-12)


@pytest.mark.parametrize("name", ["dpo", "inpo", "winners"])
def test_derivatives_in_the_log_probabilities(name):
    rng = np.random.default_rng(2)
    objective = problem(rng, LOSSES.get(name, winners))
    (duels,) = objective.terms
    now, h = gather(random_table(rng), duels.row, duels.actions), 1e-5
    value, gradient, hessian = duels.derivatives(now, objective.kl_coef)
    per_duel = duels.weight * duels.loss(PairLogProbs(now, duels.last, duels.ref), duels.label, objective.kl_coef)
    torch.testing.assert_close(value, per_duel)
    for i in (0, 1):
        shift = h * torch.eye(2, dtype=torch.float64)[i]  # every duel at once: they do not interact
        above, below = (duels.derivatives(at, objective.kl_coef) for at in (now + shift, now - shift))
        torch.testing.assert_close(gradient[..., i], (above[0] - below[0]) / (2 * h), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(hessian()[..., i, :], (above[1] - below[1]) / (2 * h), rtol=1e-6, atol=1e-7)


def test_the_variance_is_over_the_offered_actions():
    x = tensor([[1.0, 4.0, INF], [2.0, -1.0, 3.0]])
    offered = torch.tensor([[True, True, False], [True, True, True]])
    torch.testing.assert_close(variance(x, offered), tensor([2.25, np.var([2.0, -1.0, 3.0])]))


# ------------------------------------------------------------------------------------------------------------ tables


def flat_minimum(objective, r, kind="SLSQP"):
    """SciPy over the log-ratios h of one replicate, with the pairwise constraint h_a - h_b <= bound."""
    ref = objective.contexts.ref_log_probs[r]
    offered = torch.isfinite(ref)

    (duels,) = objective.terms

    def loss(h):
        h = torch.as_tensor(h.reshape(C, A)).requires_grad_(True)
        table = torch.log_softmax(ref + torch.where(offered, h, 0.0), -1)
        now = table[duels.row[r][:, None], duels.actions[r]]
        pair = PairLogProbs(now, duels.last[r], duels.ref[r])
        value = (duels.weight[r] * duels.loss(pair, duels.label[r], objective.kl_coef)).sum()
        value = value + objective.proximal * variance(table - objective.anchored(objective.contexts)[r], offered).sum()
        value.backward()
        assert h.grad is not None
        return float(value.detach()), h.grad.numpy().ravel()

    pairs = [(x * A + a, x * A + b) for x in range(C) for a in range(A) for b in range(A) if a != b]
    G = np.zeros((len(pairs), C * A))
    for i, (a, b) in enumerate(pairs):
        G[i, a], G[i, b] = -1, 1
    constraint = {"type": "ineq", "fun": lambda h: G @ h + objective.bound, "jac": lambda h: G}
    constraints = [constraint] if math.isfinite(objective.bound) else []
    found = optimize.minimize(
        loss, np.zeros(C * A), jac=True, method=kind, constraints=constraints, options={"ftol": 1e-15, "maxiter": 2000}
    )
    return found.fun, torch.log_softmax(ref + tensor(found.x.reshape(C, A)), -1)


@pytest.mark.parametrize("bound", [50.0, 1.2, 0.2])
@pytest.mark.parametrize("name", ["dpo", "inpo", "winners"])
def test_a_table_agrees_with_scipy_and_keeps_the_bound(name, bound):
    rng = np.random.default_rng(3)
    objective = problem(rng, LOSSES.get(name, winners), bound=bound, proximal=0.05)
    table, info = fit_tabular(objective.contexts.ref_log_probs, objective)
    assert info.converged.all()
    assert (info.residual <= TOLERANCE * objective.weight).all()
    ratio = table - objective.contexts.ref_log_probs
    assert (ratio.amax(-1) - ratio.amin(-1)).max() <= bound * (1 + 1e-12)
    assert ((ratio.amax(-1) - ratio.amin(-1)).max() > bound * (1 - 1e-9)) == (bound < 50)
    value = objective(Tabular(table))
    for r in range(R):
        peer_value, peer = flat_minimum(objective, r)
        assert value[r] <= peer_value + 1e-9
        torch.testing.assert_close(table[r], peer, atol=3e-5, rtol=0.0)  # sqrt of SLSQP's 1e-10 in the value


@pytest.mark.parametrize("bound", [30.0, 0.4])
def test_no_feasible_perturbation_is_better(bound):
    rng = np.random.default_rng(4)
    objective = problem(rng, dpo, bound=bound, absent=True)
    table, _ = fit_tabular(random_table(rng, absent=True), objective)
    ref, best = objective.contexts.ref_log_probs, objective(Tabular(table))
    ratio = torch.where(objective.offered, table - ref, 0.0)
    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(50):
            moved = ratio + scale * tensor(rng.normal(size=ratio.shape))
            low = torch.where(objective.offered, moved, INF).amin(-1, keepdim=True)
            moved = normalise(ref + torch.minimum(moved, low + bound))
            assert (objective(Tabular(moved)) >= best - 1e-11 * best.abs()).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kl_coef", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_the_answer_does_not_depend_on_where_the_fit_starts(name, kl_coef, hard, size):
    """Also where no duel speaks, and where a response only ever lost: the proximal term decides, and the bound."""
    rng = np.random.default_rng(5)
    weight = size * tensor(rng.integers(1, 5, size=(R, U)))
    objective = problem(
        rng, LOSSES[name], kl_coef=kl_coef, bound=4 / kl_coef, proximal=1e-6, weight=weight, absent=True, unseen=1
    )
    if hard:
        (duels,) = objective.terms
        objective = replace(objective, terms=(replace(duels, label=duels.label.round()),))
    ref = objective.contexts.ref_log_probs
    first, info = fit_tabular(ref, objective)
    assert info.converged.all()
    assert info.iterations.max() <= 40
    torch.testing.assert_close(first[:, C - 1], ref[:, C - 1], atol=1e-9, rtol=0.0)
    for start in (random_table(rng, absent=True), random_table(rng, absent=True, spread=40.0)):
        again, info = fit_tabular(start, objective)
        assert info.converged.all()
        # 1e-16 of the duels' gradients, over the curvature 1e-6 of the proximal term
        torch.testing.assert_close(again, first, atol=1e-6 * max(1.0, 0.01 / kl_coef), rtol=0.0)


def test_a_chain_of_sure_wins_ends_between_the_ends_of_the_box():
    """5 beat 4 and 4 beat 1: one end, the middle, the other end; the proximal term puts the unseen ones in the middle.
    Six actions, because 1/6 is no binary fraction: a step that is off by a rounding of float32 ends elsewhere."""
    n, rng = 200, np.random.default_rng(0)
    ref = normalise(tensor(rng.normal(size=(n, 1, 6))))
    actions = torch.tensor([[4, 5], [1, 4]]).expand(n, -1, -1)
    known = ref[torch.arange(n)[:, None, None], 0, actions]
    duels = Term(
        row=torch.zeros(n, 2, dtype=torch.int64),
        actions=actions,
        weight=torch.ones(n, 2).double(),
        label=torch.zeros(n, 2).double(),
        last=known,
        ref=known,
        loss=dpo,
    )
    contexts = Contexts(index=torch.zeros(n, 1, dtype=torch.int64), ref_log_probs=ref)
    objective = DuelObjective(contexts, (duels,), 0.6, lambda contexts: ref, proximal=1e-3, bound=10.0)
    table, info = fit_tabular(ref, objective)
    assert info.converged.all()
    again, info = fit_tabular(table, objective)
    assert info.converged.all()
    for fitted in (table, again):
        ratio = (fitted - ref)[:, 0]
        ratio = ratio - ratio.amin(-1, keepdim=True)
        torch.testing.assert_close(ratio, tensor([5, 0, 5, 5, 5, 10]).expand(n, -1), atol=1e-6, rtol=0.0)


def test_a_replicate_is_fitted_the_same_alone():
    rng = np.random.default_rng(6)
    objective = problem(rng, dpo, bound=1.0, features=tensor(rng.normal(size=(R, C, A, D))))
    (duels,) = objective.terms
    start, theta = random_table(rng), tensor(rng.normal(size=(R, D)))
    together, linear = fit_tabular(start, objective)[0], fit_log_linear(theta, objective)[0]
    for r in range(R):
        rows = slice(r, r + 1)
        contexts = Contexts(
            index=torch.arange(C).expand(1, -1),
            ref_log_probs=objective.contexts.ref_log_probs[rows],
            features=objective.contexts.features[rows],
        )
        parts = {name: getattr(duels, name)[rows] for name in ("row", "actions", "weight", "label", "last", "ref")}
        alone = replace(
            objective,
            contexts=contexts,
            anchored=lambda contexts: contexts.ref_log_probs,
            terms=(replace(duels, **parts),),
        )
        torch.testing.assert_close(fit_tabular(start[rows], alone)[0][0], together[r], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(fit_log_linear(theta[rows], alone)[0][0], linear[r], atol=1e-12, rtol=1e-12)


def all_pairs(prob, weight, ref, last, loss, kl_coef, proximal=1e-10, bound=60.0):
    """Every ordered pair of every context once, with its exact win probability (R, C, A, A) and weight."""
    x, a, b = (g.ravel() for g in torch.meshgrid(torch.arange(C), torch.arange(A), torch.arange(A), indexing="ij"))
    row, actions = x.expand(R, -1), torch.stack([a, b], dim=-1).expand(R, -1, 2)
    return DuelObjective(
        contexts=Contexts(index=torch.arange(C).expand(R, -1), ref_log_probs=ref),
        terms=(
            Term(
                row=row,
                actions=actions,
                weight=weight.reshape(R, -1),
                label=prob.reshape(R, -1),
                last=gather(last, row, actions),
                ref=gather(ref, row, actions),
                loss=loss,
            ),
        ),
        kl_coef=kl_coef,
        anchored=lambda contexts: ref,
        proximal=proximal,
        bound=bound,
    )


@pytest.mark.parametrize("kl_coef", [0.1, 1.0, 3.0])
def test_dpo_on_a_table_is_gibbs_of_the_reward(kl_coef):
    rng = np.random.default_rng(7)
    ref, rewards = random_table(rng), tensor(rng.normal(size=(R, C, A)))
    prob = torch.sigmoid(rewards[..., :, None] - rewards[..., None, :])
    objective = all_pairs(prob, torch.ones_like(prob), ref, ref, dpo, kl_coef)
    table, info = fit_tabular(ref, objective)
    assert info.converged.all()
    torch.testing.assert_close(table, gibbs(rewards, ref, kl_coef), atol=1e-6, rtol=0.0)
    implied = kl_coef * (table - ref)
    logit = torch.special.logit(prob)
    torch.testing.assert_close(implied[..., :, None] - implied[..., None, :], logit, atol=1e-6, rtol=0.0)


def test_dpo_on_a_table_is_gibbs_of_the_bradley_terry_mle():
    """Win counts that no reward explains: the MLE by SciPy, in the one-hot features of the actions."""
    rng, kl_coef = np.random.default_rng(8), 0.4
    ref = random_table(rng)
    prob, count = tensor(rng.uniform(0.1, 0.9, size=(R, C, A, A))), tensor(rng.integers(1, 9, size=(R, C, A, A)))
    table, info = fit_tabular(ref, all_pairs(prob, count, ref, ref, dpo, kl_coef))
    assert info.converged.all()
    for r, x in np.ndindex(R, C):
        p, n = prob[r, x].numpy(), count[r, x].numpy()

        def nll(reward, p=p, n=n):
            m = reward[:, None] - reward[None]
            slope = n * (special.expit(m) - p)
            return (n * (np.logaddexp(0, m) - p * m)).sum(), slope.sum(1) - slope.sum(0)

        mle = optimize.minimize(nll, np.zeros(A), jac=True, method="BFGS", options={"gtol": 1e-9}).x
        torch.testing.assert_close(table[r, x], gibbs(tensor(mle), ref[r, x], kl_coef), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(("kl_coef", "step_size"), [(0.3, 0.5), (1.0, 1.0), (0.05, 4.0)])
def test_inpo_on_a_table_is_the_mirror_descent_step(kl_coef, step_size):
    rng = np.random.default_rng(9)
    ref, last = random_table(rng, spread=0.8), random_table(rng, spread=0.8)
    prob = tensor(rng.uniform(0.05, 0.95, size=(R, C, A, A)))
    prob = torch.triu(prob, 1) + torch.tril(1 - prob.mT, -1) + 0.5 * torch.eye(A, dtype=torch.float64)  # not transitive
    weight = last.exp()[..., :, None] * last.exp()[..., None, :]  # both responses drawn from the last policy
    objective = all_pairs(prob, weight, ref, last, partial(inpo, step_size=step_size), kl_coef)
    table, info = fit_tabular(last, objective)
    assert info.converged.all()
    assert info.iterations.max() <= 1  # quadratic: one Newton step
    wins = (prob * last.exp()[..., None, :]).sum(-1)
    pull = kl_coef * step_size
    expected = normalise(pull * ref + (1 - pull) * last + step_size * wins)
    torch.testing.assert_close(table, expected, atol=1e-6, rtol=0.0)


def test_the_likelihood_of_winners_is_fitted_by_their_shares():
    """Not a function of gaps, so the terms of the normaliser in gradient and Hessian decide."""
    rng = np.random.default_rng(10)
    ref = random_table(rng)
    prob = tensor(rng.uniform(0.1, 0.9, size=(R, C, A, A)))
    objective = all_pairs(prob, torch.ones_like(prob), ref, ref, winners, 1.0)
    table, info = fit_tabular(ref, objective)
    assert info.converged.all()
    assert info.iterations.max() <= 8  # a wrong Hessian would need dozens
    shares = prob.sum(-1) + (1 - prob).sum(-2)
    torch.testing.assert_close(table.exp(), shares / shares.sum(-1, keepdim=True), atol=1e-7, rtol=0.0)


# ------------------------------------------------------------------------------------------------------- log-linear


@pytest.mark.parametrize("bound", [200.0, 0.5])
@pytest.mark.parametrize("name", ["dpo", "inpo", "winners"])
@pytest.mark.parametrize("absent", [False, True], ids=["full", "ragged"])
def test_a_log_linear_fit_agrees_with_scipy(name, bound, absent):
    rng = np.random.default_rng(11)
    features = tensor(rng.normal(size=(R, C, A, D)))
    objective = problem(rng, LOSSES.get(name, winners), bound=bound, proximal=0.05, features=features, absent=absent)
    theta, info = fit_log_linear(tensor(rng.normal(size=(R, D))), objective)
    assert info.converged.all()
    assert info.iterations.max() <= 9
    longest = torch.where(objective.offered, features.norm(dim=-1), 0.0).amax((-1, -2))
    ball = bound / (2 * longest)
    assert (theta.norm(dim=-1) <= ball * (1 + 1e-12)).all()
    assert (theta.norm(dim=-1) >= ball * (1 - 1e-9)).any() == (bound < 200)
    ratio = torch.where(
        objective.offered, LogLinear(theta).log_probs(objective.contexts) - objective.contexts.ref_log_probs, 0.0
    )
    span = torch.where(objective.offered, ratio, -INF).amax(-1) - torch.where(objective.offered, ratio, INF).amin(-1)
    assert span.max() <= bound * (1 + 1e-9)

    def loss(t, r):
        value = objective(LogLinear(tensor(t).expand(R, D)))
        return float(value[r])

    for r in range(R):
        limit = float(ball[r])
        peer = optimize.minimize(
            loss,
            np.zeros(D),
            args=(r,),
            method="SLSQP",
            constraints=[{"type": "ineq", "fun": lambda t, limit=limit: 1 - t @ t / limit**2}],
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(theta[r], peer.x, atol=1e-5)  # numerical gradients
        assert loss(theta[r].numpy(), r) <= peer.fun + 1e-9 * abs(peer.fun)


@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_features_are_a_table(name):
    rng = np.random.default_rng(12)
    one_hot = torch.eye(C * A, dtype=torch.float64).view(C, A, C * A).expand(R, -1, -1, -1)
    objective = problem(rng, LOSSES[name], bound=500.0, proximal=1e-3, features=one_hot)
    table, _ = fit_tabular(objective.contexts.ref_log_probs, objective)
    theta, info = fit_log_linear(torch.zeros(R, C * A, dtype=torch.float64), objective)
    assert info.converged.all()
    torch.testing.assert_close(LogLinear(theta).log_probs(objective.contexts), table, atol=1e-6, rtol=0.0)


def test_policies_fit_themselves():
    rng = np.random.default_rng(13)
    objective = problem(rng, dpo, bound=2.0, features=tensor(rng.normal(size=(R, C, A, D))))
    start = Tabular(random_table(rng))
    fitted, info = start.fit(objective)
    torch.testing.assert_close(fitted.table, fit_tabular(start.table, objective)[0])
    assert info.converged.all()
    assert (objective(fitted) < objective(start)).all()
    begin = LogLinear(torch.zeros(R, D, dtype=torch.float64))
    linear, info = begin.fit(objective)
    assert info.converged.all()
    assert (objective(linear) < objective(begin)).all()
