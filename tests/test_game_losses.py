"""The games' losses: derivatives, formulas, population minimisers by the fit itself, and the rows that use them."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from simbandit import Problem, algorithms, losses, simulate, worlds
from simbandit.algorithms.direct import Direct
from simbandit.algorithms.players import Tilt
from simbandit.draws import Draws
from simbandit.equilibrium import best_response, duality_gap, solve
from simbandit.fits import fit_tabular
from simbandit.metrics import kl
from simbandit.objective import DuelObjective, PairLogProbs, Term
from simbandit.oracles import FullInformation, PreferenceTable, SoftLabels
from simbandit.policies import Geometric, LogLinear, Reference, Tabular, divergence_tilt, normalise
from simbandit.types import Contexts, Setting

R, C, A = 2, 3, 4
KL, STEP = 0.3, 0.7
STEPPED = ["inpo", "onpo", "sppo", "dno", "rspo_reverse_kl", "rspo_forward_kl", "rspo_chi_squared"]
LOSSES: dict[str, Any] = {"ipo": losses.ipo} | {n: partial(getattr(losses, n), step_size=STEP) for n in STEPPED}
RSPO = {"rspo_reverse_kl": "reverse_kl", "rspo_forward_kl": "forward_kl", "rspo_chi_squared": "chi_squared"}


def tensor(array: Any) -> Tensor:
    return torch.as_tensor(np.asarray(array, dtype=float))


def random_game(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Preferences (R, C, A, A), intransitive, and three laws (R, C, A)."""
    lower = np.tril(rng.random((R, C, A, A)), -1)
    preference = tensor(lower + np.triu(1 - lower.swapaxes(-1, -2), 1) + np.eye(A) / 2)
    first, second, third = (normalise(tensor(rng.normal(size=(R, C, A)))) for _ in range(3))
    return preference, first, second, third


def payoff(preference, q):
    return ((preference - 0.5) @ q.exp()[..., None]).squeeze(-1)


def pairs(q):
    """Probabilities (R, C, A, A) of pairs drawn i.i.d. from q."""
    return q.exp()[..., :, None] * q.exp()[..., None, :]


def population(loss, weight, label, ref, last, kl_coef=KL):
    """The expected loss over ordered pairs of actions, weight and label (R, C, A, A)."""
    replicates, contexts, actions = ref.shape
    row = torch.arange(contexts).repeat_interleave(actions**2).expand(replicates, -1)
    pair = torch.cartesian_prod(torch.arange(actions), torch.arange(actions)).repeat(contexts, 1)
    pair = pair.expand(replicates, -1, 2)

    def at(table):
        return table[torch.arange(replicates)[:, None, None], row[..., None], pair]

    return DuelObjective(
        contexts=Contexts(index=torch.arange(contexts).expand(replicates, -1), ref_log_probs=ref),
        terms=(
            Term(
                row=row,
                actions=pair,
                weight=weight.reshape(replicates, -1),
                label=label.reshape(replicates, -1),
                last=at(last),
                ref=at(ref),
                loss=loss,
            ),
        ),
        kl_coef=kl_coef,
        anchored=lambda contexts: ref,
        proximal=0.0,
        bound=math.inf,
    )


def minimiser(loss, weight, label, ref, last, kl_coef=KL, start=None):
    table, info = fit_tabular(last if start is None else start, population(loss, weight, label, ref, last, kl_coef))
    assert info.converged.all()
    return table


def close(actual, expected, tolerance=1e-9):
    """Fits stop at a gradient of 1e-9 and take one more Newton step; most regressions are quadratic, so exact."""
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_exact_derivatives_and_are_affine_in_the_label(name):
    rng, loss = np.random.default_rng(0), LOSSES[name]
    now, last, ref = (tensor(rng.normal(size=(5, 2))) for _ in range(3))
    label = tensor([0.0, 1.0, 0.3, 0.5, 0.9])

    def at(now, label=label):
        return loss(PairLogProbs(now, last, ref), label, 0.6)

    now = now.requires_grad_(True)
    assert torch.autograd.gradcheck(at, now, atol=1e-8)
    assert torch.autograd.gradgradcheck(at, now, atol=1e-7)
    torch.testing.assert_close(at(now), (1 - label) * at(now, 0 * label) + label * at(now, 0 * label + 1))
    swapped = loss(PairLogProbs(now.flip(-1), last.flip(-1), ref.flip(-1)), 1 - label, 0.6)
    torch.testing.assert_close(at(now), swapped)
    assert at(now).shape == label.shape


