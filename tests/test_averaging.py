"""The average iterate, Nash-MD with a mixture of its own, and the frequencies of a game."""

import math

import numpy as np
import pytest
import torch

from simbandit import Problem, simulate
from simbandit.algorithms.averaging import Averaged
from simbandit.algorithms.games import ExtraGradient, MultiplicativeWeights, NashMD
from simbandit.equilibrium import best_response, frequencies, solve
from simbandit.oracles import FullInformation, UniformTriangular, cycle, rock_paper_scissors
from simbandit.policies import Tabular
from simbandit.worlds import TableWorld

REF = np.log([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
KL = 0.1


def table(algorithm, rounds, oracle=None, record=None):
    problem = Problem(TableWorld(REF), FullInformation(oracle or UniformTriangular()), KL)
    done = simulate(problem, algorithm, rounds=rounds, replicates=4, metrics=["kl_to_ref"], record=record or [0])
    assert isinstance(done.policy, Tabular)
    return done.policy.table


@pytest.mark.parametrize(("rule", "rounds"), [(MultiplicativeWeights(0.7), 6), (ExtraGradient(0.4), 8)])
def test_the_average_is_the_mean_of_probabilities_over_rounds(rule, rounds):
    iterates = [torch.from_numpy(REF).exp().expand(4, 2, 3)]
    iterates += [table(rule, t).exp() for t in range(1, rounds + 1)]
    mean = torch.stack(iterates).mean(0)
    torch.testing.assert_close(table(Averaged(rule), rounds).exp(), mean, atol=1e-14, rtol=0.0)
    assert (mean - iterates[-1]).abs().max() > 1e-3


def test_an_average_plays_as_its_rule_does():
    rule = MultiplicativeWeights(0.7)
    problem = Problem(TableWorld(REF), UniformTriangular(), KL)
    runs = [
        simulate(problem, algorithm, rounds=5, batch_size=3, replicates=2, metrics=["kl_to_ref"], keep_data=True).data
        for algorithm in (rule, Averaged(rule))
    ]
    assert runs[0] is not None
    assert runs[0].equals(runs[1])


def test_nash_md_with_a_mixture_of_its_own_stops_where_that_mixture_says():
    """The mixture is the equilibrium at kl_coef / (1 - weight), the policy the best response to it."""
    oracle = cycle(-0.4, -0.4, -0.3)
    preference, ref = torch.tensor(np.asarray(oracle.preference)), torch.from_numpy(REF)
    for weight in (None, 0.3):
        w = 0.5 * KL if weight is None else weight
        opponent = solve(preference, ref, KL / (1 - w)).log_probs
        predicted = best_response(opponent, preference, ref, KL)
        found = table(NashMD(0.5, mixture=weight), 900, oracle)
        torch.testing.assert_close(found, predicted.expand(4, 2, 3), atol=1e-10, rtol=0.0)
    assert torch.equal(table(NashMD(0.5, mixture=0.05), 30, oracle), table(NashMD(0.5), 30, oracle))
    with pytest.raises(ValueError, match=r"mixture: must lie in \[0, 1\]"):
        NashMD(0.5, mixture=1.5)


def test_frequencies_are_the_imaginary_eigenvalues():
    generator = np.random.default_rng(3)
    lower = generator.random((2, 4, 5, 5))
    preference = torch.from_numpy((lower + 1 - np.swapaxes(lower, -1, -2)) / 2)
    log_p = torch.log_softmax(torch.from_numpy(generator.normal(size=(2, 4, 5))), -1)
    p = log_p.exp()
    values = torch.linalg.eigvals((preference - 0.5) @ (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]))
    found = frequencies(log_p, preference)
    torch.testing.assert_close(found, values.imag.abs().sort(-1).values, atol=1e-14, rtol=0.0)
    assert found[..., 0].max() < 1e-15 < found[..., -1].min()


def test_frequencies_of_three_actions_in_closed_form():
    """omega = sqrt(abc / (a + b + c)) at the interior equilibrium: 1 / sqrt(12) for rock-paper-scissors."""
    for oracle, p, omega in (
        (rock_paper_scissors(), [1 / 3] * 3, 1 / math.sqrt(12)),
        (cycle(-0.4, -0.4, -0.3), [4 / 11, 3 / 11, 4 / 11], 0.2088931871),
    ):
        log_p = torch.tensor(p, dtype=torch.float64).log()
        found = frequencies(log_p, torch.tensor(np.asarray(oracle.preference))[0])
        assert found[-1] == pytest.approx(omega, abs=1e-10)
    absent = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()  # two actions do not rotate
    assert frequencies(absent, torch.tensor(np.asarray(oracle.preference))[0]).abs().max() < 1e-16
