"""The command, in this process, on the toy model: files in and out, plans without work, errors in one line."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from llm_bridge import LMPolicy, loading
from llm_bridge.cli import main
from llm_bridge.commands import Train
from llm_bridge.preflight import FACTORS
from llm_bridge.rows import direct_row
from simbandit.algorithms import create
from simbandit.algorithms import names as registered
from simbandit.algorithms.direct import Direct
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
    common = ["--model", str(toy), "--prompts", str(prompts), "--k", "5", "--limit", "2"]
    main(["pool", *common, "--judge", "toy:true", "--output", str(tmp_path / "pool")])
    assert "2 prompts, 5 to 5 different candidates each" in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "pool" / "part-000000.parquet")) == 10
    options = ["--dim", "3", "--rounds", "4", "--replicates", "3", "--algorithms", "greedy,inpo", "--held", "4"]
    kept = ["--pool", str(tmp_path / "kept"), "--output", str(tmp_path / "page")]
    command = ["preflight", *common, "--judge", "toy:intransitive", *options, *kept]
    main(command)
    page = capsys.readouterr().out
    assert "1. " in page
    assert "2. " in page
    assert "circulation" in page
    assert "Bradley-Terry" in page
    assert "K = 5" in page
    assert "time: " in page
    report = json.loads((tmp_path / "page" / "report.json").read_text())
    assert report["metric"] == "duality_gap"
    assert {row["algorithm"] for row in report["ranking"]} == {"greedy", "inpo"}
    assert len(report["sensitivity"]) == len(FACTORS)
    answers = (tmp_path / "kept" / "answers.jsonl").read_text()
    main(command)
    again = json.loads((tmp_path / "page" / "report.json").read_text())
    assert again["ranking"] == report["ranking"]
    assert again["restriction"] == report["restriction"]
    assert (tmp_path / "kept" / "answers.jsonl").read_text() == answers
    assert "greddy" in failing(capsys, *command[:-4], "--algorithms", "greddy")


def test_every_command_has_a_dry_run_that_writes_nothing(toy, tmp_path, prompts, capsys):
    said, out = tmp_path / "said.jsonl", tmp_path / "out"
    said.write_text('{"prompt": "about boat :", "response": "the boat ."}\n')
    shared = ["--model", toy, "--prompts", prompts]
    for command, told in (
        (["toy", "--output", out], "would train 800 steps"),
        (["score", "--model", toy, "--input", said, "--output", out], "at most about 8 tokens"),
        (["sample", *shared, "--output", out, "--k", 5], "at most about 480 tokens"),
        (["pool", *shared, "--output", out, "--k", 5], "15 draws, each scored and encoded"),
        (["preflight", *shared, "--judge", "toy:intransitive", "--pool", out, "--flops", 1e9], "936 questions"),
        (["train", *shared, "--judge", "toy:true", "--output", out], "optimiser steps a round, fresh duels"),
    ):
        main([str(a) for a in [*command, "--dry-run"]])
        shown = capsys.readouterr().out
        assert told in shown, command
        assert "84,144 parameters" in shown
        assert "FLOPs" in shown
        assert not out.exists()


def test_the_line_of_the_readme_runs(toy, tmp_path, monkeypatch, capsys):
    """Its commands in their order, with smaller sizes appended; the model is the one trained already."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    line = next(block for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S) if "llm-bridge toy" in block)
    smaller = {
        "pool": ["--limit", "2"],
        "preflight": ["--limit", "2", "--rounds", "2", "--replicates", "2", "--held", "2", "--dim", "2"],
        "train": ["--limit", "2", "--rounds", "1", "--batch-size", "4", "--steps", "2", "--evaluation", "4"],
    }
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy, tmp_path / "toy")
    commands = [shlex.split(part) for part in line.replace("\\\n", " ").split("&&")]
    assert [command[1] for command in commands] == ["toy", "sample", "score", "pool", "preflight", "train"]
    assert all(command[0] == ".venv/bin/llm-bridge" for command in commands)
    for command in commands[1:]:
        main([*command[1:], *smaller.get(command[1], [])])
    written = {file.name for file in tmp_path.iterdir()}
    assert written == {"toy", "said.jsonl", "scored.jsonl", "pool", "page", "trained"}
    assert "Ranking at kl_coef 0.2" in capsys.readouterr().out


@pytest.mark.parametrize("name", [n for n in registered() if isinstance(create(n), Direct)])
def test_train_takes_every_direct_row(toy, tmp_path, prompts, capsys, name):
    """A dry run, and one real step of two duels."""
    command = ["train", "--model", toy, "--prompts", prompts, "--judge", "toy:true", "--algorithm", name]
    small = ["--rounds", 1, "--batch-size", 2, "--steps", 1, "--evaluation", 2, "--max-new-tokens", 5]
    arguments = [str(a) for a in [*command, *small, "--output", tmp_path / "out"]]
    main([*arguments, "--dry-run"])
    assert f"{name}: Direct(" in capsys.readouterr().out
    main(arguments)
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    assert len(pd.read_csv(tmp_path / "out" / "curve.csv")) == 2


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
