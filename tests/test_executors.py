"""The same bits wherever a cell runs, and no finished cell is lost."""

import os
import signal
import time
import warnings
from typing import Any

import pandas as pd
import pytest
import torch

from simbandit.cells import Task
from simbandit.executors import run_cells, source
from tests.cases import cells, columnless, failing, threads

VARYING = ["seconds", "source"]  # time, and the code, which somebody may be editing


def results(grid, **where):
    return {cell.key: frame.drop(columns=VARYING) for cell, frame in run_cells(grid, **where)}


def assert_equal_bits(first, second):
    assert first.keys() == second.keys()
    for key in first:
        pd.testing.assert_frame_equal(first[key], second[key], check_exact=True)


def test_processes_give_the_same_bits_as_this_process():
    grid = cells(5)
    here = results(grid, jobs=1)
    assert_equal_bits(here, results(grid, jobs=2))
    assert_equal_bits(here, results(grid[::-1], jobs=2))


def test_every_executor_runs_on_one_thread_and_this_process_gets_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        grid = [Task({"i": i}, threads, {}, replicates=1, seed=i) for i in range(3)]
        for jobs in (1, 2):
            assert [frame["value"].tolist() for frame in results(grid, jobs=jobs).values()] == [[1.0]] * 3
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_cell_names_its_labels_after_the_finished_ones_arrived(jobs):
    grid = [*cells(2), Task({"algorithm": "dpo", "n": 3}, failing, {}, replicates=3, seed=77)]
    arrived = []
    finishing = run_cells(grid, jobs=jobs)

    def drain():
        while True:
            arrived.append(next(finishing)[0].key)

    with pytest.raises(ArithmeticError, match="no convergence with seed 77") as caught:
        drain()
    assert caught.value.__notes__ == ["in the cell algorithm='dpo', n=3"]
    if jobs == 1:
        assert arrived == [cell.key for cell in grid[:2]]


def test_a_cell_without_the_columns_is_refused():
    with pytest.raises(ValueError, match="missing: round, queries, metric"):
        results([Task({}, columnless, {}, replicates=3)], jobs=1)


def test_wrong_arguments_are_named():
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"jobs": 0}, "jobs: must be >= 1, got 0"),
        ({"executor": "slurm"}, "executor: must be 'processes' or 'dask', got 'slurm'"),
        ({"scheduler": "tcp://x:1"}, "scheduler: only the dask executor"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            run_cells(cells(1), **arguments)


def test_without_dask_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'simbandit\[dask\]'"):
        list(run_cells(cells(1), executor="dask", jobs=1))


def test_the_source_hash_is_stable():
    assert source() == source()
    assert len(source()) == 12


def test_dask_reruns_the_cells_of_a_killed_worker():
    distributed = pytest.importorskip("distributed")
    grid = cells(6, pause=0.1)
    here = results(grid, jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Dask's own, about the worker that dies
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            victim = next(iter(cluster.workers.values())).pid
            there = {}
            for cell, frame in run_cells(grid, executor="dask", scheduler=cluster.scheduler_address):
                there[cell.key] = frame.drop(columns=VARYING)
                if len(there) == 2:
                    os.kill(victim, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while not cluster.workers and time.monotonic() < deadline:
                time.sleep(0.05)
    assert_equal_bits(here, there)
