"""What a guided step costs: ``python -m budgetctl.evals.predictor_cost``.

Parameters and time of one step, ours next to the published architecture on the same shapes in the same run: from what
the decoding step leaves behind (logits for ours, all layers' states for the published one) to the guided logits.
Random weights; times are medians. Of ours, the way from the logits to the predictor's features, through the hidden
state and folded into one product. Then the whole controller next to a decoding step of the embedded reasoner.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.utils.benchmark import Timer

from budgetctl.controller import BudgetController
from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.evals.output import progress_bar, write_text
from budgetctl.evals.published_predictor import PublishedPredictor
from budgetctl.forecast import LengthForecast
from budgetctl.kernels.candidates import top_candidates
from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf
from budgetctl.kernels.row_state import Action, pack_rows
from budgetctl.predictors.gamma import GammaLengthPredictor, GammaPredictorConfig
from budgetctl.predictors.hidden_state import LogitsHiddenState

#: name -> (hidden size, layers, vocabulary)
SHAPES = {"embedded reasoner": (256, 4, 384), "Qwen3-0.6B": (1024, 28, 151_936)}


def our_step(
    forecast: LengthForecast, scores: torch.Tensor, left: torch.Tensor, closing: torch.Tensor
) -> torch.Tensor:
    """Guided logits [B, V] from logits [B, V]: recovery, head, top-k candidates, log P, push."""
    outlook = forecast.outlook(scores)
    top, candidates = top_candidates(scores, 64)
    rows = pack_rows(torch.full_like(left, Action.GUIDE), left, closing, strength=2.0)
    return forecast.guide(scores, outlook, top, candidates, rows, interval=False)[0]


def published_step(
    predictor: PublishedPredictor, states: torch.Tensor, scores: torch.Tensor, left: torch.Tensor
) -> torch.Tensor:
    """Guided logits [B, V]: the predictor on all layers' states, log P for the whole vocabulary."""
    concentration, rate = predictor(states)
    return scores + log_gamma_cdf(concentration, rate, (left + 2).log()[:, None].to(rate.dtype))


def measure(shape: tuple[int, int, int], batch: int, seconds: float) -> dict[str, Any]:
    """Parameters and milliseconds of one step of both."""
    hidden, layers, vocab = shape
    torch.manual_seed(0)
    embedding = torch.randn(vocab, hidden) * 0.02
    ours = GammaLengthPredictor(GammaPredictorConfig(hidden_size=hidden))
    forecast = LengthForecast(ours, LogitsHiddenState(embedding), embedding, 2.0)
    published = PublishedPredictor(hidden, vocab).eval()
    scores = torch.randn(batch, hidden) @ embedding.T
    names = {
        "scores": scores,
        "left": torch.full((batch,), 100),
        "closing": torch.zeros(batch, 1, dtype=torch.int64),
        "states": torch.randn(batch, layers + 1, hidden),
        "forecast": forecast,
        "published": published,
        "our_step": our_step,
        "published_step": published_step,
    }
    result: dict[str, Any] = {"hidden": hidden, "layers": layers, "vocab": vocab, "batch": batch}
    statements = {
        "ours": "our_step(forecast, scores, left, closing)",
        "published": "published_step(published, states, scores, left)",
        "through_hidden_state": "forecast.features.through_hidden_state(scores)",
        "folded": "forecast.features(scores)",
    }
    with torch.inference_mode():
        for name, statement in statements.items():
            timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
            timer.timeit(3)  # the first calls touch new memory
            result[f"{name}_ms"] = 1e3 * timer.blocked_autorange(min_run_time=seconds).median
    result["ours_parameters"] = sum(p.numel() for p in ours.parameters())
    result["published_parameters"] = sum(p.numel() for p in published.parameters())
    return result


def measure_controller(
    loaded: LoadedModel, batch: int, seconds: float, context: int = 100
) -> dict[str, float]:
    """Milliseconds of the whole controller and of the model's decoding step after ``context`` tokens."""
    rows = loaded.tokenizer.encode("<|im_start|>assistant\n<think>\n", add_special_tokens=False)
    prompt = len(rows)
    torch.manual_seed(0)
    plain = torch.randint(10, 100, (batch, context - prompt))
    ids = torch.cat([torch.tensor(rows).expand(batch, -1), plain], 1)
    controller = BudgetController(
        loaded.delimiters,
        thinking_budget=2 * context,
        forecast=loaded.forecast,
        boundaries=loaded.boundaries,
        prompt_length=prompt,
        max_new_tokens=4 * context,
    )
    names = {"model": loaded.model, "controller": controller, "ids": ids, "token": ids[:, -1:]}
    with torch.inference_mode():
        output = loaded.model(ids, use_cache=True)
        names |= {"scores": output.logits[:, -1].clone(), "cache": output.past_key_values}
        step = "model(token, past_key_values=cache, use_cache=True); cache.crop(-1)"
        return {
            name: 1e3 * Timer(statement, globals=names).blocked_autorange(min_run_time=seconds).median
            for name, statement in (("controller", "controller(ids, scores)"), ("model", step))
        }


def main(
    batches: Annotated[str, typer.Option(help="batch sizes")] = "1,8",
    seconds: Annotated[float, typer.Option(help="measuring time of each")] = 2.0,
    out: Annotated[Path, typer.Option(help="JSON file")] = Path("runs/predictor_cost.json"),
) -> None:
    """Print the table."""
    rows = []
    sizes = [int(b) for b in batches.split(",")]
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=len(SHAPES) * len(sizes))
        for name, shape in SHAPES.items():
            for batch in sizes:
                rows.append({"shape": name, **measure(shape, batch, seconds)})
                progress.advance(task)
    write_text(out, json.dumps(rows, indent=1))
    lines = [
        "| shapes (d, layers, V) | batch | parameters, ours | published | ms a step, ours | published | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['shape']} ({row['hidden']}, {row['layers']}, {row['vocab']:,}) | {row['batch']} "
            f"| {row['ours_parameters']:,} | {row['published_parameters']:,} | {row['ours_ms']:.2f} "
            f"| {row['published_ms']:.1f} | {row['published_ms'] / row['ours_ms']:.0f}x |"
        )
    lines += [
        "",
        "| shapes | batch | ms, logits to features through the hidden state | folded | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        before, after = row["through_hidden_state_ms"], row["folded_ms"]
        lines.append(
            f"| {row['shape']} | {row['batch']} | {before:.3f} | {after:.3f} | {before / after:.1f}x |"
        )
    lines += [
        "",
        "| batch | ms, whole controller | ms, decoding step of the embedded reasoner | ratio |",
        "|---|---|---|---|",
    ]
    loaded = load_model(with_predictor=True)
    for batch in sizes:
        cost = measure_controller(loaded, batch, seconds)
        ratio = cost["controller"] / cost["model"]
        lines.append(f"| {batch} | {cost['controller']:.2f} | {cost['model']:.2f} | {ratio:.2f} |")
    Console().print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
