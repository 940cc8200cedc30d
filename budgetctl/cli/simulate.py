"""``budgetctl simulate``: what thinking budgets and KV budgets are worth in requests per second."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetctl.cli.options import Json, Seed
from budgetctl.cli.render import clean_stdout, emit_json, err, out
from budgetctl.errors import BudgetctlError, InputFileError

if TYPE_CHECKING:
    from budgetctl.simulate.fleet import Fleet
    from budgetctl.simulate.lengths import Lengths
    from budgetctl.simulate.policies import Policy

#: Rates of a sweep where none are given, as shares of what the first policy can serve at most.
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
#: Requests that are drawn from a distribution.
DRAWN = 20000


def simulate(
    lengths: Annotated[
        Path | None,
        typer.Option(
            help="Traces that `budgetctl collect` wrote, or records.jsonl of an evaluation.",
            show_default=False,
        ),
    ] = None,
    thinking: Annotated[
        str | None,
        typer.Option(
            help="Without --lengths: CONCENTRATION,RATE of log(1 + thinking tokens) ~ Gamma.",
            show_default=False,
        ),
    ] = None,
    fitted: Annotated[
        bool, typer.Option("--fitted", help="Draw from a distribution fitted to the thoughts of --lengths.")
    ] = False,
    prompt_tokens: Annotated[int, typer.Option(help="Of a prompt, where no file tells.", min=1)] = 64,
    answer_tokens: Annotated[int, typer.Option(help="Of an answer, with --thinking.", min=1)] = 256,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="none, hard-cut:N, budgetctl:N, kv:SLOTS, or two of them joined by +; several times for several.",
            show_default="none",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Requests per second of the fleet, such as 1,2,4.", show_default="by the load"),
    ] = None,
    p99: Annotated[
        float | None,
        typer.Option(
            help="Also find the highest rate at which 99 % finish within so many seconds.", show_default=False
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(help="Replicas of the fleet, all alike.", min=1)] = 1,
    sampled: Annotated[int, typer.Option(help="Replicas that are simulated at most.", min=1)] = 4,
    router: Annotated[str, typer.Option(help="round-robin or least-loaded.")] = "round-robin",
    arrivals: Annotated[str, typer.Option(help="poisson, burst or even.")] = "poisson",
    burst: Annotated[int, typer.Option(help="Requests of a burst.", min=1)] = 1,
    requests: Annotated[int, typer.Option(help="Requests of each simulation.", min=2)] = 4000,
    step_time: Annotated[
        str | None,
        typer.Option(
            help="JSON, or a file of it: seconds base, row, kv_token, prefill_base, prefill_token; or step_times with those "
            "of none and budgetctl.",
            show_default=False,
        ),
    ] = None,
    parameters: Annotated[float, typer.Option(help="Without --step-time: parameters of the model.")] = 8.2e9,
    kv_bytes: Annotated[float, typer.Option(help="Bytes of keys and values of a token.")] = 147456,
    bandwidth: Annotated[float, typer.Option(help="Bytes per second of a replica's memory.")] = 3.35e12,
    flops: Annotated[float, typer.Option(help="Operations per second of a replica.")] = 9.9e14,
    efficiency: Annotated[float, typer.Option(help="Share of both that is reached.")] = 0.6,
    blocks: Annotated[int, typer.Option(help="KV blocks of a replica.", min=1)] = 20000,
    block_size: Annotated[int, typer.Option(help="Tokens of a block.", min=1)] = 16,
    max_rows: Annotated[int, typer.Option(help="Requests of a step at most.", min=1)] = 256,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens of a step at most.", min=1)] = 8192,
    output: Annotated[Path, typer.Option("--out", help="JSON file of the results.")] = Path(
        "runs/simulate/simulate.json"
    ),
    png: Annotated[Path | None, typer.Option(help="Also draw them.", show_default=False)] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Simulate serving: rates of arrival and budgets to throughput, latency, preemptions and KV use."""
    with clean_stdout(as_json):
        from budgetctl.evals.output import progress_bar, write_text
        from budgetctl.simulate.capacity import find_capacity
        from budgetctl.simulate.figure import draw
        from budgetctl.simulate.fleet import Fleet
        from budgetctl.simulate.policies import Policy
        from budgetctl.simulate.report import capacity_table, outcome_table
        from budgetctl.simulate.step_time import ReplicaShape, StepTime

        if png is not None:
            from budgetctl.cli.explain_figure import check_path

            check_path(png)
        if p99 is not None and not p99 > 0:
            raise BudgetctlError(f"--p99 {p99:g}: expected seconds above 0; raise it")
        policies = [Policy.parse(text) for text in policy or ["none"]]
        if len({one.name for one in policies}) < len(policies):
            raise BudgetctlError("a --policy is given twice: expected each once; drop one")
        controlled = None
        if step_time is not None:
            values, under_control = _step_values(step_time)
            step = StepTime.from_dict(values)
            controlled = None if under_control is None else StepTime.from_dict(under_control)
        else:
            step = StepTime.roofline(
                parameters=parameters,
                kv_bytes=kv_bytes,
                bandwidth=bandwidth,
                flops=flops,
                efficiency=efficiency,
            )
        fleet = Fleet(
            _lengths(lengths, thinking, fitted, prompt_tokens, answer_tokens, seed),
            step,
            ReplicaShape(blocks, block_size, max_rows, max_batch_tokens),
            replicas=replicas,
            router=router,  # type: ignore[arg-type]
            arrivals=arrivals,  # type: ignore[arg-type]
            burst=burst,
            requests=requests,
            sampled=sampled,
            seed=seed,
            controlled=controlled,
        )
        rates = _rates(rate, fleet, policies[0])
        outcomes, found = [], []
        with progress_bar(err()) as bar:
            task = bar.add_task("simulating", total=len(policies) * len(rates))
            for one in policies:
                for value in rates:
                    bar.update(task, description=f"{one.name} at {value:.3g}/s")
                    outcomes.append(fleet.run(one, value))
                    bar.advance(task)
            if p99 is not None:
                search = bar.add_task("searching", total=None)
                for one in policies:
                    bar.update(search, description=f"{one.name} at p99 ≤ {p99:g} s")
                    found.append(find_capacity(fleet, one, p99, progress=lambda: bar.advance(search)))
        result: dict[str, Any] = {
            "replicas": replicas,
            "simulated_replicas": fleet.simulated,
            "router": router,
            "arrivals": arrivals,
            "burst": burst,
            "requests": requests,
            "seed": seed,
            "step_time": asdict(step),
            "step_time_budgetctl": None if controlled is None else asdict(controlled),
            "step_time_source": "given" if step_time is not None else "roofline",
            "shape": {name: getattr(fleet.shape, name) for name in ReplicaShape.__dataclass_fields__},
            "outcomes": [outcome.as_dict() for outcome in outcomes],
            "capacities": [one.as_dict() for one in found],
        }
        write_text(output, json.dumps(result, indent=1, allow_nan=False))
        if png is not None:
            draw(outcomes, png, p99)
    if as_json:
        emit_json(result)
        return
    head = _head(fleet, step_time is None)
    tables = [head, outcome_table(outcomes)]
    if found:
        tables.append(capacity_table(found))
    out().print("\n\n".join(tables), markup=False, soft_wrap=True)


