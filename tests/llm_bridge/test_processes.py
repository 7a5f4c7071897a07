"""Two processes under `accelerate launch` do what one does: scores, draws, answers, gradients, and files once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from llm_bridge import processes
from tests.llm_bridge.launched import main

ROOT = Path(__file__).parents[2]
# multi_gpu starts several processes on a machine without one too; cpu would start a single one
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += [
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
]  # multi_gpu: torchrun; --cpu starts one process


def shared(folder: Path) -> list[dict[str, Any]]:
    """What both processes tell."""
    folder.mkdir(parents=True)
    command = [sys.executable, *LAUNCH, str(Path(__file__).with_name("launched.py")), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(file.read_text()) for file in sorted(folder.glob("told-*.json"))]


def test_two_processes_are_one(tmp_path):
    alone, both = main(tmp_path / "alone", distributed=False), shared(tmp_path / "shared")
    assert [told["processes"] for told in (alone, *both)] == [1, 2, 2]
    for told in both:
        assert "must be the same on all 2 processes" in told["refused"]
        for name in ("whole", "again", "parts"):
            mine, expected = told[name], alone[name]
            np.testing.assert_allclose(mine["scores"], expected["scores"], rtol=0, atol=1e-10)
            np.testing.assert_allclose(mine["weights"], expected["weights"], rtol=0, atol=1e-7)  # through Adam
            assert mine["responses"] == expected["responses"]
            assert mine["weights"] == both[0][name]["weights"]  # bit for bit on both
        assert told["again"]["weights"] == told["whole"]["weights"]  # read, not trained
    for name, asked in (("whole", True), ("again", False)):
        assert (both[0][name]["questions"] > 0) == (alone[name]["questions"] > 0) == asked
        assert both[1][name]["questions"] == 0
    for run in ("alone", "shared"):
        for where in ("at-once", "parts"):
            assert (tmp_path / run / where / "model" / "model.safetensors").exists()
            fits = sorted(file.name for file in (tmp_path / run / where / "checkpoints").iterdir())
            assert fits == ["fit-000000.safetensors", "fit-000001.safetensors"]


def test_without_a_launch_there_is_one_process():
    assert (processes.number(), processes.rank()) == (1, 0)
    assert processes.share([1, 2, 3]) == processes.dealt([1, 2, 3]) == [1, 2, 3]
    assert processes.from_first(lambda: 5) == 5
    processes.check_alike("anything", 1)
