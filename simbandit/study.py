"""A study: a paper's figure as a grid of cells, its claims and its plot, in one file; and how it is found and
run.

A study's file has a docstring (the paper's figure, the grid, what differs) and one module-level `study =
Study(...)`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pandas as pd

from simbandit.cells import Simulation, Task, describe
from simbandit.executors import Executor, describe_labels, run_cells, source
from simbandit.guarantees.claims import Claim
from simbandit.store import Cell, Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Outcome", "Settings", "Simulation", "Study", "Task", "find", "run", "shipped"]

TUNING_SEED = 10**6  # tuning runs on seeds from here on, which no report uses


@dataclass(frozen=True)
class Settings:
    """What the command line chose; `replicates` is the study's own number where it chose nothing."""

    replicates: int
    smoke: bool = False
    seed: int = 0
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.replicates < 1:
            raise ValueError(f"replicates: must be >= 1, got {self.replicates}")
        if not 0 <= self.seed < TUNING_SEED:
            raise ValueError(f"seed: must be in 0..{TUNING_SEED - 1} (larger ones are for tuning), got {self.seed}")
        if self.data is not None and not self.data.exists():
            raise FileNotFoundError(f"data: there is no {self.data}")

    @property
    def tuning_seed(self) -> int:
        return self.seed + TUNING_SEED

    def file(self, name: str) -> Path | None:
        """The real data to use: --data (the file, or a folder that holds `name`), else `name` in the folder
        that $SIMBANDIT_DATA names, else None."""
        given = self.data
        if given is None and "SIMBANDIT_DATA" in os.environ:
            given = Path(os.environ["SIMBANDIT_DATA"])
            if not (given / name).exists():
                return None
        if given is not None and given.is_dir():
            given = given / name
            if not given.exists():
                raise FileNotFoundError(f"data: there is no {given}")
        return given


@dataclass(frozen=True)
class Study:
    """One figure of a paper.

    cells(settings, tuned): the grid; `tuned` maps each contender to its tuned algorithm ({} without tuning).
    claims: judged on the stored rows. plot(frame): the figure, from stored rows only.
    tuning(settings): per contender its candidates, equally many for each, seeded from `settings.tuning_seed`
    on; the candidate with the lowest mean `tuning_metric` at the last recorded round is the contender's.
    """

    name: str
    title: str
    source: str
    cells: Callable[[Settings, dict[str, Any]], Sequence[Simulation | Task]]
    claims: tuple[Claim, ...]
    plot: Callable[[pd.DataFrame], Figure]
    tuning: Callable[[Settings], Mapping[str, Sequence[Simulation | Task]]] | None = None
    tuning_metric: str = "suboptimality"
    replicates: int = 64
    smoke_replicates: int = 8

    def settings(
        self, replicates: int | None = None, smoke: bool = False, seed: int = 0, data: Path | None = None
    ) -> Settings:
        own = self.smoke_replicates if smoke else self.replicates
        return Settings(own if replicates is None else replicates, smoke, seed, data)


@dataclass(frozen=True)
class Outcome:
    """What a run gave: the rows of the report's cells, and per contender the tuned algorithm with its
    budget."""

    frame: pd.DataFrame
    tuned: dict[str, Any]
    candidates: int
    stored: int
    computed: int
    seconds: float