@pytest.mark.parametrize("name", ["dpo", *LOSSES])
def test_a_duel_of_a_response_with_itself_counts_in_pointwise_losses_alone(name):
    same = tensor([[-1.3, -1.3]]).requires_grad_(True)
    pair = PairLogProbs(same, tensor([[-0.8, -0.8]]), tensor([[-2.0, -2.0]]))
    (gradient,) = torch.autograd.grad(LOSSES.get(name, losses.dpo)(pair, tensor([1.0]), 0.6).sum(), same)
    assert (float(gradient.sum().abs()) > 0.1) == (name in losses.POINTWISE)
    assert all(hasattr(losses, name) for name in losses.POINTWISE)


def test_losses_are_the_papers_formulas():
    now, last, ref, tau, eta = [-1.0, -2.5], [-0.3, -1.1], [-0.9, -0.7], 0.6, 0.4
    pair = PairLogProbs(tensor(now), tensor(last), tensor(ref))

    def value(name, label, **own):
        return float(getattr(losses, name)(pair, tensor(label), tau, **own))

    log_ratio = (now[0] - now[1]) - (ref[0] - ref[1])
    assert value("ipo", 1.0) == pytest.approx((log_ratio - 1 / (2 * tau)) ** 2, rel=1e-13)
    moved = [now[0] - last[0], now[1] - last[1]]
    assert value("onpo", 0.0, step_size=eta) == pytest.approx((moved[1] - moved[0] - eta / 2) ** 2, rel=1e-13)
    # the official SPPO code: beta = 1 / eta, chosen (0) and rejected (1) with their win probabilities
    for p in (1.0, 0.7):
        code = 0.5 * ((moved[0] - (p - 0.5) * eta) ** 2 + (moved[1] - (1 - p - 0.5) * eta) ** 2)
        assert value("sppo", p, step_size=eta) == pytest.approx(code + eta**2 * p * (1 - p), rel=1e-13)
    soft, m = 0.62, (moved[0] - moved[1]) / eta
    entropy = -soft * math.log(1 / (1 + math.exp(-m))) - (1 - soft) * math.log(1 / (1 + math.exp(m)))
    assert value("dno", soft, step_size=eta) == pytest.approx(entropy, rel=1e-13)


@pytest.mark.parametrize("name", RSPO)
def test_rspo_adds_the_divergence_that_it_names(name):
    rng = np.random.default_rng(1)
    preference, ref, last, pi = random_game(rng)
    with_it = population(LOSSES[name], pairs(last), preference, ref, last)
    without = population(LOSSES["sppo"], pairs(last), preference, ref, last)
    added = (with_it(Tabular(pi)) - without(Tabular(pi))) / (2 * STEP * KL)
    divergence = {
        "rspo_reverse_kl": kl(pi, ref),
        "rspo_forward_kl": kl(ref, pi),
        "rspo_chi_squared": (ref.exp() * torch.expm1(pi - ref) ** 2).sum(-1) / 2,
    }[name]
    torch.testing.assert_close(added, divergence.sum(-1))


# ---------------------------------------------------------------------------------------------- population minimisers


def test_pair_losses_step_along_the_win_rates_against_whoever_draws_the_pairs():
    preference, ref, last, q = random_game(np.random.default_rng(2))
    g = payoff(preference, q)
    mirror = normalise((1 - KL * STEP) * last + KL * STEP * ref + STEP * g)
    steps = {"ipo": best_response(q, preference, ref, KL), "inpo": mirror, "onpo": normalise(last + STEP * g)}
    for name, expected in steps.items():
        close(minimiser(LOSSES[name], pairs(q), preference, ref, last), expected)
        own = minimiser(LOSSES[name], pairs(last), preference, ref, last)
        assert (own - expected).abs().max() > 0.01  # i.i.d. sampling from the right law is part of the theorem


