"""What a simulation returns, and how it is kept: one Parquet file, the policies inside."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from simbandit.policies import LogLinear, Tabular
from simbandit.types import Policy

COLUMNS = ("replicate", "round", "queries", "metric", "value")


@dataclass(frozen=True, eq=False)
class Results:
    """Metrics per replicate and recorded round, the final policies, and (where kept) the interactions.

    `frame()`: long DataFrame with columns replicate, round, queries, metric, value; a row of round t is taken before
    round t is learnt from. `policy`: one object holding all replicates. `data`: one row per interaction, or None.
    """

    _frame: pd.DataFrame = field(repr=False)
    policy: Policy | None
    data: pd.DataFrame | None = field(repr=False, default=None)
    configuration: dict[str, Any] = field(repr=False, default_factory=dict)

    def frame(self) -> pd.DataFrame:
        return self._frame.copy()

    def final(self, metric: str = "suboptimality") -> np.ndarray:
        """The metric's last recorded value, one per replicate."""
        rows = self._frame.loc[self._frame["metric"] == metric]
        if rows.empty:
            recorded = sorted(self._frame["metric"].unique())
            raise ValueError(f"metric: {metric!r} was not recorded; recorded are {recorded}")
        return rows.loc[rows["round"] == rows["round"].max(), "value"].to_numpy()

    def save(self, path: str | os.PathLike[str]) -> None:
        """One Parquet file, written beside and renamed into place; tabular and log-linear policies travel with it."""
        table = pa.Table.from_pandas(self._frame, preserve_index=False)
        held = {
            "configuration": json.dumps({k: repr(v) for k, v in self.configuration.items()}),
            **self._policy_text(),
        }
        if self.data is not None:
            buffer = io.BytesIO()
            self.data.to_parquet(buffer)
            held["data"] = base64.b64encode(buffer.getvalue()).decode()
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), b"simbandit": json.dumps(held).encode()}
        )
        target = Path(path)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        os.close(handle)
        pq.write_table(table, temporary)
        os.replace(temporary, target)

    def _policy_text(self) -> dict[str, str]:
        if not isinstance(self.policy, Tabular | LogLinear):
            return {}
        tensor = self.policy.table if isinstance(self.policy, Tabular) else self.policy.theta
        buffer = io.BytesIO()
        np.save(buffer, tensor.cpu().numpy(), allow_pickle=False)
        return {
            "policy": base64.b64encode(buffer.getvalue()).decode(),
            "policy_class": type(self.policy).__name__,
        }


def load(path: str | os.PathLike[str]) -> Results:
    """What `Results.save` wrote. Raises ValueError for a truncated file or a Parquet file of another origin."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"path: {path} is truncated or not a Parquet file: {error}") from error
    text = (table.schema.metadata or {}).get(b"simbandit")
    if text is None or not set(COLUMNS) <= set(table.column_names):
        raise ValueError(f"path: {path} was not written by Results.save")
    held = json.loads(text)
    policy = None
    if "policy" in held:
        array = np.load(io.BytesIO(base64.b64decode(held["policy"])), allow_pickle=False)
        policy = {"Tabular": Tabular, "LogLinear": LogLinear}[held["policy_class"]](torch.from_numpy(array))
    data = pd.read_parquet(io.BytesIO(base64.b64decode(held["data"]))) if "data" in held else None
    return Results(table.to_pandas(), policy, data, json.loads(held["configuration"]))
