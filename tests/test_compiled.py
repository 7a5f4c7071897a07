"""Compiled kernels against the plain lines that they stand in for: the same bits of random numbers, the same scores,
choices and updates to rounding, the same trajectories."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from simbandit import Problem, algorithms, compiled, simulate
from simbandit.algorithms.choosing import choose
from simbandit.draws import Draws
from simbandit.least_squares import LeastSquares
from simbandit.oracles import NoisyReward
from simbandit.types import Contexts
from simbandit.worlds import LinearWorld

pytestmark = pytest.mark.skipif(not compiled.AVAILABLE, reason="the extra `compiled` (numba) is not installed")

R, B, A, D = 5, 2, 7, 3


@pytest.fixture
def plain(monkeypatch):
    """Calls a function with the kernels switched off."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "AVAILABLE", False)
            return function(*arguments, **options)

    return call


@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_drawn_numbers_are_numpys_to_the_last_bit(law, plain):
    """A million numbers: the ziggurat's layers' edges (1 in 80) and its tail (1 in 4,000) among them."""

    def drawn() -> list[torch.Tensor]:
        draws = Draws(12, [0, 3, 2**31, 2**32 - 2], stream="offline/")
        return [draws.once("objects", 250_000, law=law), *(getattr(draws.at(t), law)("x", 40, 16) for t in (0, 90))]

    for mine, reference in zip(drawn(), plain(drawn), strict=True):
        assert mine.dtype == torch.float64
        assert torch.equal(mine, reference)


def test_keys_beyond_32_bits_are_drawn_the_plain_way(plain):
    def drawn():
        return Draws(2**40 + 1, [1, 2**35]).once("x", 9)

    assert torch.equal(drawn(), plain(drawn))
    assert not torch.equal(drawn(), Draws(1, [1, 2**35]).once("x", 9))


def test_directions_are_the_normals_on_the_sphere(plain):
    def drawn():
        draws = Draws(3, R)
        return draws.at(70).direction("x", A, D), draws.once("theta", D, law="direction")

    for mine, reference in zip(drawn(), plain(drawn), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-15, atol=1e-16)
        torch.testing.assert_close(mine.norm(dim=-1), torch.ones(mine.shape[:-1]).double(), rtol=1e-15, atol=0)
    normals = Draws(3, R).at(70).normal("x", A, D)
    torch.testing.assert_close(drawn()[0], normals / normals.norm(dim=-1, keepdim=True), rtol=1e-15, atol=1e-16)


def learnt(own: bool) -> LeastSquares:
    model, rng = LeastSquares(R, D, 0.3, arms=A if own else None), np.random.default_rng(1)
    for _ in range(9):
        phi, r = (torch.from_numpy(rng.normal(size=shape)) for shape in ((R, B, D), (R, B)))
        model.observe(phi, r, torch.from_numpy(rng.integers(A, size=(R, B))))
    return model


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_scores_and_updates_are_the_plain_ones(own, common, plain):
    mine, reference = learnt(own), plain(learnt, own)
    for name in ("theta", "inverse", "log_det"):
        torch.testing.assert_close(getattr(mine, name), getattr(reference, name), rtol=1e-13, atol=1e-13)
    rng = np.random.default_rng(2)
    phi = torch.from_numpy(rng.normal(size=(R, B, 1 if common else A, D))).expand(R, B, A, D)
    for radius in (0.7, torch.from_numpy(rng.uniform(size=(R, A) if own else R))):
        for contexts in (phi, phi[:, :1]):
            expected = reference.scores(contexts, radius)
            torch.testing.assert_close(mine.scores(contexts, radius), expected, rtol=1e-13, atol=1e-13)


def test_the_choice_among_ties_is_the_plain_one(plain):
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(3, size=(R, 400, A)) + 1e-11 * rng.normal(size=(R, 400, A)))
    ref = torch.zeros(R, 400, A).double()
    ref[:, :, 2] = -torch.inf
    contexts = Contexts(ref_log_probs=ref)
    uniforms = torch.from_numpy(rng.uniform(size=(R, 400)))
    chosen = choose(scores, contexts, uniforms)
    assert torch.equal(chosen, plain(choose, scores, contexts, uniforms))
    assert len(chosen.unique()) == A - 1


@pytest.mark.parametrize("model", ["shared", "disjoint"])
@pytest.mark.parametrize("features", ["sphere", "per_arm"])
@pytest.mark.parametrize("radius", ["tuned", "determinant"])
def test_trajectories_are_the_plain_ones(model, features, radius, plain):
    world = LinearWorld(None, A, 2 * A if features == "per_arm" else D, features=features, n_evaluation=4)
    problem = Problem(world, NoisyReward(0.5), 1.0)
    algorithm = algorithms.create("linucb", model=model, radius=radius)

    def regret():
        return simulate(problem, algorithm, rounds=80, replicates=R, metrics=["cumulative_reward_regret"]).frame()

    np.testing.assert_allclose(regret()["value"], plain(regret)["value"], rtol=1e-9, atol=1e-9)


def test_they_can_be_switched_off():
    run = "from simbandit import compiled; print(compiled.AVAILABLE)"
    told = subprocess.run(
        [sys.executable, "-c", run], env={**os.environ, "SIMBANDIT_COMPILED": "0"}, capture_output=True, text=True
    )
    assert told.stdout.strip() == "False", told.stderr
