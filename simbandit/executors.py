"""Where cells run: in this process, in worker processes, or on a Dask cluster. The results are equal to the
last bit.

Every cell runs on one thread, wherever it runs, because the number of threads decides the order of summation.
A cell travels pickled by value, so that a study in a user's own file needs no installation on the workers.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import cloudpickle
import joblib
import numpy as np
import pandas as pd
import threadpoolctl
import torch

from simbandit import __version__
from simbandit.store import RESULTS, Cell

Executor = Literal["processes", "dask"]
AnyCell = TypeVar("AnyCell", bound=Cell)


def run_cells(
    cells: Sequence[AnyCell],
    *,
    executor: Executor = "processes",
    jobs: int | None = None,
    device: str = "cpu",
    scheduler: str | None = None,
) -> Iterator[tuple[AnyCell, pd.DataFrame]]:
    """Run cells and yield each, as it finishes, with its rows (columns of RESULTS, where, and how long).

    jobs: worker processes; 1 is this process; None is one per core. `scheduler` is the address of a Dask
    scheduler; without one, Dask starts a cluster of `jobs` workers on this machine. An error inside a cell
    arrives with a note that names the cell's labels. Raises ValueError for unknown executors and jobs < 1,
    ImportError without Dask.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: must be >= 1, got {jobs}")
    if executor not in ("processes", "dask"):
        raise ValueError(f"executor: must be 'processes' or 'dask', got {executor!r}")
    if scheduler is not None and executor != "dask":
        raise ValueError("scheduler: only the dask executor has one; add --executor dask")
    workers = min(jobs or joblib.cpu_count(), max(1, len(cells)))
    if executor == "dask":
        return _on_dask(cells, workers, device, scheduler)
    return _here(cells, device) if workers == 1 else _in_processes(cells, workers, device)


def _here(cells: Sequence[AnyCell], device: str) -> Iterator[tuple[AnyCell, pd.DataFrame]]:
    for cell in cells:
        yield cell, _run(cell, device)


def _in_processes(cells: Sequence[AnyCell], workers: int, device: str) -> Iterator[tuple[AnyCell, pd.DataFrame]]:
    tasks = (joblib.delayed(_run_pickled)(i, cloudpickle.dumps(cell), device) for i, cell in enumerate(cells))
    with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        pool: Any = joblib.Parallel(return_as="generator_unordered", pre_dispatch="n_jobs + 1")
    with _workers_without_interrupt():
        finished = pool(tasks)  # starts the workers
    for i, frame in finished:
        yield cells[i], frame


@contextmanager
def _workers_without_interrupt() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C, which a terminal sends to all: this one stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change what a signal does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _on_dask(
    cells: Sequence[AnyCell], workers: int, device: str, scheduler: str | None
) -> Iterator[tuple[AnyCell, pd.DataFrame]]:
    try:
        import distributed
    except ImportError as error:
        raise ImportError("executor: dask is not installed; pip install 'simbandit[dask]'") from error
    with _client(distributed, workers, scheduler) as client:
        futures = [
            client.submit(_run_pickled, i, cloudpickle.dumps(cell), device, pure=False) for i, cell in enumerate(cells)
        ]
        for future in distributed.as_completed(futures):
            i, frame = future.result()
            future.release()
            yield cells[i], frame


@contextmanager
def _client(distributed: Any, workers: int, scheduler: str | None) -> Iterator[Any]:
    if scheduler is not None:
        try:
            client = distributed.Client(scheduler, timeout="20s")
        except OSError as error:
            raise OSError(f"scheduler: no Dask scheduler answers at {scheduler} ({error})") from error
        with client:
            yield client
        return
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _run_pickled(i: int, pickled: bytes, device: str) -> tuple[int, pd.DataFrame]:
    return i, _run(pickle.loads(pickled), device)


def _run(cell: Cell, device: str) -> pd.DataFrame:
    begin = time.perf_counter()
    with _note(f"in the cell {describe_labels(cell.labels)}"), _one_thread():
        frame = cell.run(device)
        missing = [name for name in RESULTS if name not in frame]
        if missing:
            raise ValueError(f"a cell must return the columns {', '.join(RESULTS)}; missing: {', '.join(missing)}")
    return frame.assign(
        device=device,
        seconds=time.perf_counter() - begin,
        simbandit=__version__,
        torch=torch.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        source=source(),
    )


@cache
def source() -> str:
    """A hash of the source that decides the numbers: two installations with equal hashes compute equal
    results.

    The files that only describe, run, keep, judge or draw studies are left out.
    """
    package = Path(__file__).parent
    above = {"__init__", "__main__", "cli", "executors", "guarantees", "plotting", "store", "study"}
    files = [
        path for path in package.rglob("*.py") if path.relative_to(package).parts[0].removesuffix(".py") not in above
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:12]


def describe_labels(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in labels.items())


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    with threadpoolctl.threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class _note:
    """Adds a line to any error that leaves the block."""

    def __init__(self, text: str):
        self.text = text

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None:
            error.add_note(self.text)
