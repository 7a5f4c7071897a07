"""The command as a user meets it: what it prints, what it leaves, and how it refuses."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from simbandit import cli
from tests.cases import user_study


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_teaches_by_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "simbandit run quickstart --smoke" in text
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    for option in ("STUDY", "--replicates", "--smoke", "--out", "--jobs", "--seed", "--device", "--executor"):
        assert option in text


def test_list_names_studies_and_algorithms(capsys):
    cli.main(["list"])
    text = capsys.readouterr().out
    assert "gshf_online" in text
    assert "online_dpo" in text


def test_a_run_prints_every_verdict_and_leaves_results_figure_and_claims(here, capsys):
    cli.main(["run", str(user_study(here)), "--jobs", "1"])
    text = capsys.readouterr().out
    assert "My own study" in text
    assert "falls (Figure 2)" in text
    failed = next(line for line in text.splitlines() if line.startswith("impossible (Table 1)"))
    assert failed.endswith("fails")
    assert "does not judge" not in text
    out = here / "results" / "mine"
    assert {"figure.png", "figure.svg", "claims.csv", "manifest.json"} <= {path.name for path in out.iterdir()}
    assert len(list(out.glob("*.parquet"))) == 6
    assert pd.read_csv(out / "claims.csv")["verdict"].tolist()[1] == "fails"


def test_a_smoke_run_says_that_it_does_not_judge_and_tolerates_missing_cells(here, capsys):
    cli.main(["run", str(user_study(here)), "--smoke", "--jobs", "1"])
    text = capsys.readouterr().out
    assert "A smoke run does not judge the paper" in text
    assert "no data" in text
    assert len(list((here / "results" / "mine-smoke").glob("*.parquet"))) == 3


def test_published_figures_get_an_entry_and_a_gallery(here, capsys):
    folder = here / "figures"
    folder.mkdir()
    (folder / "earlier.md").write_text("## An earlier figure\n\nIts entry.\n")
    cli.main(["run", str(user_study(here)), "--jobs", "1", "--replicates", "9", "--figures", "figures"])
    entry = (folder / "mine.md").read_text()
    assert "simbandit run mine.py --replicates 9`" in entry
    assert "| impossible (Table 1) | = 9 (+- 0.5) |" in entry
    assert "fails |" in entry
    assert "torch" in entry
    assert str(here) not in entry
    gallery = (folder / "README.md").read_text()
    assert gallery.index("## An earlier figure") < gallery.index("## My own study")
    assert "* [My own study](mine.md)" in gallery
    assert (folder / "mine.svg").exists()
    assert (folder / "mine.png").exists()
    again = gallery
    cli.main(["run", str(user_study(here)), "--jobs", "1", "--replicates", "9", "--figures", "figures"])
    assert (folder / "README.md").read_text() == again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_study"], "error: study: unknown study 'no_such_study'"),
        (["absent.py"], "error: study: there is no file absent.py"),
        (["mine.py", "--replicates", "0"], "error: replicates: must be >= 1, got 0"),
        (["mine.py", "--jobs", "0"], "error: jobs: must be >= 1, got 0"),
        (["mine.py", "--seed", "-1"], "error: seed: must be in 0..999999"),
        (["mine.py", "--data", "absent.csv"], "error: data: there is no absent.csv"),
        (["mine.py", "--smoke", "--figures", "figures"], "error: figures: a smoke run is too small to publish"),
        (["mine.py", "--out", "/proc/results"], "error: out: cannot write in /proc/results"),
        (["mine.py", "--scheduler", "tcp://localhost:1"], "error: scheduler: only the dask executor has one"),
        (["mine.py", "--device", "tpu"], "error: device: must be one of cpu"),
    ],
)
def test_wrong_input_is_one_line_that_names_the_argument(here, capsys, arguments, message):
    user_study(here)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", *arguments])
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith(message)
    assert text.count("\n") == 1


def command(folder, *arguments):
    """A run of its own. A shell's background jobs ignore Ctrl-C, and pass that on to what they start: not here."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(cli.__file__)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = subprocess.Popen(
        [sys.executable, "-m", "simbandit", "run", "mine.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    return started


def wait_for_cells(folder, n):
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.parquet"))) < n:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def values(folder):
    frames = [pd.read_parquet(path).drop(columns=["seconds", "source"]) for path in sorted(folder.glob("*.parquet"))]
    return pd.concat(frames, ignore_index=True)


def test_ctrl_c_keeps_finished_cells_and_says_how_to_resume(here, capfd):
    user_study(here, pause=0.4)
    run = command(here, "--jobs", "2")
    wait_for_cells(here / "results" / "mine", 2)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, said = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Resume with: simbandit run mine.py --jobs 2" in said
    assert "Traceback" not in said
    assert 2 <= len(list((here / "results" / "mine").glob("*.parquet"))) < 6


def test_killed_in_the_middle_it_resumes_bit_equal(here, capsys):
    user_study(here, pause=0.4)
    run = command(here, "--jobs", "1", "--out", "killed")
    wait_for_cells(here / "killed", 2)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=30)
    kept = len(list((here / "killed").glob("*.parquet")))
    assert 2 <= kept < 6
    cli.main(["run", "mine.py", "--jobs", "1", "--out", "killed"])
    assert f"6 cells, {kept} stored" in capsys.readouterr().out
    cli.main(["run", "mine.py", "--jobs", "1", "--out", "whole"])
    pd.testing.assert_frame_equal(values(here / "killed"), values(here / "whole"), check_exact=True)
