"""Tiny cells for the tests of studies, stores and executors; module-level, so that worker processes find them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from simbandit.cells import Task
from simbandit.draws import generator
from simbandit.guarantees import Exponent, Ordering
from simbandit.study import Settings, Study

ROUNDS = (0, 1, 2, 4, 8, 16, 32)


def rows(values: np.ndarray, metric: str = "suboptimality", queries: tuple[int, ...] = ROUNDS) -> pd.DataFrame:
    """Values (R, T) as the long frame that simulate returns."""
    replicates, length = values.shape
    return pd.DataFrame(
        {
            "replicate": np.repeat(np.arange(replicates), length),
            "round": np.tile(np.asarray(queries), replicates),
            "queries": np.tile(np.asarray(queries, dtype=float), replicates),
            "metric": metric,
            "value": values.reshape(-1),
        }
    )


def power_law(replicates: int, seed: int, device: str, exponent: float, scale: float = 1.0) -> pd.DataFrame:
    """scale (1 + t)^exponent with noise that all cells of one seed share."""
    noise = np.stack([generator(seed, r, "noise").normal(size=len(ROUNDS)) for r in range(replicates)])
    return rows(scale * (1.0 + np.asarray(ROUNDS)) ** exponent * np.exp(0.1 * noise))


def products(replicates: int, seed: int, device: str, size: int, pause: float = 0.0) -> pd.DataFrame:
    """Sums whose last bits depend on how many threads add them up."""
    time.sleep(pause)
    matrix = torch.from_numpy(generator(seed, 0, "matrix").normal(size=(size, 300_007 // size)))
    by_torch = (matrix @ matrix.T).diagonal()[:replicates]
    by_numpy = (matrix.numpy() @ matrix.numpy().T).sum(0)[:replicates]
    return rows(np.stack([by_torch.numpy(), by_numpy], axis=1), queries=(0, 1))


def failing(replicates: int, seed: int, device: str) -> pd.DataFrame:
    raise ArithmeticError(f"no convergence with seed {seed}")


def columnless(replicates: int, seed: int, device: str) -> pd.DataFrame:
    return pd.DataFrame({"replicate": range(replicates), "value": 1.0})


def threads(replicates: int, seed: int, device: str) -> pd.DataFrame:
    return rows(np.array([[float(torch.get_num_threads())]]), metric="threads", queries=(0,))


@dataclass(frozen=True)
class Contender:
    """A stand-in for an algorithm."""

    exponent: float


def contest(replicates: int, seed: int, device: str, algorithm: Contender) -> pd.DataFrame:
    return power_law(replicates, seed, device, algorithm.exponent)


def cells(n: int, pause: float = 0.0) -> list[Task]:
    """n cells, the result of each different."""
    return [Task({"size": 20 + i}, products, {"size": 20 + i, "pause": pause}, replicates=3, seed=5) for i in range(n)]


def study(tuned: bool = False) -> Study:
    """Two contenders, one of which falls faster."""

    def tuning(settings: Settings) -> dict[str, list[Task]]:
        grid = {"fast": (-0.2, -1.0, -0.7), "slow": (-0.1, -0.3, -0.2)}
        return {
            name: [
                Task({}, contest, {"algorithm": Contender(p)}, replicates=4, seed=settings.tuning_seed)
                for p in exponents
            ]
            for name, exponents in grid.items()
        }

    def grid(settings: Settings, algorithms: dict) -> list[Task]:
        chosen = algorithms or {"fast": Contender(-1.0), "slow": Contender(-0.3)}
        return [
            Task({"algorithm": name}, contest, {"algorithm": algorithm}, settings.replicates, settings.seed)
            for name, algorithm in chosen.items()
        ]

    def plot(frame: pd.DataFrame) -> Figure:
        from simbandit.plotting import curves, panels

        figure, axes = panels()
        curves(axes[0, 0], frame, "suboptimality", "algorithm")
        return figure

    return Study(
        name="toy",
        title="A toy study",
        source="Toy et al., Figure 1",
        cells=grid,
        claims=(
            Exponent("fast rate", "Theorem 1", "suboptimality", {"algorithm": "fast"}, -1.0, 0.1, window=(4, 40)),
            Ordering("fast beats slow", "Figure 1", "suboptimality", {"algorithm": "fast"}, {"algorithm": "slow"}),
        ),
        plot=plot,
        tuning=tuning if tuned else None,
        replicates=30,
        smoke_replicates=4,
    )


USER_STUDY = '''"""A user's own study, in a file that no package knows."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simbandit.guarantees import Number, Ordering
from simbandit.study import Study, Task


def numbers(replicates, seed, device, size, pause):
    import time

    time.sleep(pause)
    rng = np.random.default_rng([seed, size])
    return pd.DataFrame(
        {
            "replicate": np.arange(replicates),
            "round": 1,
            "queries": float(size),
            "metric": "gap",
            "value": rng.random(replicates) / size,
        }
    )


def cells(settings, tuned):
    sizes = range(2, 5) if settings.smoke else range(2, 8)
    return [Task({"size": n}, numbers, {"size": n, "pause": PAUSE}, settings.replicates, settings.seed) for n in sizes]


def plot(frame):
    figure = Figure()
    figure.subplots().plot(frame["queries"], frame["value"])
    return figure


study = Study(
    name="mine",
    title="My own study",
    source="nobody",
    cells=cells,
    claims=(
        Ordering("falls", "Figure 2", "gap", {"size": 4}, {"size": 2}),
        Number("impossible", "Table 1", "gap", {"size": 7}, 9.0, 0.5),
    ),
    plot=plot,
    replicates=12,
    smoke_replicates=3,
)
'''


def user_study(folder: Path, pause: float = 0.0) -> Path:
    path = folder / "mine.py"
    path.write_text(USER_STUDY.replace("PAUSE", str(pause)))
    return path
