"""Game dynamics as solvers: they reach the certified answer, count their evaluations, and say when they do not."""

import math

import pytest
import torch

from simbandit.algorithms.as_solver import run
from simbandit.algorithms.averaging import Averaged
from simbandit.algorithms.games import (
    BestResponse,
    ExtraGradient,
    FictitiousPlay,
    MagneticDescent,
    MirrorDescent,
    MirrorProx,
    MultiplicativeWeights,
)
from simbandit.equilibrium import solve
from tests.driving import iterates, random_games

K = 0.3
P, REF = random_games(0, 6, 5)


@pytest.mark.parametrize(
    "rule",
    [MirrorDescent(), ExtraGradient(), MirrorProx(), BestResponse(0.5), MagneticDescent(period=None)],
    ids=lambda rule: type(rule).__name__,
)
def test_each_reaches_the_certified_answer(rule):
    certified, found = solve(P, REF, K), run(rule, P, REF, K)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.log_probs, certified.log_probs, atol=1e-11, rtol=0)
    assert float(found.duality_gap.max()) < 1e-22
    assert bool((found.iterations > certified.iterations).all())
    assert len(set(found.iterations.tolist())) > 1  # every game stops by itself
    for g, taken in enumerate(found.iterations.tolist()):  # at the first evaluation after which it holds
        path = iterates(rule, P[g : g + 1], REF[g : g + 1], K, taken)
        torch.testing.assert_close(path[-1, 0], found.log_probs[g], atol=1e-13, rtol=0)
        short = run(rule, P[g], REF[g], K, max_evaluations=taken - 1)
        assert not bool(short.converged)
        assert int(short.iterations) == taken - 1


def test_slow_and_unregularised_rules_say_so():
    slow = run(FictitiousPlay(), P, REF, K, max_evaluations=2000)
    assert not bool(slow.converged.any())
    assert bool((slow.iterations == 2000).all())
    assert float((slow.log_probs - solve(P, REF, K).log_probs).abs().max()) < 1e-2
    assert float(slow.duality_gap.max()) < 1e-5
    assert not bool(run(MultiplicativeWeights(), P, REF, K, max_evaluations=300).converged.any())
    loose = run(FictitiousPlay(), P, REF, K, tolerance=1e-3)
    assert bool(loose.converged.all())


def test_the_extragradient_takes_twice_the_evaluations_of_its_steps():
    k, step = 0.3, 1 / 1.3
    found = run(ExtraGradient(), P, REF, k)
    assert bool((found.iterations % 2 == 0).all())
    assert float(found.iterations.double().median()) < 2 * math.log(1e-14) / math.log(1 - step * k)  # its rate


def test_shapes_averages_and_absent_actions():
    ref = REF.clone()
    ref[:, 1] = -torch.inf
    ref = torch.log_softmax(ref, -1)
    found = run(ExtraGradient(), P.view(2, 3, 5, 5), ref.view(2, 3, 5), K)
    assert found.log_probs.shape == (2, 3, 5)
    torch.testing.assert_close(found.log_probs.view(6, 5), solve(P, ref, K).log_probs, atol=1e-11, rtol=0)
    single = run(MirrorDescent(), P[0], REF[0], K)
    assert single.iterations.shape == ()
    mean = run(Averaged(MirrorDescent()), P, REF, K, max_evaluations=40)
    assert not bool(mean.converged.any())  # a mean of all iterates forgets its start as 1 / t


def test_bad_games_are_refused_as_by_the_solver():
    with pytest.raises(ValueError, match="kl_coef: must be > 0"):
        run(MirrorDescent(), P, REF, 0.0)
    with pytest.raises(ValueError, match="skew"):
        run(MirrorDescent(), 0.9 * P + 0.07, REF, K)
    with pytest.raises(ValueError, match="ref_log_probs: must be log-probabilities"):
        run(MirrorDescent(), P, REF.exp(), K)
