"""Which stored rows a claim or a curve is about.

Rows are long: label columns, replicate, round, queries, metric, value. Selecting is by equality, and rows of
several cells are never averaged in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

Where = Mapping[str, Any]
RESULTS = ("replicate", "round", "queries", "metric", "value")


class MissingData(LookupError):
    """The frame holds no rows for what was asked."""


def select(frame: pd.DataFrame, where: Where) -> pd.DataFrame:
    """The rows whose columns equal `where`; None selects rows without the label. Raises MissingData if none
    do."""
    keep = np.ones(len(frame), dtype=bool)
    for name, value in where.items():
        if name not in frame.columns:
            raise MissingData(f"there is no label {name!r}; the labels are {', '.join(_labels(frame)) or 'none'}")
        column = frame[name]
        equal = column.isna() if value is None else column == value
        keep &= equal.to_numpy(dtype=bool, na_value=False)
        if not keep.any():
            known = ", ".join(repr(item) for item in column.drop_duplicates().tolist()[:12])
            raise MissingData(f"no rows with {text(where)}: none left at {name}={value!r}, which takes {known}")
    return frame.take(np.flatnonzero(keep))


def pivot(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    """(replicates x values of x) of one metric's rows: x is "queries", "round", or a label, each of whose
    cells counts at its last recorded round. Replicates that lack a value are left out.

    Raises ValueError if several cells share a replicate and an x, MissingData if nothing is left.
    """
    if x not in rows.columns or bool(rows[x].isna().to_numpy().any()):
        raise MissingData(f"x={x!r} is not a column of all rows")
    if x not in ("queries", "round"):
        last = rows.groupby(x)["round"].transform("max").to_numpy()
        rows = rows.take(np.flatnonzero(rows["round"].to_numpy() == last))
    _refuse_several(rows, ["replicate", x])
    table = rows.pivot(index="replicate", columns=x, values="value")
    whole = rows.groupby("replicate").size().to_numpy() == table.shape[1]
    if not whole.any():
        raise MissingData(f"no replicate has a value at every {x}")
    return table.take(np.flatnonzero(whole))


def at_round(rows: pd.DataFrame, at: int | None) -> dict[Any, float]:
    """Each replicate's value at a round of one metric's rows; None: the last round that has the metric."""
    rounds = rows["round"].to_numpy()
    chosen = rows.take(np.flatnonzero(rounds == (rounds.max() if at is None else at)))
    if len(chosen) == 0:
        raise MissingData(f"round {at} was not recorded, but {sorted(set(rounds.tolist()))[:20]}")
    _refuse_several(chosen, ["replicate"])
    return dict(zip(chosen["replicate"].tolist(), chosen["value"].tolist(), strict=True))


def text(where: Where) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in where.items()) or "no filter"


def _labels(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if name not in RESULTS]


def _refuse_several(rows: pd.DataFrame, unit: list[str]) -> None:
    if bool(rows.duplicated(unit).to_numpy().any()):
        varying = [name for name in _labels(rows) if name not in unit and len(rows[name].drop_duplicates()) > 1]
        cause = f"narrow the filter by {' or '.join(varying)}" if varying else "the rows are there twice"
        raise ValueError(f"several values per {' and '.join(unit)}: {cause}")
