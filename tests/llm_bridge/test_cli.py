"""The command, in this process, on the toy model: files in and out, plans without work, errors in one line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from llm_bridge import LMPolicy, candidate_pool, loading
from llm_bridge import oracles as judges
from llm_bridge import toy as toys
from llm_bridge.cli import main
from llm_bridge.commands import Train
from llm_bridge.preflight import FACTORS, preflight
from llm_bridge.rows import direct_row
from simbandit.algorithms.dynamics import stable_step


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"about {noun} :"}) + "\n" for noun in ("boat", "cow", "drum")))
    return file


def failing(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_every_command_teaches(capsys):
    for command in ("toy", "score", "sample", "pool", "preflight", "train"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert "--output" in (shown := capsys.readouterr().out) or command == "preflight"
        assert len(shown) > 500 or command == "toy"


def test_sample_then_score(toy, tmp_path, prompts, capsys):
    said, scored = tmp_path / "said.jsonl", tmp_path / "scored.parquet"
    common = ["--model", str(toy), "--prompts", str(prompts), "--output", str(said), "--k", "2"]
    main(["sample", *common, "--dry-run"])
    assert "84,144 parameters" in capsys.readouterr().out
    assert not said.exists()
    main(["sample", *common])
    first = said.read_text()
    main(["sample", *common])
    assert said.read_text() == first
    main(["score", "--model", str(toy), "--input", str(said), "--output", str(scored)])
    frame = pd.read_parquet(scored)
    assert len(frame) == 6
    assert max(frame["log_prob"].tolist()) < 0
    model, tokenizer = loading.load_model(toy), loading.load_tokenizer(toy)
    row = frame.iloc[4]
    ids = [1, *tokenizer(row["prompt"])["input_ids"], *tokenizer(row["response"])["input_ids"], 2]
    with torch.no_grad():
        laws = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    n = row["tokens"]
    expected = laws[-n - 1 : -1].gather(1, torch.tensor(ids[-n:])[:, None]).sum()
    assert row["log_prob"] == pytest.approx(float(expected), abs=1e-3)


def test_the_defaults_of_train_are_stable_in_every_game():
    command = Train(model="toy", judge="toy:true", output=Path("out"))
    step = dict(direct_row(command.algorithm).loss_parameters)["step_size"]
    assert step <= 2 * stable_step(command.kl_coef)


def test_train_goes_on_and_leaves_a_model(toy, tmp_path, prompts, capsys):
    out = tmp_path / "trained"
    command = ["train", "--model", toy, "--prompts", prompts, "--judge", "toy:length", "--algorithm", "online_dpo"]
    command += ["--rounds", 2, "--batch-size", 16, "--steps", 6, "--learning-rate", 0.003, "--evaluation", 16]
    arguments = [str(a) for a in [*command, "--output", out]]
    main([*arguments, "--dry-run"])
    assert not out.exists()
    main(arguments)
    shown = capsys.readouterr().out
    assert "'<bos> about boat :'" in shown
    curve = pd.read_csv(out / "curve.csv")
    assert curve["length"].iloc[-1] > curve["length"].iloc[0]
    main(arguments)
    assert "0 questions asked" in capsys.readouterr().out
    assert pd.read_csv(out / "curve.csv").equals(curve)
    trained, start = (LMPolicy.from_pretrained(p, ["about boat :"], max_new_tokens=20) for p in (out / "model", toy))
    uniforms = np.random.default_rng(0).random(40).tolist()
    lengths = [np.mean([len(r) for r in policy.generate([0] * 40, uniforms)]) for policy in (trained, start)]
    assert lengths[0] > lengths[1]


def test_pool_and_preflight(toy, tmp_path, prompts, capsys):
    common = ["--model", str(toy), "--prompts", str(prompts), "--k", "5"]
    main(["pool", *common, "--judge", "toy:true", "--output", str(tmp_path / "pool")])
    assert "5 different candidates" in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "pool" / "part-000000.parquet")) <= 15
    options = ["--dim", "3", "--rounds", "4", "--replicates", "3", "--algorithms", "greedy,online_dpo"]
    main(["preflight", *common, "--judge", "toy:intransitive", *options])
    page = capsys.readouterr().out
    assert page.count("1. ") == page.count("2. ") == len(FACTORS)
    assert "circulates" in page
    assert "FLOPs" in page


def test_preflight_tells_a_circulating_judge_from_a_reward(toy):
    policy = LMPolicy.from_pretrained(toy, ["about boat :", "about cow :"], max_new_tokens=24)
    world = candidate_pool(policy, 6, dim=3)
    options = {"rounds": 3, "batch_size": 8, "replicates": 4}
    reports = [
        preflight(policy, world, judge, ["greedy", "uniform"], kl_coef=0.2, **options)
        for judge in (
            judges.Preferring(toys.intransitive_raters),
            judges.BradleyTerry(judges.Written(toys.true_reward)),
        )
    ]
    share = "share of the judge's logits that circulates (0: a reward explains it)"
    assert reports[0].judge[share] > 0.2
    assert reports[1].judge[share] < 1e-9
    frame = reports[1].curves
    for low, gap, high in zip(*(frame[name].tolist() for name in ("low", "gap", "high")), strict=True):
        assert low <= gap + 1e-12
        assert gap <= high + 1e-12
    assert list(reports[1].ranking()["gap"]) == sorted(reports[1].ranking()["gap"])


def test_errors_are_one_line(toy, tmp_path, prompts, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "about boat :"}\n')
    out = tmp_path / "out.jsonl"
    assert "does not exist" in failing(capsys, "score", "--model", toy, "--input", out, "--output", out)
    assert "needs rows with prompt, response" in failing(
        capsys, "score", "--model", toy, "--input", rows, "--output", out
    )
    shared = ("--model", toy, "--prompts", prompts, "--output", out)
    assert "toy:nice is no toy reward" in failing(capsys, "train", *shared, "--judge", "toy:nice")
    assert "greedy is model-based" in failing(capsys, "train", *shared, "--judge", "toy:true", "--algorithm", "greedy")
    assert "must be toy:NAME" in failing(capsys, "pool", *shared, "--judge", "magic")
    (tmp_path / "bare").mkdir()
    assert "brings none (prompts.jsonl)" in failing(capsys, "sample", "--model", tmp_path / "bare", "--output", out)