def _head(fleet: Fleet, roofline: bool) -> str:
    sample = (
        "" if fleet.simulated == fleet.replicas else f", {fleet.simulated} of them simulated and scaled up"
    )
    plural = "replica" if fleet.replicas == 1 else "replicas"
    source = "a roofline estimate" if roofline else "given"
    return (
        f"{fleet.replicas:,} {plural}{sample}; {fleet.router}, {fleet.arrivals} arrivals; step time {source}"
    )


def _lengths(
    path: Path | None, thinking: str | None, fitted: bool, prompt: int, answer: int, seed: int
) -> Lengths:
    from budgetctl.simulate.lengths import read_lengths, synthetic

    if (path is None) == (thinking is None):
        raise BudgetctlError(
            "expected one of --lengths FILE and --thinking CONCENTRATION,RATE; give one (docs/serving.md has examples)"
        )
    if thinking is not None:
        if fitted:
            raise BudgetctlError("--fitted without --lengths: expected a file to fit to; drop it")
        values = _numbers("--thinking", thinking)
        if len(values) != 2:
            raise BudgetctlError(
                f"--thinking {thinking!r}: expected two numbers, CONCENTRATION,RATE; correct it"
            )
        return synthetic(values[0], values[1], prompt, answer, DRAWN, seed)
    assert path is not None
    found = read_lengths(path, prompt)
    return found.fitted(DRAWN, seed) if fitted else found


def _rates(text: str | None, fleet: Fleet, policy: Policy) -> list[float]:
    if text is not None:
        return _numbers("--rate", text)
    most = fleet.saturation(policy)
    return [float(f"{share * most:.3g}") for share in SHARES]


def _numbers(name: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < float("inf") for value in values):
        raise BudgetctlError(f"{name} {text!r}: expected numbers above 0, such as 1,2.5; correct it")
    return values


def _step_values(text: str) -> tuple[dict[str, object], dict[str, object] | None]:
    """Of a JSON text, or of the file of that name: the values of a step, and those under budgetctl where they are told."""
    where = "--step-time"
    if not text.lstrip().startswith("{"):
        where = text
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise InputFileError(
                f"step time {where!r} cannot be read ({why}): expected JSON, or a file of it; correct --step-time"
            ) from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    controlled = None
    if isinstance(value, dict) and isinstance(value.get("step_times"), dict):
        given = value["step_times"]  # as evals.serving_check writes them, among other things
        if not {"none"} <= given.keys() <= {"none", "budgetctl"}:
            raise InputFileError(
                f"{where} has step_times of {', '.join(given) or 'nothing'}: expected none, and budgetctl or not; correct it"
            )
        value, controlled = given["none"], given.get("budgetctl")
    elif isinstance(value, dict) and isinstance(value.get("step_time"), dict):
        value = value["step_time"]
    if not isinstance(value, dict) or not isinstance(controlled, dict | None):
        raise InputFileError(f"{where} is no JSON object: expected seconds by name; correct it")
    return value, controlled