def test_ipo_on_one_pair():
    p, ref = 0.8, tensor([[[math.log(0.6), math.log(0.4)]]])
    preference = tensor([[[[0.5, p], [1 - p, 0.5]]]])
    h = minimiser(losses.ipo, torch.ones_like(preference), preference, ref, ref) - ref
    assert float(h[..., 0] - h[..., 1]) == pytest.approx((2 * p - 1) / (2 * KL), rel=1e-12)


def test_nash_md_is_inpo_with_both_responses_from_the_mixture():
    preference, ref, last, _ = random_game(np.random.default_rng(3))
    pull = KL * STEP
    mixed = normalise((1 - pull) * last + pull * ref)
    expected = normalise(mixed + STEP * payoff(preference, mixed))
    close(minimiser(LOSSES["inpo"], pairs(mixed), preference, ref, last), expected)
    close(Geometric((Tabular(last), Tabular(ref)), (1 - pull, pull)).rows(pool(ref)), mixed)


def pool(ref):
    return Contexts(index=torch.arange(ref.shape[1]).expand(len(ref), -1), ref_log_probs=ref)


def test_geometric_mixtures_leave_absent_actions_absent():
    ref = tensor([[[math.log(0.3), -math.inf, math.log(0.7)]]])
    mixed = Geometric((Reference(), Tabular(ref)), (0.25, 0.75)).rows(pool(ref))
    close(mixed.exp(), ref.exp(), 1e-15)


def test_online_ipo_and_ipo_md_are_stationary_at_their_equilibria():
    preference, ref, _, far = random_game(np.random.default_rng(4))
    nash = solve(preference, ref, KL).log_probs
    close(minimiser(losses.ipo, pairs(nash), preference, ref, ref, start=far), nash)
    weight = 0.4
    mixed = solve(preference, ref, KL / (1 - weight)).log_probs
    stationary = best_response(mixed, preference, ref, KL)
    close(normalise((1 - weight) * stationary + weight * ref), mixed)
    close(minimiser(losses.ipo, pairs(mixed), preference, ref, ref, start=far), stationary)
    assert (stationary - nash).abs().max() > 0.05


