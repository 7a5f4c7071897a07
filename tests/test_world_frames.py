"""Worlds from a user's table: ragged contexts, labels, files, and what is refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from simbandit.draws import Draws
from simbandit.worlds import from_frame

ROWS = [
    ("b", "y", 0.3, 1.0, -1.0, 0.25),
    ("a", "z", 0.9, 2.0, 0.5, 1.0),
    ("b", "x", 0.1, 3.0, 0.0, 0.5),
    ("b", "z", 0.7, 4.0, 2.0, 0.25),
    ("c", "x", 0.5, 5.0, 1.5, 0.9),
    ("c", "y", 0.2, 6.0, 2.5, 0.1),
]
FRAME = pd.DataFrame(ROWS, columns=["prompt", "model", "score", "f0", "f1", "ref"])


def build(frame: Any = FRAME, **changes: Any) -> Any:
    arguments = {
        "context": "prompt",
        "action": "model",
        "features": ["f0", "f1"],
        "reward": "score",
        **changes,
    }
    return from_frame(frame, **arguments)


def test_a_ragged_table_becomes_a_masked_world():
    world = build()
    assert world.context_names == ("a", "b", "c")
    assert world.action_names == ("x", "y", "z")
    instance: Any = world.instance(2, Draws(0, 2))
    inf = -np.inf
    expected = np.log([[1, 1, 1], [1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 2, 1]])
    offered = np.array([[False, False, True], [True, True, True], [True, True, False]])
    np.testing.assert_allclose(instance.evaluation.ref_log_probs[1], np.where(offered, expected, inf), rtol=1e-12)
    np.testing.assert_array_equal(instance.reward_table[0], [[0, 0, 0.9], [0.1, 0.3, 0.7], [0.5, 0.2, 0]])
    np.testing.assert_array_equal(instance.evaluation.features[0, :, :, 0], [[0, 0, 2], [3, 1, 4], [5, 6, 0]])
    np.testing.assert_array_equal(instance.evaluation.features[0, :, :, 1], [[0, 0, 0.5], [0, -1, 2], [1.5, 2.5, 0]])
    assert instance.reward_range == (0.1, 0.9)
    assert (instance.evaluation.weights == 1 / 3).all()


def test_the_order_of_rows_and_the_kind_of_labels_do_not_matter():
    shuffled = FRAME.sample(frac=1, random_state=3)
    assert build(shuffled) == build()
    assert build(FRAME.astype({"prompt": "category", "model": "category"})) == build()
    numbered = FRAME.replace({"prompt": {"a": 10, "b": 20, "c": 30}})
    assert build(numbered).context_names == (10, 20, 30)
    assert build(numbered).rewards is not None
    assert all(type(name) is int for name in build(numbered).context_names)


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".parquet"])
def test_files_give_the_same_world(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    FRAME.to_csv(path, index=False) if suffix.lower() == ".csv" else FRAME.to_parquet(path)
    assert build(path) == build() == build(str(path))


def test_a_reference_column_and_optional_parts():
    world = build(reference="ref", features="f0", reward_range=(0.0, 1.0))
    np.testing.assert_allclose(np.exp(world.ref_log_probs), [[0, 0, 1], [0.5, 0.25, 0.25], [0.9, 0.1, 0]], rtol=1e-12)
    assert world.dim == 1
    bare = build(features=None, reward=None)
    assert bare.rewards is None
    assert bare.features is None


def test_single_precision_columns_are_widened():
    world = build(FRAME.astype({"score": "float32", "f0": "float32"}))
    table = world.instance(1, Draws(0, 1)).reward_table
    assert table.dtype == torch.float64
    assert table[0, 0, 2] == np.float64(np.float32(0.9))


def changed(column, values) -> pd.DataFrame:
    return FRAME.assign(**{column: values})


@pytest.mark.parametrize(
    ("frame", "changes", "message"),
    [
        (FRAME, {"reward": "scor"}, r"reward: the frame has no column 'scor'; nearest: score"),
        (FRAME, {"features": ["f0", "f11"]}, r"features: the frame has no column 'f11'; nearest: f1"),
        (
            FRAME,
            {"context": "question"},
            r"context: the frame has no column 'question'; nearest: prompt, model",
        ),
        (FRAME.iloc[:0], {}, r"frame: must have at least one row, got none"),
        (
            pd.concat([FRAME, FRAME[["score"]]], axis=1),
            {},
            r"reward: the frame has more than one column 'score'",
        ),
        (
            pd.concat([FRAME, FRAME.iloc[[2]]]),
            {},
            r"frame: one row per .* \('b', 'x'\) occurs twice \(1 such",
        ),
        (changed("prompt", [None, *"abcde"]), {}, r"context: column 'prompt' has 1 missing labels"),
        (changed("model", [*"zxyz", None, "y"]), {}, r"action: column 'model' has 1 missing labels"),
        (
            pd.concat([FRAME, FRAME.iloc[[2]].assign(score=0.2)]),
            {},
            r"frame: one row per .* \('b', 'x'\) occurs twice \(1 such",
        ),
        (changed("score", "good"), {}, r"reward: column 'score' must hold numbers"),
        (
            changed("score", [0, 1, np.nan, 0, 0, 0]),
            {},
            r"reward: column 'score' must be finite, got nan at \('b', 'x'\)",
        ),
        (
            changed("f1", [0, np.inf, 0, 0, 0, 0]),
            {},
            r"features: column 'f1' must be finite, got inf at \('a', 'z'\)",
        ),
        (changed("ref", 0.4), {"reference": "ref"}, r"reference: probabilities must sum to 1"),
        (
            changed("ref", [0.25, 0, 0.5, 0.25, 1, 0]),
            {"reference": "ref"},
            r"reference: probabilities must sum to 1.* got 0",
        ),
        (FRAME, {"reward_range": (0.5, 1.0)}, r"reward_range: must hold the rewards"),
    ],
)
def test_frames_that_are_refused(frame, changes, message):
    with pytest.raises(ValueError, match=message):
        build(frame, **changes)


def test_labels_that_would_fill_the_memory_are_refused(monkeypatch):
    n = 50_000
    frame = pd.DataFrame({"prompt": np.arange(n), "model": np.arange(n), "score": 0.0})
    with pytest.raises(ValueError, match=r"context, action: 50,000 contexts x 50,000 actions would need"):
        build(frame, features=None)
    small, limit = frame.iloc[:100], 8 * 100 * 100 * 4  # four numbers a cell: reference, reward and two features
    monkeypatch.setattr("simbandit.worlds.arrays.MEMORY_LIMIT", limit)
    build(small.assign(f0=1.0, f1=2.0))
    with pytest.raises(ValueError, match="context, action: 100 contexts x 100 actions would need"):
        build(small.assign(f0=1.0, f1=2.0, f2=3.0), features=["f0", "f1", "f2"])


def test_unreadable_files_are_named(tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    for path, message in (
        (broken, r"frame: cannot read .*broken\.parquet"),
        (tmp_path / "absent.csv", r"frame: cannot read .*absent\.csv"),
        (tmp_path / "table.xlsx", r"frame: must be a DataFrame or the path of a \.csv or \.parquet file"),
    ):
        with pytest.raises(ValueError, match=message):
            build(path)
