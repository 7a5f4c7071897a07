"""What is kept: one Parquet file per cell, named by the hash of the cell's configuration, and a manifest.

A file is written under a temporary name and renamed into place, so that it is whole or absent however the run
ends. While a run writes, it holds an operating-system lock on the folder, which dies with its process.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

RESULTS = ("replicate", "round", "queries", "metric", "value")
PROVENANCE = ("cell", "study", "seed", "device", "seconds", "simbandit", "torch", "numpy", "python", "source")
RESERVED = frozenset(RESULTS + PROVENANCE)
MANIFEST = "manifest.json"
_CELL_FILE = re.compile(r"[0-9a-f]{16}\.parquet")


class Cell(Protocol):
    """One entry of a study's grid: what to run, and the labels under which its rows are found again."""

    @property
    def labels(self) -> Mapping[str, Any]: ...

    @property
    def seed(self) -> int: ...

    @cached_property
    def key(self) -> str: ...

    def configuration(self) -> dict[str, Any]: ...

    def run(self, device: str) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Store:
    """The results of one study in one folder. Obtain it from `writing`, which holds the lock, to write."""

    folder: Path
    study: str

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.parquet"

    def write(self, cell: Cell, frame: pd.DataFrame) -> None:
        """Keep a cell's rows: `frame` has the columns of RESULTS and what the executor measured."""
        columns: dict[str, Any] = dict(cell.labels)
        columns.update({name: frame[name] for name in RESULTS})
        columns.update({"cell": cell.key, "study": self.study, "seed": cell.seed})
        columns.update({name: frame[name] for name in PROVENANCE if name in frame})
        table = pa.Table.from_pandas(pd.DataFrame(columns, index=frame.index), preserve_index=False)
        temporary = self.folder / f".{cell.key}.tmp"
        pq.write_table(table, temporary, write_page_checksum=True)
        os.replace(temporary, self.path(cell.key))

    def check(self, cells: Sequence[Cell]) -> tuple[list[Cell], list[Path]]:
        """The cells whose results are whole, and the damaged files, which are set aside as
        KEY.parquet.corrupt."""
        whole, damaged = [], []
        for cell in cells:
            path = self.path(cell.key)
            if not path.exists():
                continue
            if self._read(cell.key, ["cell"]) is not None:
                whole.append(cell)
            else:
                aside = path.with_name(path.name + ".corrupt")
                os.replace(path, aside)
                damaged.append(aside)
        return whole, damaged

    def read(self, cells: Sequence[Cell], provenance: bool = False) -> pd.DataFrame:
        """The rows of exactly these cells, in their order; a label that a cell does not have is missing
        there."""
        frames = []
        for cell in cells:
            columns = [*cell.labels, *RESULTS, *(PROVENANCE if provenance else ())]
            frame = self._read(cell.key, columns)
            if frame is None:
                raise ValueError(f"{self.path(cell.key)}: missing or damaged; run the study again to recompute it")
            frames.append(frame)
        labels = list(dict.fromkeys(name for cell in cells for name in cell.labels))
        joined = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(RESULTS))
        return joined.reindex(columns=[*labels, *RESULTS, *(PROVENANCE if provenance else ())])

    def _read(self, key: str, columns: list[str]) -> pd.DataFrame | None:
        """The whole file is read, checksums verified, whatever columns are wanted: None if it is damaged."""
        try:
            table = pq.ParquetFile(self.path(key), page_checksum_verification=True).read()
        except (pa.ArrowException, OSError):
            return None
        if not {"cell", *columns} <= set(table.column_names) or table["cell"].unique().to_pylist() != [key]:
            return None
        return table.select(columns).to_pandas()

    def manifest(self) -> dict[str, Any]:
        """What the folder holds: study, versions, settings, tuned values, configuration of every cell."""
        path = self.folder / MANIFEST
        return json.loads(path.read_text()) if path.exists() else {}

    def record(self, **entries: Any) -> None:
        """Update the manifest's entries; `cells` are added to those recorded before."""
        held = self.manifest()
        cells = {**held.get("cells", {}), **entries.pop("cells", {})}
        text = json.dumps({"study": self.study, **held, **entries, "cells": cells}, indent=1)
        temporary = self.folder / f".{MANIFEST}.tmp"
        temporary.write_text(text + "\n")
        os.replace(temporary, self.folder / MANIFEST)


@contextmanager
def writing(folder: Path, study: str) -> Iterator[Store]:
    """A store that this process alone writes, until the block ends or the process dies.

    Raises OSError if the folder cannot be written or another run is writing it (BlockingIOError), and
    ValueError if it holds another study's results or Parquet files that no study wrote.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"out: cannot write in {folder} ({error.strerror}); choose another folder with --out") from error
    # never a lock file whose mere existence locks: it would outlive a killed process
    lock = filelock.FileLock(folder / ".lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(
            f"out: another run is writing {folder}; wait until it ends, or choose another folder with --out"
        ) from None
    try:
        _refuse_foreign(folder, study)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        store = Store(folder, study)
        store.record()
        yield store
    finally:
        lock.release()


def _refuse_foreign(folder: Path, study: str) -> None:
    advice = "choose another folder with --out"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        manifest = None
    except ValueError as error:
        raise ValueError(f"out: {folder / MANIFEST} cannot be read ({error}); remove {folder}, or {advice}") from error
    if manifest is not None and (not isinstance(manifest, dict) or manifest.get("study") != study):
        owner = manifest.get("study") if isinstance(manifest, dict) else None
        raise ValueError(f"out: {folder} holds the results of study {owner!r}, not of {study!r}; {advice}")
    found = sorted(path.name for path in folder.glob("*.parquet"))
    foreign = [name for name in found if manifest is None or not _CELL_FILE.fullmatch(name)]
    if foreign:
        raise ValueError(f"out: {folder} holds Parquet files of another origin ({', '.join(foreign[:3])}); {advice}")


def plain(value: Any) -> Any:
    """A label as Python's own type, so that what is stored and what is compared are the same."""
    return value.item() if isinstance(value, np.generic) else value
