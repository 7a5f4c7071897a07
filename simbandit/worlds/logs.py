"""A user's own logs, bandit or preference, in the ids of a world: one loader for what was played, like `from_frame` for
the world."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simbandit.worlds.frames import check_columns, check_labels, read
from simbandit.worlds.table import TableWorld

if TYPE_CHECKING:
    from pandas import DataFrame


def logged_rewards(
    frame: DataFrame | str | Path,
    world: TableWorld,
    *,
    context: str,
    action: str,
    reward: str,
    propensity: str | None = None,
) -> DataFrame:
    """A bandit's log, one row per interaction, as columns context, action, reward and, unless None, propensity (the
    probability with which the logging policy chose that action): what `off_policy.value` and `simulate(offline=)` read.

    frame: a DataFrame, or the path of a CSV or Parquet file. Labels are looked up in the world's names
    (`context_names`, `action_names` or `item_names`); where it has none they must be positions already. Raises
    ValueError, naming the argument, for an unreadable file, a missing column or label, or a label that the world does
    not know (nearest offered).
    """
    columns = {"context": context, "action": action, "reward": reward}
    if propensity is not None:
        columns["propensity"] = propensity
    return _in_ids(frame, world, columns, ("action",))


def logged_duels(
    frame: DataFrame | str | Path, world: TableWorld, *, context: str, first: str, second: str, preferred: str
) -> DataFrame:
    """Logged duels, one row each, as columns context, first, second, preferred (the probability that the first wins, 1
    or 0 for a plain choice): what `simulate(offline=)` reads. Arguments, labels and errors as in `logged_rewards`."""
    columns = {"context": context, "first": first, "second": second, "preferred": preferred}
    return _in_ids(frame, world, columns, ("first", "second"))


def _in_ids(
    frame: DataFrame | str | Path, world: TableWorld, columns: dict[str, str], actions: Sequence[str]
) -> DataFrame:
    import pandas as pd  # here, not above: costs every user of the package its import time

    if not isinstance(frame, pd.DataFrame):
        frame = read(Path(frame))
    check_columns(frame, list(columns.items()))
    check_labels(frame, [(name, columns[name]) for name in ("context", *actions)])
    rows = pd.DataFrame({name: frame[column].to_numpy() for name, column in columns.items()}, index=frame.index)
    X, A = np.shape(world.ref_log_probs)
    names = range(X) if world.context_names is None else world.context_names
    rows["context"] = _positions("context", rows["context"].tolist(), [names] * len(rows))
    if world.item_names is not None:
        offered: list[Sequence[Hashable]] = [world.item_names[x] for x in rows["context"]]
    else:
        offered = [range(A) if world.action_names is None else world.action_names] * len(rows)
    for name in actions:
        rows[name] = _positions(name, rows[name].tolist(), offered)
    return rows


def _positions(argument: str, labels: list[Hashable], names: Sequence[Sequence[Hashable]]) -> list[int]:
    tables: dict[int, dict[Hashable, int]] = {}
    found = []
    for row, (label, known) in enumerate(zip(labels, names, strict=True)):
        table = tables.setdefault(id(known), {name: i for i, name in enumerate(known)})
        if label not in table:
            texts = [str(name) for name in known]
            near = difflib.get_close_matches(str(label), texts, n=3) or texts[:5]
            raise ValueError(f"{argument}: row {row} names {label!r}, which the world does not have; nearest: {near}")
        found.append(table[label])
    return found
