"""Estimates of an LM run against the exact values of an enumerable one."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from llm_bridge import EnumerableLM, LMPolicy
from llm_bridge import oracles as judges
from llm_bridge import toy as toys
from llm_bridge.catalogue import Catalogue
from llm_bridge.evaluation import Evaluation, token_sums
from llm_bridge.rows import direct_row
from llm_bridge.training import Training
from simbandit.objective import Descent
from simbandit.simulate import Problem, simulate
from tests.llm_bridge import models


def test_the_kl_estimate_is_unbiased_and_sharper_than_the_log_ratio():
    model = models.gpt2(4, n_embd=8, n_layer=2, n_head=2, window=8).double()
    prompts = [[0], [1, 2]]
    listed = EnumerableLM(model, prompts, 3)
    policy = dataclasses.replace(
        LMPolicy.of(model, None, prompts, max_new_tokens=3), catalogue=Catalogue(prompts, [99])
    )
    noise = np.random.default_rng(0)
    moved = [w + 0.3 * torch.from_numpy(noise.normal(size=tuple(w.shape))) for w in policy.weights]
    other = dataclasses.replace(policy, weights=moved, known={})
    flat = torch.cat([w.flatten() for w in moved])[None]
    exact = dataclasses.replace(listed, parameters=flat).kl_to(listed)[0]
    n = 600
    owners = [i % 2 for i in range(n)]
    drawn = other.generate(owners, noise.random(n).tolist())
    kl, entropy = token_sums(other, policy, owners, drawn)
    table = dataclasses.replace(listed, parameters=flat).table[0]
    ratio = torch.stack([(table - listed.table[0])[x, listed.number(r)] for x, r in zip(owners, drawn, strict=True)])
    for x in (0, 1):
        mine = kl[x::2]
        assert abs(float(mine.mean() - exact[x])) < 4 * float(mine.std()) / len(mine) ** 0.5
        assert mine.std() < 0.8 * ratio.detach()[x::2].std()
        h = -(table.exp() * table).sum(-1)[x]
        assert abs(float(entropy[x::2].mean() - h)) < 4 * float(entropy[x::2].std()) / len(mine) ** 0.5


def test_metrics_of_a_run(toy):
    policy = LMPolicy.from_pretrained(toy, ["about boat :", "about cow :"], training=Training(Descent(6, 3e-3)))
    judge = judges.BradleyTerry(judges.Written(toys.length_reward), temperature=0.2)
    evaluation = Evaluation(policy, judge, judges.Written(toys.length_reward), size=24)
    oracle = judges.TextOracle(policy.catalogue, judge)
    problem = Problem(policy.world(), oracle, 0.1)
    row: Any = direct_row("online_dpo")
    results: Any = simulate(problem, row, rounds=2, batch_size=16, policy=policy, metrics=evaluation.metrics())
    frame: Any = results.frame().pivot(index="round", columns="metric", values="value")
    assert frame.loc[0, "kl_to_reference"] == pytest.approx(0.0, abs=1e-9)
    assert frame.loc[2, "kl_to_reference"] > 5 * frame.loc[2, "kl_to_reference_error"] > 0
    assert frame.loc[2, "win_rate"] > frame.loc[0, "win_rate"]
    assert frame.loc[2, "reward"] > frame.loc[0, "reward"]
    assert frame.loc[2, "length"] > frame.loc[0, "length"]
    assert frame.loc[0, "implied_accuracy"] == 0.5
    assert frame.loc[2, "implied_accuracy"] > 0.6  # longer responses win, and have become likelier
    told = evaluation.intervals(results.policy).set_index("metric")
    for name in ("kl_to_reference", "win_rate", "length"):
        low, mean, high = told.loc[name, ["low", "mean", "high"]].astype(float)
        assert mean == pytest.approx(frame.loc[2, name])
        assert low < mean < high
        error = frame.loc[2, f"{name}_error"]
        assert 2 * error < high - low < 6 * error  # a 95 % interval is near four standard errors wide
    assert frame["entropy"].gt(5).all()
    assert frame["truncated"].between(0, 1).all()
    with pytest.raises(ValueError, match="size: must be at least 2"):
        Evaluation(policy, size=1)