def test_ipo_on_all_duels_so_far_converges_where_iterated_best_response_cycles():
    """Modes decay as t^(-1 + i omega / kl_coef): KL falls as t^-2, whatever kl_coef."""
    preference = tensor([[[[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]]])  # omega = .289
    ref = tensor([[[0.2, 0.5, 0.3]]]).log()
    gap, total, pi, chaser = {}, torch.zeros_like(preference), ref, ref
    nash = solve(preference, ref, 0.25).log_probs
    for t in range(1, 101):
        total = total + pairs(pi)
        pi = minimiser(losses.ipo, total, preference, ref, ref, kl_coef=0.25, start=pi)
        chaser = best_response(chaser, preference, ref, 0.25)
        gap[t] = float(kl(nash, pi))
    assert 0.8 * 4 < gap[50] / gap[100] < 1.25 * 4
    assert float(kl(nash, chaser)) > 1000 * gap[100]


def test_sppo_unnormalised_is_exact_and_normalised_differs_from_multiplicative_weights():
    preference, ref, last, _ = random_game(np.random.default_rng(5))
    objective = population(LOSSES["sppo"], pairs(last), preference, ref, last)
    (duels,) = objective.terms
    replicate = torch.arange(R)[:, None, None]
    target = last + STEP * payoff(preference, last)  # not normalised
    _, gradient, hessian = duels.derivatives(target[replicate, duels.row[..., None], duels.actions], KL)
    by_action = torch.zeros(R, C * A).double()
    by_action.scatter_add_(1, (duels.row[..., None] * A + duels.actions).flatten(1), gradient.flatten(1))
    close(by_action, torch.zeros_like(by_action), 1e-15)
    assert (hessian().diagonal(dim1=-2, dim2=-1) > 0).all()

    first = tensor([[[0.6, 0.3, 0.1]]]).log()
    cycle = tensor([[[[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]]]])
    fitted = minimiser(partial(losses.sppo, step_size=10.0), pairs(first), cycle, first, first)
    weights = normalise(first + 10 * payoff(cycle, first))
    close(fitted.exp(), tensor([[[0.827, 0.035, 0.138]]]), 5e-4)  # the digits that are printed
    close(weights.exp(), tensor([[[0.839, 0.021, 0.140]]]), 5e-4)
    error = []
    for step in (0.1, 0.05):
        fitted = minimiser(partial(losses.sppo, step_size=step), pairs(first), cycle, first, first)
        error.append(float((fitted - normalise(first + step * payoff(cycle, first))).abs().max()))
    assert 1.8 < math.log2(error[0] / error[1]) < 3.2  # equal to first order in the step


@pytest.mark.parametrize("name", ["sppo", *RSPO])
def test_pointwise_fits_against_an_independent_optimiser(name):
    preference, ref, last, _ = random_game(np.random.default_rng(6))
    fitted = minimiser(LOSSES[name], pairs(last), preference, ref, last)
    for r, c in ((0, 0), (1, 2)):
        weight, label, mu, before = (part[r : r + 1, c : c + 1] for part in (pairs(last), preference, ref, last))
        objective = population(LOSSES[name], weight, label, mu, before)

        def value(logits, objective=objective):
            return float(objective(Tabular(normalise(tensor(logits)[None, None]))))

        found = optimize.minimize(value, np.zeros(A), method="BFGS", options={"gtol": 1e-9})
        assert value(fitted[r, c].numpy()) <= found.fun + 1e-12
        close(normalise(tensor(found.x)), fitted[r, c], 1e-4)  # BFGS on differences of 1e-8


def test_dno_fits_the_exact_step_from_any_law_of_pairs_if_its_labels_are_win_rates():
    preference, ref, last, q = random_game(np.random.default_rng(7))
    r = payoff(preference, last)
    label = torch.sigmoid(r[..., :, None] - r[..., None, :])
    expected = normalise(last + STEP * r)
    close(minimiser(LOSSES["dno"], pairs(q), label, ref, last), expected)
    by_duels = minimiser(LOSSES["dno"], pairs(q), torch.sigmoid(3 * (label - 0.5)), ref, last)
    assert (by_duels - expected).abs().max() > 0.01


def test_dno_on_duels_is_a_step_along_bradley_terry_rewards():
    rng = np.random.default_rng(8)
    _, ref, last, q = random_game(rng)
    rewards = tensor(rng.normal(size=(R, C, A)))
    preference = torch.sigmoid(rewards[..., :, None] - rewards[..., None, :])
    close(minimiser(LOSSES["dno"], pairs(q), preference, ref, last), normalise(last + STEP * rewards), 1e-8)


@pytest.mark.parametrize("kl_coef", [0.5, 3.0])
@pytest.mark.parametrize("name", RSPO)
def test_rspo_is_stationary_at_the_equilibrium_of_its_divergence_and_goes_there(name, kl_coef):
    preference, ref, _, far = random_game(np.random.default_rng(9))

    def response(pi):
        return divergence_tilt(payoff(preference, pi), ref, kl_coef, RSPO[name])

    nash = ref
    for _ in range(200):
        nash = normalise(0.5 * nash + 0.5 * response(nash))
    close(response(nash), nash, 1e-12)
    if name == "rspo_reverse_kl":
        close(nash, solve(preference, ref, kl_coef).log_probs, 1e-11)
    close(minimiser(LOSSES[name], pairs(nash), preference, ref, nash, kl_coef, start=ref), nash, 1e-8)
    pi = far
    for _ in range(25):
        pi = minimiser(LOSSES[name], pairs(pi), preference, ref, pi, kl_coef)
    assert (kl(nash, pi) < 0.01 * kl(nash, far)).all()


def test_inpo_on_the_population_follows_mirror_descent_for_many_rounds():
    preference, ref, _, _ = random_game(np.random.default_rng(10))
    fitted = exact = ref
    for _ in range(25):
        fitted = minimiser(LOSSES["inpo"], pairs(fitted), preference, ref, fitted)
        exact = normalise((1 - KL * STEP) * exact + KL * STEP * ref + STEP * payoff(preference, exact))
        close(fitted, exact)
    assert duality_gap(exact, preference, ref, KL).max() < duality_gap(ref, preference, ref, KL).max() / 20


# -------------------------------------------------------------------------------------------------------------- rows


RPS = np.array([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]])
GAMES = ["dno", "inpo", "ipo_md", "online_ipo", "onpo", "rspo", "sppo", "spo"]


