"""What is kept is whole, and nothing of another origin is touched."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from simbandit.executors import run_cells
from simbandit.store import PROVENANCE, RESULTS, writing
from tests.cases import cells


def fill(store, grid):
    for cell, frame in run_cells(grid, jobs=1):
        store.write(cell, frame)


def test_rows_come_back_as_they_were_with_labels_and_provenance(tmp_path):
    grid = cells(2)
    with writing(tmp_path, "toy") as store:
        fill(store, grid)
    frame = store.read(grid)
    assert list(frame.columns) == ["size", *RESULTS]
    want = pd.concat([cell.run("cpu").assign(size=cell.labels["size"]) for cell in grid], ignore_index=True)
    pd.testing.assert_frame_equal(frame, want.reindex(columns=frame.columns), check_dtype=False, rtol=1e-12)
    full = store.read(grid, provenance=True)
    assert list(full.columns) == ["size", *RESULTS, *PROVENANCE]
    assert set(full["cell"]) == {cell.key for cell in grid} == {path.stem for path in tmp_path.glob("*.parquet")}
    assert set(full["study"]) == {"toy"}
    assert np.all(full["seconds"] > 0)
    assert not np.any(full.isna())


def test_only_the_cells_asked_for_are_read(tmp_path):
    grid = cells(3)
    with writing(tmp_path, "toy") as store:
        fill(store, grid)
    assert store.read(grid[1:2])["size"].unique().tolist() == [21]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "swap"])
def test_a_damaged_file_is_set_aside_and_missing(tmp_path, damage):
    grid = cells(2)
    with writing(tmp_path, "toy") as store:
        fill(store, grid)
    path = store.path(grid[0].key)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "swap":
        path.write_bytes(store.path(grid[1].key).read_bytes())
    else:
        value = bytes(np.asarray(store.read(grid[:1])["value"].iloc[0]))
        at = content.find(value)
        assert at > 0  # a bit of a stored number: only a checksum can tell
        content[at] ^= 1
        path.write_bytes(content)
    whole, damaged = store.check(grid)
    assert whole == grid[1:]
    assert [p.name for p in damaged] == [f"{grid[0].key}.parquet.corrupt"]
    assert not path.exists()
    assert damaged[0].exists()
    with pytest.raises(ValueError, match=f"{grid[0].key}.parquet: missing or damaged"):
        store.read(grid)


def test_labels_of_different_cells_need_not_agree(tmp_path):
    import dataclasses

    one, two, three = cells(3)
    grid = [
        dataclasses.replace(one, labels={"n": "all"}),
        dataclasses.replace(two, labels={"n": 4, "kind": None}),
        three,
    ]
    with writing(tmp_path, "toy") as store:
        fill(store, grid)
    frame = store.read(grid)
    assert frame["n"].drop_duplicates().iloc[:2].tolist() == ["all", 4]
    assert np.all(frame["kind"].isna())


def test_another_studys_folder_is_refused(tmp_path):
    with writing(tmp_path, "toy"):
        pass
    with (
        pytest.raises(ValueError, match=f"{tmp_path} holds the results of study 'toy', not of 'other'.*--out"),
        writing(tmp_path, "other"),
    ):
        pass


@pytest.mark.parametrize("name", ["sales.parquet", "0123456789abcdef.parquet"])
def test_foreign_parquet_files_are_refused_and_kept(tmp_path, name):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / name)
    with (
        pytest.raises(ValueError, match=f"{tmp_path} holds Parquet files of another origin .{name}.*--out"),
        writing(tmp_path, "toy"),
    ):
        pass
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == [name]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_an_unreadable_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=str(tmp_path)), writing(tmp_path, "toy"):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper", "/proc/simbandit"):
        with (
            pytest.raises(OSError, match=f"out: cannot write in {folder} .*--out"),
            writing(type(tmp_path)(folder), "toy"),
        ):
            pass


def test_two_runs_cannot_write_one_folder(tmp_path):
    refused = pytest.raises(BlockingIOError, match=f"another run is writing {tmp_path}")
    with writing(tmp_path, "toy"), refused, writing(tmp_path, "toy"):
        pass
    with writing(tmp_path, "toy"):
        pass


HOLD = """
import sys, time, pathlib
from simbandit.store import writing
with writing(pathlib.Path(sys.argv[1]), "toy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_dies_with_its_process(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError, match="another run"), writing(tmp_path, "toy"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    time.sleep(0.01)
    with writing(tmp_path, "toy") as store:
        assert store.manifest()["study"] == "toy"


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    with writing(tmp_path, "toy"):
        pass
    (tmp_path / ".0123456789abcdef.tmp").write_bytes(b"half a file")
    with writing(tmp_path, "toy"):
        assert not list(tmp_path.glob(".*.tmp"))


def test_the_manifest_accumulates_cells_and_keeps_other_entries(tmp_path):
    with writing(tmp_path, "toy") as store:
        store.record(title="A toy", cells={"a": 1})
        store.record(cells={"b": 2})
    held = json.loads((tmp_path / "manifest.json").read_text())
    assert held == {"study": "toy", "title": "A toy", "cells": {"a": 1, "b": 2}}