def run(
    study: Study,
    settings: Settings,
    store: Store,
    *,
    executor: Executor = "processes",
    jobs: int | None = None,
    device: str = "cpu",
    scheduler: str | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[..., Any] | None = None,
) -> Outcome:
    """Tune, then run every cell that the store does not hold, and read the report's rows back from the store.

    progress(total=, initial=, desc=) makes a progress bar (tqdm's signature). Stopped at any point, the
    finished cells stay in the store and the same call goes on from there.
    """
    place = partial(run_cells, executor=executor, jobs=jobs, device=device, scheduler=scheduler)

    def complete(phase: str, cells: Sequence[Simulation | Task]) -> int:
        _check_grid(cells)
        store.record(cells={cell.key: cell.configuration() for cell in cells})
        whole, damaged = store.check(cells)
        for path in damaged:
            say(f"damaged: {path.name.removesuffix('.corrupt')}; set aside as {path.name}, and computed again")
        held = {cell.key for cell in whole}
        missing = [cell for cell in cells if cell.key not in held]
        say(f"{phase}: {len(cells)} cells, {len(whole)} stored, {len(missing)} to run")
        bar = progress(total=len(cells), initial=len(whole), desc=phase) if progress and missing else None
        for cell, frame in place(missing) if missing else ():
            store.write(cell, frame)
            if bar is not None:
                bar.update()
        if bar is not None:
            bar.close()
        return len(missing)

    tuned: dict[str, Any] = {}
    computed = candidates = 0
    tuning_cells: list[Simulation | Task] = []
    if study.tuning is not None:
        contenders = {name: _candidates(name, cells) for name, cells in study.tuning(settings).items()}
        candidates = _equal_budget(contenders)
        tuning_cells = [cell for cells in contenders.values() for cell in cells]
        computed += complete("tuning", tuning_cells)
        tuned = {name: _best(cells, study.tuning_metric, store) for name, cells in contenders.items()}
        for name, algorithm in tuned.items():
            say(f"tuned: {name} = {algorithm} (best of {candidates})")
    cells = study.cells(settings, tuned)
    shared = {cell.seed for cell in cells} & {cell.seed for cell in tuning_cells}
    if shared:
        raise ValueError(f"tuning: seeds {sorted(shared)} also serve the report; tune on settings.tuning_seed")
    store.record(
        title=study.title,
        source=study.source,
        settings={"replicates": settings.replicates, "smoke": settings.smoke, "seed": settings.seed},
        tuned={name: describe(algorithm) for name, algorithm in tuned.items()},
    )
    computed += complete("report", cells)
    provenance = store.read([*tuning_cells, *cells], provenance=True).drop_duplicates("cell")
    old = int(np.sum(provenance["source"].to_numpy() != source()))
    if old:
        say(f"note: {old} stored cells come from other simbandit source; to recompute, remove {store.folder}")
    total = len(tuning_cells) + len(cells)
    seconds = float(np.sum(provenance["seconds"].to_numpy()))
    return Outcome(store.read(cells), tuned, candidates, total - computed, computed, seconds)


def _candidates(name: str, cells: Iterable[Simulation | Task]) -> list[Simulation | Task]:
    """The candidates, labelled so that each of them is a cell of its own in the store."""
    return [replace(cell, labels={"contender": name, "candidate": i}) for i, cell in enumerate(cells)]


def _equal_budget(contenders: Mapping[str, Sequence[Cell]]) -> int:
    sizes = {name: len(cells) for name, cells in contenders.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(f"tuning: every contender needs the same number of candidates, at least one; got {sizes}")
    return next(iter(sizes.values()))


def _best(cells: Sequence[Simulation | Task], metric: str, store: Store) -> Any:
    def score(cell: Simulation | Task) -> float:
        rows = store.read([cell])
        rows = rows[rows["metric"] == metric]
        if rows.empty:
            raise ValueError(f"tuning_metric: {metric!r} is not among the metrics of {describe_labels(cell.labels)}")
        mean = float(rows.loc[rows["round"] == rows["round"].max(), "value"].to_numpy().mean())
        return mean if np.isfinite(mean) else np.inf

    scores = [score(cell) for cell in cells]
    if min(scores) == np.inf:
        raise ValueError(f"tuning: no candidate of {cells[0].labels['contender']!r} has a finite {metric}")
    return cells[int(np.argmin(scores))].algorithm


def _check_grid(cells: Sequence[Cell]) -> None:
    if not cells:
        raise ValueError("cells: the grid is empty")
    seen = set()
    for cell in cells:
        entry = frozenset(cell.labels.items())
        if entry in seen:
            raise ValueError(f"cells: two cells have the labels {describe_labels(cell.labels)}; tell them apart")
        seen.add(entry)


def shipped() -> dict[str, str]:
    """The studies that come with the package: name -> first line of the docstring, read without importing
    them."""
    return {path.stem: _first_line(path) for path in _shipped_files()}


def find(study: str) -> Study:
    """A shipped study by name, or a user's own by the path of its file.

    Raises ValueError for an unknown name (nearest names offered), a missing file, or a file without `study`.
    """
    if study.endswith(".py") or os.sep in study:
        module = _import_file(Path(study))
    else:
        names = [path.stem for path in _shipped_files()]
        if study not in names:
            near = get_close_matches(study, names, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names) or 'none'}"
            raise ValueError(f"study: unknown study {study!r}; {hint} (or give the path of your own study.py)")
        module = importlib.import_module(f"studies.{study}")
    found = getattr(module, "study", None)
    if not isinstance(found, Study):
        raise ValueError(f"study: {study} must define `study = simbandit.study.Study(...)` at module level")
    return found


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"study: there is no file {path}")
    name = f"user_study_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as for a script: the study may import its neighbours
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # workers need not have the file
    return module


def _shipped_files() -> list[Path]:
    package = importlib.util.find_spec("studies")
    folders = package.submodule_search_locations if package is not None else None
    files = [path for folder in folders or () for path in Path(folder).glob("*.py")]
    return sorted(path for path in files if not path.name.startswith("_"))


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
