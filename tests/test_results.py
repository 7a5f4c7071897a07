"""What a simulation returns survives a file, and a damaged file is named."""

import os
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import simbandit
from simbandit import algorithms
from simbandit.draws import Draws
from simbandit.oracles import BradleyTerry
from simbandit.policies import Elliptical, LogLinear, Tabular
from simbandit.results import COLUMNS, load
from simbandit.simulate import Problem, simulate
from simbandit.worlds import LinearWorld

R, X, A, D = 3, 4, 5, 2
WORLD = LinearWorld(X, A, D)


def results(name: str = "greedy", world: Any = WORLD, **options: Any) -> Any:
    chosen: dict[str, Any] = {"rounds": 4, "replicates": R} | options
    return simulate(Problem(world, BradleyTerry(), 0.6), algorithms.create(name), **chosen)


@pytest.mark.parametrize(("name", "kind"), [("greedy", Tabular), ("online_dpo", LogLinear)])
def test_a_file_brings_everything_back(tmp_path, name, kind):
    saved = results(name, keep_data=True)
    assert isinstance(saved.policy, kind)
    saved.save(tmp_path / "run.parquet")
    loaded: Any = simbandit.load(tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(loaded.frame(), saved.frame(), check_exact=True)
    pd.testing.assert_frame_equal(loaded.data, saved.data, check_exact=True)
    assert type(loaded.policy) is kind
    pool: Any = WORLD.instance(R, Draws(0, R)).pool
    assert torch.equal(loaded.policy.log_probs(pool), saved.policy.log_probs(pool))
    assert loaded.configuration == {k: repr(v) for k, v in saved.configuration.items()}
    assert "Greedy(" in loaded.configuration["algorithm"] or "Direct(" in loaded.configuration["algorithm"]
    assert os.listdir(tmp_path) == ["run.parquet"]  # nothing is left beside it


def test_the_file_is_plain_parquet(tmp_path):
    saved = results()
    saved.save(tmp_path / "run.parquet")
    assert tuple(pd.read_parquet(tmp_path / "run.parquet").columns) == COLUMNS


def test_a_policy_of_another_kind_stays_behind(tmp_path):
    saved = results("kl_ucb", LinearWorld(None, A, D, n_evaluation=7))
    assert isinstance(saved.policy, Elliptical)
    saved.save(tmp_path / "run.parquet")
    loaded = load(tmp_path / "run.parquet")
    assert loaded.policy is None
    assert loaded.data is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "run.parquet"
    results().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"path: {path} is truncated or not a Parquet file"):
        load(path)


def test_a_foreign_file_is_named(tmp_path):
    path = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(ValueError, match=rf"path: {path} was not written by Results.save"):
        load(path)
    (tmp_path / "text.parquet").write_text("replicate,round\n")
    with pytest.raises(ValueError, match=r"text.parquet is truncated or not a Parquet file"):
        load(tmp_path / "text.parquet")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.parquet")


def test_saving_replaces_the_old_file_whole(tmp_path):
    path = tmp_path / "run.parquet"
    results(rounds=2).save(path)
    longer = results(rounds=6)
    longer.save(path)
    pd.testing.assert_frame_equal(load(path).frame(), longer.frame())


def test_final_is_the_last_row_of_every_replicate():
    run = results(metrics=["suboptimality", "reward_regret"], record=[1], replicates=[4, 0, 7])
    frame = run.frame()
    for metric, last in (("suboptimality", 4), ("reward_regret", 1)):  # nothing is played in the last row
        rows = frame[(frame["metric"] == metric) & (frame["round"] == last)]
        assert rows["replicate"].tolist() == [4, 0, 7]
        np.testing.assert_array_equal(run.final(metric), rows["value"])
    with pytest.raises(ValueError, match=r"metric: 'regret' was not recorded; recorded are \['reward_regret', 'subopt"):
        run.final("regret")


def test_frames_are_copies():
    run = results()
    frame = run.frame()
    frame["value"] = 0.0
    assert (run.frame()["value"] != 0).any()
