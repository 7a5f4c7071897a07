"""The command `llm-bridge`. Thin: it reads arguments and files, calls the package, and writes what came out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from llm_bridge import need_extra
from llm_bridge.commands import DESCRIPTION, Command, Pool, Preflight, Sample, Score, Toy, Train

if TYPE_CHECKING:
    import pandas as pd


def main(arguments: list[str] | None = None) -> None:
    """Exits with 0 when done, 2 for wrong input, 130 after Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    command = tyro.cli(Command, prog="llm-bridge", description=DESCRIPTION, args=given, config=config)
    actions: dict[type, Any] = {
        Toy: _toy,
        Score: _score,
        Sample: _sample,
        Pool: _pool,
        Preflight: _preflight,
        Train: _train,
    }
    try:
        need_extra()
        actions[type(command)](command)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept: the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, LookupError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _toy(command: Toy) -> None:
    from llm_bridge import toy

    if command.dry_run:
        print(f"would train {toy.STEPS} steps of {toy.BATCH} texts, about half a minute on one core: {command.output}")
        _cost(toy.untrained(), 3 * toy.STEPS * toy.BATCH * 15)
        return
    found = toy.train(command.output, seed=command.seed, progress=True)
    print(f"perplexity {found.perplexity:.3f}, floor {found.floor:.3f} ({found.perplexity / found.floor:.3f}x)")
    print(f"wrote {command.output}")


def _score(command: Score) -> None:
    from llm_bridge import loading, sequence_log_probs

    frame = _read(command.input, "prompt", "response")
    model, tokenizer = loading.load_model(command.model), loading.load_tokenizer(command.model)
    loading.agree(model, tokenizer)
    prompts = loading.encode_prompts(tokenizer, frame["prompt"].tolist(), chat=command.chat)
    end = loading.end_tokens(model, tokenizer)[:1]
    said = [[*tokenizer(r, add_special_tokens=False)["input_ids"], *end] for r in frame["response"]]
    _cost(model, sum(map(len, [*map(list, set(map(tuple, prompts))), *said])))
    if command.dry_run:
        return
    scores = sequence_log_probs(model, prompts, said, token_budget=command.token_budget, progress=True)
    _write(frame.assign(log_prob=scores.tolist(), tokens=[len(s) for s in said]), command.output)


def _sample(command: Sample) -> None:
    import pandas as pd

    from simbandit.draws import generator

    policy = _policy(command)
    n = len(policy.catalogue.prompts)
    _cost(policy.model, n * command.k * command.max_new_tokens)
    if command.dry_run:
        return
    owners = [x for x in range(n) for _ in range(command.k)]
    uniforms = [u for x in range(n) for u in generator(command.seed, x, "sample").random(command.k).tolist()]
    drawn = policy.generate(owners, uniforms, temperature=command.temperature, top_p=command.top_p)
    read = policy.catalogue
    rows = [
        {
            "prompt": read.prompt_text(x),
            "response": policy.tokenizer.decode(list(r), skip_special_tokens=True),
            "tokens": len(r),
            "truncated": r[-1] not in read.end,
        }
        for x, r in zip(owners, drawn, strict=True)
    ]
    _write(pd.DataFrame(rows), command.output)


def _pool(command: Pool) -> None:
    from llm_bridge.candidates import drawn_pool
    from llm_bridge.oracles import named_scorer

    policy = _policy(command)
    n = len(policy.catalogue.prompts)
    print(f"{n * command.k} draws, each scored and encoded; {0 if command.judge is None else n * command.k} rewards")
    _cost(policy.model, 3 * n * command.k * command.max_new_tokens)
    scorer = None if command.judge is None else named_scorer(command.judge)
    if command.dry_run:
        return
    pool = drawn_pool(policy, command.k, scorer=scorer, seed=command.seed, folder=command.output, progress=True)
    sizes, cut = pool.frame.groupby("prompt").size(), pool.frame["truncated"].mean()
    told = f"{len(sizes)} prompts, {sizes.min()} to {sizes.max()} different candidates each"
    print(f"{told}, {100 * cut:.0f} % of them truncated; wrote {command.output}")
    if scorer is not None:
        reward = pool.frame["reward"]
        print(f"rewards {reward.min():.3g} to {reward.max():.3g}, mean {reward.mean():.3g}")