def every_pair(ref, times=1):
    """A batch in which every ordered pair of every context occurs equally often, with exact answers: (R, B)."""
    n_contexts, n = ref.shape[1:]
    row = torch.arange(n_contexts).repeat_interleave(n * n).repeat(times).expand(len(ref), -1)
    pair = torch.cartesian_prod(torch.arange(n), torch.arange(n)).repeat(n_contexts * times, 1)
    return Contexts(index=row, pool=pool(ref)), pair.expand(len(ref), -1, 2)


def one_update(algorithm: Any, preference, kl_coef=KL):
    """The policy after one round in which a uniform policy met itself, exactly."""
    ref = torch.full(preference.shape[:-1], -math.log(preference.shape[-1])).double()
    contexts, actions = every_pair(ref)
    assert contexts.index is not None
    label = preference[torch.arange(len(ref))[:, None], contexts.index, actions[..., 0], actions[..., 1]]
    setting = Setting(
        replicates=len(ref),
        rounds=5,
        batch_size=label.shape[1],
        n_actions=ref.shape[-1],
        dim=None,
        kl_coef=kl_coef,
        reward_range=(0.0, 1.0),
        contexts=pool(ref),
        policy=Tabular(ref),
        feedback="preference",
        n_select=2,
    )
    state, info = algorithm.update(algorithm.init(setting), contexts, actions, label, Draws(0, len(ref)).at(0))
    assert (info.fit_residual < 1e-9 * label.shape[1]).all()
    return algorithm.policy(state).log_probs(pool(ref)), ref


def test_rows_take_their_exact_step_on_exact_duels():
    """Proximal terms of 1e-6 a context against Hessians of about 4 move the answer by less than 1e-5."""
    preference, _, _, _ = random_game(np.random.default_rng(11))
    for name in GAMES:
        algorithm = algorithms.create(name, **({} if name in ("online_ipo", "ipo_md") else {"step_size": STEP}))
        moved, ref = one_update(algorithm, preference)
        g = payoff(preference, ref)
        if name in ("sppo", "rspo"):
            loss = LOSSES["sppo" if name == "sppo" else "rspo_reverse_kl"]
            expected = minimiser(loss, pairs(ref), preference, ref, ref)
        elif name == "onpo":  # once for the kept policy, once more for the one that plays, which came after
            kept = normalise(ref + STEP * g)
            expected = normalise(kept + STEP * g)
        else:
            expected = normalise(ref + (1 / KL if name in ("online_ipo", "ipo_md") else STEP) * g)
        close(moved, expected, 1e-5)
    scheduled: Any = algorithms.create("inpo", schedule=True, value_range="unbounded")
    moved, ref = one_update(scheduled, preference)  # step 2 / (kl_coef (t + 2)) at t = 0
    close(moved, normalise(ref + payoff(preference, ref) / KL), 1e-5)


def test_the_paired_form_of_dno_and_its_win_rates_differ():
    preference = tensor([[[[0.5, 0.8], [0.2, 0.5]]]])
    by_rates, _ = one_update(algorithms.create("dno", step_size=1.0), preference)
    by_duels, _ = one_update(algorithms.create("dno", step_size=1.0, labels="duel"), preference)
    odds = [float(table[0, 0, 0] - table[0, 0, 1]) for table in (by_rates, by_duels)]
    assert odds[0] == pytest.approx(0.65 - 0.35, abs=1e-5)  # P(. beats uniform)
    assert odds[1] == pytest.approx(math.log(0.8 / 0.2), abs=1e-5)  # logit(p)


def cyclic(n_contexts=2):
    return worlds.TableWorld(np.log(np.tile([0.2, 0.5, 0.3], (n_contexts, 1)))), PreferenceTable(RPS)


