"""A world from a user's own table: one row per (context, action), real features, real rewards, ragged
contexts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simbandit.worlds import arrays
from simbandit.worlds.table import TableWorld

if TYPE_CHECKING:
    from pandas import DataFrame


def from_frame(
    frame: DataFrame | str | Path,
    *,
    context: str,
    action: str,
    features: str | Sequence[str] | None = None,
    reward: str | None = None,
    reference: str | None = None,
    reward_range: tuple[float, float] | None = None,
) -> TableWorld:
    """The world of a table with one row per context and action.

    frame: a DataFrame, or the path of a CSV or Parquet file; context, action: its label columns; features:
    columns of phi, the linear model (which may be wrong); reward: the column of the truth; reference: a
    column of probabilities, summing to 1 in every context; None is uniform over the actions that the context
    offers. Contexts count alike.

    Contexts may be ragged: an action without a row is absent (reference -inf, reward and features 0). Labels
    are sorted, whatever the order of rows, and kept: `world.context_names`, `world.action_names`.

    Raises ValueError, naming the argument, for an unreadable file, a missing column (nearest names offered),
    missing labels, a (context, action) that occurs twice, text, NaN or infinity where numbers belong.
    """
    import pandas as pd  # here, not above: costs every user of the package its import time

    if not isinstance(frame, pd.DataFrame):
        frame = read(Path(frame))
    feature_columns = [features] if isinstance(features, str) else list(features or ())
    asked = [("context", context), ("action", action), ("reward", reward), ("reference", reference)]
    asked += [("features", column) for column in feature_columns]
    check_columns(frame, asked)
    check_labels(frame, asked[:2])
    twice = frame.duplicated([context, action])
    if twice.any():
        label = tuple(frame.loc[twice, [context, action]].iloc[0])
        raise ValueError(
            f"frame: one row per context and action, but {label} occurs twice ({int(twice.sum())} such rows)"
        )

    def numbers(argument: str, columns: list[str]) -> np.ndarray:
        for column in columns:
            if not pd.api.types.is_numeric_dtype(frame[column]):
                raise ValueError(f"{argument}: column {column!r} must hold numbers, its type is {frame[column].dtype}")
            values = frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                label = tuple(frame[[context, action]].iloc[bad[0]])
                raise ValueError(f"{argument}: column {column!r} must be finite, got {values[bad[0]]} at {label}")
        return frame[columns].to_numpy(dtype=np.float64)

    row, context_names = pd.factorize(frame[context], sort=True)
    col, action_names = pd.factorize(frame[action], sort=True)
    shape = len(context_names), len(action_names)
    what = f"{shape[0]:,} contexts x {shape[1]:,} actions"
    arrays.affordable("context, action", shape[0] * shape[1] * (len(feature_columns) + 2), what)

    ref = np.zeros(shape)
    if reference is None:
        ref[row, col] = 1 / np.bincount(row)[row]
    else:
        ref[row, col] = numbers("reference", [reference])[:, 0]
        arrays.probabilities("reference", ref, "XA")
    rewards = table = None
    if reward is not None:
        rewards = np.zeros(shape)
        rewards[row, col] = numbers("reward", [reward])[:, 0]
    if feature_columns:
        table = np.zeros((*shape, len(feature_columns)))
        table[row, col] = numbers("features", feature_columns)
    with np.errstate(divide="ignore"):  # log 0 = -inf is how an absent action is written
        ref_log_probs = np.log(ref)
    return TableWorld(
        ref_log_probs=ref_log_probs,
        rewards=rewards,
        features=table,
        reward_range=reward_range,
        context_names=tuple(context_names.tolist()),
        action_names=tuple(action_names.tolist()),
    )


def check_columns(frame: DataFrame, asked: Sequence[tuple[str, str | None]]) -> None:
    """Every (argument, column) asked for is there, once, and the frame has rows."""
    for argument, column in asked:
        if column is not None and column not in frame.columns:
            names = [str(c) for c in frame.columns]
            near = difflib.get_close_matches(str(column), names, n=3) or names[:10]
            raise ValueError(f"{argument}: the frame has no column {column!r}; nearest: {', '.join(near)}")
        if column is not None and list(frame.columns).count(column) > 1:
            raise ValueError(f"{argument}: the frame has more than one column {column!r}")
    if frame.empty:
        raise ValueError("frame: must have at least one row, got none")


def check_labels(frame: DataFrame, asked: Sequence[tuple[str, str | None]]) -> None:
    """No (argument, column) has a missing label."""
    for argument, column in asked:
        missing = 0 if column is None else int(np.count_nonzero(frame[column].isna()))
        if missing:
            raise ValueError(f"{argument}: column {column!r} has {missing} missing labels")


def read(path: Path) -> DataFrame:
    """The table of a CSV or Parquet file."""
    import pandas as pd

    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"frame: must be a DataFrame or the path of a .csv or .parquet file, got {str(path)!r}")
    try:
        return reader(path)
    except (OSError, ValueError) as error:  # missing, truncated or not of that format
        raise ValueError(f"frame: cannot read {str(path)!r}: {error}") from error
