"""The command `simbandit`. Thin: it reads arguments, calls `study.run`, and shows what came out."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    import pandas as pd

    from simbandit.study import Outcome, Settings, Study

DESCRIPTION = """Simulate sample-efficient RLHF algorithms where the optimum and the regret are known exactly,
and judge what their papers claim.

Examples:
  simbandit list                                    the studies and the algorithms
  simbandit run quickstart                          regret and suboptimality, each claim judged
  simbandit run quickstart --smoke                  the same in half a minute, too small to judge
  simbandit run quickstart --replicates 200 --jobs 4
  simbandit run my/own/study.py --out results/mine  a study of your own: one file

A run that was stopped goes on where it was when the same command is given again.
"""


def _shown(metavar: str) -> Any:
    """How an optional argument is shown in the help; its docstring says the default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True)
class List:
    """Show the shipped studies and the algorithms."""


@dataclass(frozen=True)
class Run:
    """Run a study, judge its paper's claims, and draw its figure.

    Results are kept in --out, one file per cell of the grid; cells that are there are not computed again.
    """

    study: Annotated[tyro.conf.Positional[str], _shown("STUDY")]
    """Name of a shipped study (see `simbandit list`), or the path of your own study.py."""
    replicates: Annotated[int | None, _shown("N")] = None
    """Independent seeds per cell; default: the study's own number."""
    smoke: bool = False
    """A small subset in about half a minute: checks that everything runs, does not judge the paper."""
    out: Annotated[Path | None, _shown("DIR")] = None
    """Folder of the results; default: results/STUDY, with --smoke results/STUDY-smoke."""
    jobs: Annotated[int | None, _shown("N")] = None
    """Worker processes; 1 is this process; default: one per core on the CPU, 1 on other devices."""
    seed: int = 0
    """Seed of all random streams."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1, ..."""
    executor: Literal["processes", "dask"] = "processes"
    """What runs the cells: processes on this machine, or Dask (pip install 'simbandit[dask]')."""
    scheduler: Annotated[str | None, _shown("ADDRESS")] = None
    """Address of a Dask scheduler, tcp://HOST:PORT; default: a Dask cluster on this machine."""
    data: Annotated[Path | None, _shown("FILE")] = None
    """Real data for studies that read it: a file, or the folder that holds it; default: $SIMBANDIT_DATA."""
    figures: Annotated[Path | None, _shown("DIR")] = None
    """Also publish the figure, its entry and the gallery in this folder."""


Command = (
    Annotated[List, tyro.conf.subcommand("list", prefix_name=False)]
    | Annotated[Run, tyro.conf.subcommand("run", prefix_name=False)]
)


def main(arguments: list[str] | None = None) -> None:
    """Exits with 0 when the run completed (whatever the verdicts), 2 for wrong input, 130 after Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    command = tyro.cli(Command, prog="simbandit", description=DESCRIPTION, args=given, config=config)
    try:
        if isinstance(command, Run):
            _run(command)
        else:
            _list()
    except KeyboardInterrupt:
        again = shlex.join(["simbandit", *given])
        print(f"\nstopped; finished cells are kept. Resume with: {again}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError, LookupError) as error:
        if getattr(error, "__notes__", None):  # from inside a cell: its traceback is what helps
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _list() -> None:
    from simbandit import algorithms
    from simbandit.study import shipped

    studies = shipped()
    width = max(map(len, studies), default=0)
    print("Studies (simbandit run NAME):\n")
    print("\n".join(f"  {name.ljust(width)}  {title}" for name, title in studies.items()))
    print("\nAlgorithms (simbandit.algorithms.create(NAME, ...)):\n")
    print("  " + " ".join(algorithms.names()))


def _run(command: Run) -> None:
    import torch
    from tqdm import tqdm

    from simbandit import plotting
    from simbandit.gallery import HEADINGS, text_table, verdict_rows
    from simbandit.guarantees import judge
    from simbandit.store import writing
    from simbandit.study import find, run

    if command.figures is not None and command.smoke:
        raise ValueError("figures: a smoke run is too small to publish; leave out --smoke or --figures")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if command.device not in devices:
        raise ValueError(f"device: must be one of {', '.join(devices)} on this machine, got {command.device!r}")
    study = find(command.study)
    settings = study.settings(command.replicates, command.smoke, command.seed, command.data)
    out = command.out or Path("results") / (study.name + ("-smoke" if command.smoke else ""))
    jobs = command.jobs if command.jobs is not None or command.device == "cpu" else 1
    print(f"{study.name}: {study.title}\n{study.source}\n")
    with writing(out, study.name) as store:
        outcome = run(
            study,
            settings,
            store,
            executor=command.executor,
            jobs=jobs,
            device=command.device,
            scheduler=command.scheduler,
            progress=lambda **bar: tqdm(**bar, unit="cell", disable=None),
        )
        verdicts = judge(study.claims, outcome.frame, partial=command.smoke)
        verdicts.to_csv(out / "claims.csv", index=False)
        print("\n" + text_table(HEADINGS, verdict_rows(verdicts)) + "\n")
        if command.smoke:
            print("A smoke run does not judge the paper: it is too small, whatever the verdicts above say.\n")
        with plotting.style():
            figure = study.plot(outcome.frame)
        pictures = plotting.save(figure, out / "figure")
        written = ", ".join(str(path) for path in (*pictures, out / "claims.csv"))
        print(f"{outcome.seconds:.0f} s of computation; wrote {written}")
        if command.figures is not None:
            plotting.save(figure, command.figures / study.name)
            _publish(command, study, settings, outcome, verdicts)


def _publish(command: Run, study: Study, settings: Settings, outcome: Outcome, verdicts: pd.DataFrame) -> None:
    from simbandit import gallery

    assert command.figures is not None
    # what decides the numbers, and no folder of this machine
    shown = ["simbandit", "run", command.study if command.study == study.name else Path(command.study).name]
    shown += ["--replicates", str(command.replicates)] if command.replicates is not None else []
    shown += ["--seed", str(command.seed)] if command.seed else []
    shown += ["--device", command.device] if command.device != "cpu" else []
    shown += ["--data", command.data.name] if command.data is not None else []
    page = gallery.entry(
        study.name,
        study.title,
        study.source,
        shlex.join(shown),
        verdicts,
        outcome.tuned,
        outcome.candidates,
        settings.replicates,
        outcome.seconds,
    )
    (command.figures / f"{study.name}.md").write_text(page)
    print(f"wrote {command.figures / study.name}.md and {gallery.rebuild(command.figures)}")


if __name__ == "__main__":
    main()