@pytest.mark.parametrize("name", GAMES)
def test_rows_learn_on_cyclic_preferences(name):
    """Regularised rows fall towards the equilibrium of their game; the averages of the others towards the
    unregularised one, in 40 rounds by half, while the last iterates circle it."""
    world, oracle = cyclic()
    metrics = ["duality_gap", "unregularised_gap", "kl_to_nash"]
    results: Any = simulate(
        Problem(world, oracle, KL),
        algorithms.create(name),
        rounds=40,
        batch_size=256,
        replicates=4,
        metrics=metrics,
        record="all",
        output="average",
    )
    assert results.frame()["value"].notna().all()
    means = results.frame().groupby(["metric", "round"])["value"].mean()
    if name in ("inpo", "rspo", "online_ipo", "ipo_md"):
        late = means["kl_to_nash"].loc[30:].mean()
        assert late < 0.25 * means["kl_to_nash"].loc[0]
    else:
        pi = results.policy.log_probs(world.instance(4, Draws(0, 4)).evaluation).exp()
        average = 2 * (tensor(RPS) @ pi[..., None]).amax((-1, -2)).mean() - 1
        assert average < 0.6 * means["unregularised_gap"].loc[0]
        assert average < 0.6 * means["unregularised_gap"].loc[20:].max()


def test_the_inpo_row_follows_exact_mirror_descent_to_sampling_error():
    """A round's log-odds err by about step_size / (2 sqrt(batch_size pi)) = .25 / sqrt(4000) = .004, so 6 rounds, of
    which the earlier ones fade, by .01: with 25 times the duels a fifth of that. Soft labels still leave the pairs."""
    world, oracle = cyclic(1)
    options: dict[str, Any] = {"rounds": 6, "metrics": ["duality_gap"], "record": [6]}
    exact: Any = simulate(
        Problem(world, FullInformation(oracle), KL), algorithms.create("mirror_descent", step_size=0.5), **options
    )
    evaluation = world.instance(1, Draws(0, 1)).evaluation
    target = exact.policy.log_probs(evaluation)
    assert (target - evaluation.ref_log_probs).abs().max() > 0.25
    row = algorithms.create("inpo", step_size=0.5)
    for judge in (oracle, SoftLabels(oracle)):
        error = []
        for batch_size in (20_000, 800):
            run: Any = simulate(Problem(world, judge, KL), row, batch_size=batch_size, replicates=8, **options)
            error.append(float((run.policy.log_probs(evaluation) - target).square().mean().sqrt()))
        assert error[0] < 0.01
        assert 3 < error[1] / error[0] < 8


def test_the_mixture_plays_between_the_policy_and_the_reference():
    ref = tensor([[[0.2, 0.5, 0.3]]]).log()
    theta = tensor([[0.7, -1.0]])
    features = tensor(np.random.default_rng(12).normal(size=(1, 1, 3, 2)))
    contexts = Contexts(index=torch.zeros(1, 1).long(), features=features, ref_log_probs=ref)
    mixed = Geometric((LogLinear(theta), Reference()), (0.75, 0.25)).rows(contexts)
    close(mixed, LogLinear(0.75 * theta).rows(contexts), 1e-12)
    for weight in (0.0, 1.0):
        row = algorithms.create("online_ipo", players=(Tilt(1 - weight, weight), "current"))
        alike = algorithms.create("online_ipo", players=("reference" if weight else "current", "current"))
        world, oracle = cyclic()
        frames = [simulate(Problem(world, oracle, KL), a, rounds=7, batch_size=5).frame() for a in (row, alike)]
        assert frames[0].equals(frames[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": "fresh", "window": 3}, "window: is of data 'all'"),
        ({"data": "offline", "hybrid": 0.5}, r"hybrid: a share in \[0, 1\] next to online data"),
        ({"schedule": True}, "schedule: True needs a loss with a step_size, dpo has none"),
        ({"labels": "win_rate"}, "labels: 'win_rate' speaks of this round's duels"),
        ({"optimistic": True}, "optimistic: True speaks of this round's duels"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Direct(**fields)


def test_create_changes_a_rows_loss_and_step():
    row: Any = algorithms.create("rspo", loss="rspo_forward_kl", step_size=0.2)
    assert (row.loss, row.loss_parameters, row.anchor) == ("rspo_forward_kl", (("step_size", 0.2),), "last")
    for name in GAMES:
        made: Any = algorithms.create(name)
        assert isinstance(made, Direct)
        assert made == Direct(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})
