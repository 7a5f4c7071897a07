"""Keys, tuning, resuming: what is stored is what would be computed, and nothing else is."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import simbandit
from simbandit import study as studies
from simbandit.cells import Simulation, Task, describe
from simbandit.store import writing
from simbandit.study import TUNING_SEED, Settings, find, run, shipped
from tests import cases
from tests.cases import Contender, contest, power_law, products


def go(study, folder, said=None, jobs=1, **settings):
    with writing(folder, study.name) as store:
        return run(study, study.settings(**settings), store, jobs=jobs, say=(said if said is not None else []).append)


def task(**changes):
    return dataclasses.replace(Task({"n": 1}, products, {"size": 5}, replicates=3, seed=2), **changes)


def test_a_key_changes_with_everything_that_changes_a_number():
    variants = [
        task(),
        task(labels={"n": 2}),
        task(arguments={"size": 6}),
        task(arguments={"size": 5.0}),
        task(arguments={"size": True}),
        task(arguments={"size": "5"}),
        task(replicates=4),
        task(seed=3),
        task(function=power_law),
    ]
    assert len({cell.key for cell in variants}) == len(variants)
    assert task().key == task().key
    assert len(task().key) == 16


@dataclass(frozen=True)
class Held:
    value: object
    scale: float = 1.0


@dataclass(frozen=True)
class Other:
    value: object
    scale: float = 1.0


def test_descriptions_differ_with_the_content():
    x = np.arange(6.0)
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    values = [
        x,
        x.reshape(2, 3),
        x.astype(np.float32),
        np.nextafter(x, 9.0),
        torch.from_numpy(x),
        Held(x),
        Held(x, 2.0),
        Other(x),
        frame,
        frame.rename(columns={"a": "c"}),
        frame.assign(a=[1, 3]),
        contest,
        power_law,
        partial(contest, seed=1),
        partial(contest, seed=2),
        torch.float64,
        [1, 2],
        {"a": 1},
        None,
    ]
    described = [repr(describe(value)) for value in values]
    assert len(set(described)) == len(values)
    assert describe(x[::2]) == describe(x[::2].copy())
    assert describe(np.float64(0.1)) == describe(0.1)


def test_a_file_is_described_by_its_content(tmp_path):
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_text("1")
    b.write_text("1")
    assert describe(a) == describe(b)
    b.write_text("2")
    assert describe(a) != describe(b)


def test_what_has_no_stable_description_is_refused_by_name():
    with pytest.raises(ValueError, match=r"configuration\.value\['f'\]: .*<lambda> is local"):
        describe(Held({"f": lambda x: x}))
    with pytest.raises(ValueError, match="cannot describe a object"):
        describe([object()])
    with pytest.raises(ValueError, match="array of objects"):
        describe(np.array([object()]))


def test_editing_a_tasks_function_changes_its_key(tmp_path):
    keys = []
    for pause in (0.0, 0.001):
        study = find(str(cases.user_study(tmp_path, pause)))
        keys.append({cell.key for cell in study.cells(study.settings(), {})})
        path = tmp_path / "mine.py"
        path.write_text(path.read_text().replace("/ size", "* size"))
        edited = find(str(path))
        keys.append({cell.key for cell in edited.cells(edited.settings(), {})})
    assert not (keys[0] & keys[1] | keys[0] & keys[2])


def test_labels_must_be_plain_and_no_results_column():
    with pytest.raises(ValueError, match="labels: 'round' is a column of the results"):
        task(labels={"round": 1})
    with pytest.raises(ValueError, match=r"labels: n must be a string, number, bool or None, got \(1, 2\)"):
        task(labels={"n": (1, 2)})


def test_settings_check_what_the_command_line_chose(tmp_path):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"replicates": 0}, "replicates: must be >= 1, got 0"),
        ({"replicates": 1, "seed": -1}, "seed: must be in 0..999999"),
        ({"replicates": 1, "seed": TUNING_SEED}, "seed: must be in"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            Settings(**arguments)
    with pytest.raises(FileNotFoundError, match="data: there is no"):
        Settings(1, data=tmp_path / "absent.csv")
    toy = cases.study()
    assert (toy.settings().replicates, toy.settings(smoke=True).replicates) == (30, 4)
    assert toy.settings(replicates=7, smoke=True).replicates == 7


def test_where_real_data_come_from(tmp_path, monkeypatch):
    monkeypatch.delenv("SIMBANDIT_DATA", raising=False)
    file = tmp_path / "duels.csv"
    file.write_text("1")
    assert Settings(1).file("duels.csv") is None
    assert Settings(1, data=file).file("other.csv") == file
    assert Settings(1, data=tmp_path).file("duels.csv") == file
    with pytest.raises(FileNotFoundError, match=r"data: there is no .*other\.csv"):
        Settings(1, data=tmp_path).file("other.csv")
    monkeypatch.setenv("SIMBANDIT_DATA", str(tmp_path))
    assert Settings(1).file("duels.csv") == file
    assert Settings(1).file("other.csv") is None


def test_a_rerun_computes_nothing_and_gives_the_same_rows(tmp_path):
    first, second = go(cases.study(), tmp_path), go(cases.study(), tmp_path)
    assert (first.computed, first.stored) == (2, 0)
    assert (second.computed, second.stored) == (0, 2)
    pd.testing.assert_frame_equal(first.frame, second.frame, check_exact=True)


def test_stopped_anywhere_it_resumes_to_the_same_bits_on_any_number_of_workers(tmp_path):
    study = dataclasses.replace(cases.study(), cells=lambda settings, tuned: cases.cells(5))
    whole = go(study, tmp_path / "whole").frame

    class Stop(BaseException):
        pass

    class Bar:
        def __init__(self, **_):
            self.n = 0

        def update(self):
            self.n += 1
            if self.n == 2:
                raise Stop

        def close(self): ...

    with pytest.raises(Stop), writing(tmp_path / "stopped", study.name) as store:
        run(study, study.settings(), store, jobs=1, say=lambda _: None, progress=Bar)
    resumed = go(study, tmp_path / "stopped", jobs=2)
    assert (resumed.stored, resumed.computed) == (2, 3)
    pd.testing.assert_frame_equal(whole, resumed.frame, check_exact=True)


def test_cells_that_left_the_grid_do_not_leak_into_the_rows(tmp_path):
    go(cases.study(), tmp_path, replicates=5)
    second = go(cases.study(), tmp_path, replicates=6)
    assert second.computed == 2
    assert sorted(set(second.frame["replicate"])) == [0, 1, 2, 3, 4, 5]
    assert not np.any(second.frame.duplicated(["algorithm", "replicate", "round"]))


def test_a_damaged_cell_is_named_set_aside_and_computed_again(tmp_path):
    first = go(cases.study(), tmp_path)
    victim = sorted(tmp_path.glob("*.parquet"))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    said = []
    second = go(cases.study(), tmp_path, said)
    assert said[0] == f"damaged: {victim.name}; set aside as {victim.name}.corrupt, and computed again"
    assert second.computed == 1
    pd.testing.assert_frame_equal(first.frame, second.frame, check_exact=True)


def test_cells_of_other_source_are_pointed_out(tmp_path, monkeypatch):
    go(cases.study(), tmp_path)
    monkeypatch.setattr(studies, "source", lambda: "another")
    said = []
    go(cases.study(), tmp_path, said)
    assert any("2 stored cells come from other simbandit source" in line for line in said)


def test_tuning_gives_each_contender_its_best_candidate_on_seeds_of_its_own(tmp_path):
    said = []
    outcome = go(cases.study(tuned=True), tmp_path, said)
    assert outcome.tuned == {"fast": Contender(-1.0), "slow": Contender(-0.3)}
    assert (outcome.candidates, outcome.computed) == (3, 8)
    assert "tuned: fast = Contender(exponent=-1.0) (best of 3)" in said
    assert set(outcome.frame["algorithm"]) == {"fast", "slow"}
    with writing(tmp_path, "toy") as store:
        manifest = store.manifest()
    assert manifest["tuned"]["slow"]["exponent"] == -0.3
    assert len(manifest["cells"]) == 8
    assert go(cases.study(tuned=True), tmp_path).computed == 0


def tuning_with(candidates):
    return dataclasses.replace(cases.study(), tuning=lambda settings: candidates(settings))


def candidate(seed, exponent=-1.0):
    return Task({}, contest, {"algorithm": Contender(exponent)}, replicates=2, seed=seed)


def test_unequal_budgets_and_shared_seeds_are_refused(tmp_path):
    unequal = tuning_with(lambda s: {"fast": [candidate(s.tuning_seed)] * 2, "slow": [candidate(s.tuning_seed)]})
    with pytest.raises(ValueError, match=r"same number of candidates.*'fast': 2, 'slow': 1"):
        go(unequal, tmp_path / "a")
    shared = tuning_with(lambda s: {"fast": [candidate(s.seed)], "slow": [candidate(s.seed)]})
    with pytest.raises(ValueError, match=r"tuning: seeds \[0\] also serve the report"):
        go(shared, tmp_path / "b")
    unknown = dataclasses.replace(cases.study(tuned=True), tuning_metric="regret")
    with pytest.raises(ValueError, match="tuning_metric: 'regret' is not among the metrics of contender='fast'"):
        go(unknown, tmp_path / "c")
    nothing = tuning_with(lambda s: {"fast": [Task({}, power_law, {"exponent": 1.0}, 2, s.tuning_seed)]})
    with pytest.raises(ValueError, match="a Task can be a candidate only if its arguments hold an `algorithm`"):
        go(nothing, tmp_path / "d")


def test_a_candidate_that_diverges_loses(tmp_path):
    diverging = tuning_with(
        lambda s: {
            "fast": [candidate(s.tuning_seed, np.inf), candidate(s.tuning_seed, -0.5)],
            "slow": [candidate(s.tuning_seed, -0.2), candidate(s.tuning_seed, -0.1)],
        }
    )
    with np.errstate(all="ignore"):
        assert go(diverging, tmp_path).tuned == {"fast": Contender(-0.5), "slow": Contender(-0.2)}


def test_a_grid_with_twin_labels_or_nothing_is_refused(tmp_path):
    twins = dataclasses.replace(cases.study(), cells=lambda s, t: [task(), task(seed=9)])
    with pytest.raises(ValueError, match="two cells have the labels n=1"):
        go(twins, tmp_path)
    with pytest.raises(ValueError, match="cells: the grid is empty"):
        go(dataclasses.replace(cases.study(), cells=lambda s, t: []), tmp_path)


def test_finding_studies(tmp_path):
    assert find(str(cases.user_study(tmp_path))).name == "mine"
    with pytest.raises(FileNotFoundError, match="study: there is no file"):
        find(str(tmp_path / "absent.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"empty.py must define `study = simbandit.study.Study"):
        find(str(tmp_path / "empty.py"))
    with pytest.raises(ValueError, match="study: unknown study 'qickstart'"):
        find("qickstart")


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_study_is_whole(name):
    """It loads, carries its name, its smoke grid is what the house promises, and every claim has a source."""
    study = find(name)
    assert study.name == name
    assert shipped()[name]
    assert all(claim.source for claim in study.claims)
    assert len({claim.name for claim in study.claims}) == len(study.claims)
    smoke = study.settings(smoke=True)
    tuned = {}
    count = 0
    if study.tuning is not None:
        contenders = study.tuning(smoke)
        count = sum(len(cells) for cells in contenders.values())
        tuned = {contender: cells[0].algorithm for contender, cells in contenders.items()}
    assert count + len(study.cells(smoke, tuned)) >= 6


def simulation(name, **changes):
    world = simbandit.worlds.LinearWorld(n_contexts=3, n_actions=5, dim=4)
    problem = simbandit.Problem(world, simbandit.oracles.BradleyTerry(), kl_coef=0.5)
    algorithm = simbandit.algorithms.create(name)
    cell = Simulation({"algorithm": name}, problem, algorithm, rounds=6, replicates=7, batch_size=2, seed=4)
    return dataclasses.replace(cell, **changes)


def test_a_simulation_is_one_call_of_simulate(tmp_path):
    cell = simulation("uniform", metrics=("suboptimality",), record=(0, 3))
    assert (
        len({cell.key, *(simulation("uniform", **c).key for c in ({}, {"batch_size": 3}, {"output": "average"}))}) == 4
    )
    want = simbandit.simulate(
        cell.problem,
        cell.algorithm,
        rounds=6,
        replicates=7,
        batch_size=2,
        seed=4,
        metrics=("suboptimality",),
        record=(0, 3),
    )
    pd.testing.assert_frame_equal(cell.run("cpu"), want.frame(), check_exact=True)
    assert want.frame()["round"].unique().tolist() == [0, 3, 6]


def test_simulations_are_equal_to_the_bit_on_any_number_of_workers(tmp_path):
    grid = [simulation(name) for name in ("uniform", "gshf_online", "online_dpo")]
    study = dataclasses.replace(cases.study(), cells=lambda settings, tuned: grid)
    here, there = go(study, tmp_path / "one", jobs=1), go(study, tmp_path / "two", jobs=2)
    pd.testing.assert_frame_equal(here.frame, there.frame, check_exact=True)