def _preflight(command: Preflight) -> None:
    from llm_bridge import plans
    from llm_bridge.candidates import drawn_pool
    from llm_bridge.oracles import Cached, named_judge, named_scorer
    from llm_bridge.preflight import FACTORS, preflight
    from simbandit import algorithms

    names = command.algorithms.split(",")
    for name in names:
        algorithms.create(name)
    policy = _policy(command)
    n, draws = len(policy.catalogue.prompts), command.k + command.held
    rewarded = not command.judge.startswith(("pair:", "toy:intransitive"))
    asked = n * command.k * (command.k - 1) + (0 if rewarded else 2 * n * command.k * command.held)
    if command.dry_run:
        print(f"pool: {n} prompts x {command.k} draws, and {command.held} held out; {asked:,} questions to the judge")
        _cost(policy.model, 3 * n * draws * command.max_new_tokens)
        told = f"{len(names)} algorithms x {len(FACTORS)} values of kl_coef x {command.replicates} replicates"
        print(f"simulated: {told} x {command.rounds} rounds of {command.batch_size} duels")
        run = plans.Run(command.rounds, command.batch_size, command.steps, command.minibatch)
        print("the real run it predicts, at most:")
        print(plans.longest(policy, run, command.flops))
        return
    scorer = named_scorer(command.judge) if rewarded else None
    shared: Any = {"scorer": scorer, "seed": command.seed, "progress": True}
    kept = (lambda part: None) if command.pool is None else (lambda part: command.pool / part)
    pool = drawn_pool(policy, command.k, folder=command.pool, **shared)
    held = None
    if command.held:
        held = drawn_pool(policy, command.held, folder=kept("held"), purpose="held out", **shared)
    if command.pool is not None:
        command.pool.mkdir(parents=True, exist_ok=True)
    page = preflight(
        policy,
        pool,
        Cached(named_judge(command.judge), kept("answers.jsonl")),
        names,
        kl_coef=command.kl_coef,
        held=held,
        dim=command.dim,
        law=command.law,
        rounds=command.rounds,
        batch_size=command.batch_size,
        replicates=command.replicates,
        seed=command.seed,
        steps=command.steps,
        minibatch=command.minibatch,
        flop_rate=command.flops,
        progress=True,
    )
    print(page)
    if command.output is not None:
        print(f"wrote {', '.join(str(file) for file in page.save(command.output))}")


def _train(command: Train) -> None:
    import dataclasses

    from llm_bridge import plans, processes
    from llm_bridge.evaluation import Evaluation
    from llm_bridge.oracles import Cached, TextOracle, named_judge
    from llm_bridge.rows import direct_row
    from llm_bridge.training import Training
    from simbandit.objective import Descent
    from simbandit.simulate import Problem, simulate

    algorithm: Any = direct_row(command.algorithm)
    steps = Descent(command.steps, command.learning_rate)
    policy = _policy(command, training=Training(steps, minibatch=command.minibatch, progress=True), lora=command.lora)
    policy = dataclasses.replace(policy, checkpoints=command.output / "checkpoints")
    print(f"{command.algorithm}: {algorithm}")
    run = plans.Run(command.rounds, command.batch_size, command.steps, command.minibatch, command.evaluation)
    print(plans.longest(policy, run.under(algorithm)))
    if command.dry_run:
        return
    judge = Cached(named_judge(command.judge), command.output / "answers.jsonl", distributed=policy.distributed)
    evaluation = Evaluation(policy, judge, size=command.evaluation, seed=command.seed + 1)
    results = simulate(
        Problem(policy.world(), TextOracle(policy.catalogue, judge), command.kl_coef),
        algorithm,
        rounds=command.rounds,
        batch_size=command.batch_size,
        seed=command.seed,
        policy=policy,
        metrics=evaluation.metrics(),
        record="all",
        progress=True,
    )
    if policy.distributed and processes.rank():
        return
    final: Any = results.policy
    final.save(command.output / "model")
    curve = results.frame().pivot(index="round", columns="metric", values="value")
    curve.to_csv(command.output / "curve.csv")
    shown = [c for c in ("win_rate", "implied_accuracy", "kl_to_reference", "length", "entropy") if c in curve]
    print(curve[shown].round(3).to_string())
    print(f"wrote {command.output / 'model'} and {command.output / 'curve.csv'}; {judge.asked} questions asked")


# ------------------------------------------------------------------------------------------------------------- files


def _policy(command: Any, **options: Any) -> Any:
    from llm_bridge.policy import LMPolicy

    file = command.prompts
    if file is None:
        file = Path(command.model) / "prompts.jsonl"
        if not file.exists():
            raise ValueError(f"prompts: {command.model} brings none (prompts.jsonl); give a file with --prompts")
    if command.limit is not None and command.limit < 1:
        raise ValueError(f"limit: must be at least 1 prompt, got {command.limit}")
    prompts = _read(file, "prompt")["prompt"].tolist()[: command.limit]
    options |= _shared()
    policy = LMPolicy.from_pretrained(
        command.model, prompts, chat=command.chat, max_new_tokens=command.max_new_tokens, **options
    )
    print(f"{len(prompts)} prompts; the first, as the model reads it: {policy.shown(0)!r}")
    return policy


def _shared() -> dict[str, Any]:
    """The device, and whether `accelerate launch` has started several processes that share the work."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return {"device": str(state.device), "distributed": state.num_processes > 1}


def _read(path: Path, *columns: str) -> pd.DataFrame:
    import pandas as pd

    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        frame = pd.DataFrame(rows)
    missing = [c for c in columns if c not in frame]
    if missing or frame.empty:
        raise ValueError(f"{path}: needs rows with {', '.join(columns)}; it has {', '.join(map(str, frame)) or 'none'}")
    return frame


def _write(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    print(f"wrote {len(frame)} rows to {path}")


def _cost(model: Any, tokens: int) -> None:
    from llm_bridge.plans import cost

    print(cost(model, tokens))


if __name__ == "__main__":
    main()
