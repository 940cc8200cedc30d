"""The engine writes what ``generate`` writes with the same knobs, and counts what was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import LogitsProcessorList

from budgetctl.errors import BudgetctlError, EvalError
from budgetctl.evals.baselines import HardCut
from budgetctl.evals.harness.method import Completion, Item, Setting
from budgetctl.evals.harness.transformers_engine import TransformersEngine
from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.evals.methods.registry import METHODS, method_named
from budgetctl.integrations.transformers import install
from budgetctl.reasoner.load import PREDICTOR
from budgetctl.reasoner.tasks import take_questions
from budgetctl.sampling import SeededSampler

SEEDS = [0, 1, 2, 3]
NEW = 96


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model(with_predictor=True)


@pytest.fixture(scope="module")
def engine(reasoner: LoadedModel) -> TransformersEngine:
    return TransformersEngine(reasoner, steered=True)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [
        Item("embedded", str(i), q.prompt, q.answer, q.level, f"embedded/{q.family}")
        for i, q in enumerate(take_questions("test", 4))
    ]


@pytest.fixture(scope="module")
def prompts(engine: TransformersEngine, items: list[Item]) -> list[list[int]]:
    return [engine.prompt(item.prompt) for item in items]


def plain(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int] | None,
    *processors: Any,
    **knobs: Any,
) -> list[tuple[int, ...]]:
    """What ``generate`` itself writes, up to and with the end of sequence."""
    width = max(map(len, prompts))
    pad, eos = loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    noise = [] if seeds is None else [SeededSampler(seeds, width)]
    chain = LogitsProcessorList([*(make(width) for make in processors), *noise])
    out = loaded.model.generate(
        input_ids=ids,
        attention_mask=mask,
        logits_processor=chain,
        do_sample=False,
        max_new_tokens=NEW,
        **knobs,
    )
    rows = out[:, width:].tolist()
    return [tuple(row[: row.index(eos) + 1] if eos in row else row) for row in rows]


def ids_of(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.new_ids for completion in completions]


@pytest.mark.parametrize("seeds", [None, SEEDS])
@pytest.mark.parametrize(
    "knobs",
    [{"thinking_budget": 16}, {"effort": "low"}, {"effort": 0.2, "thinking_budget": 30, "kv_budget": 64}],
)
def test_the_same_as_generate_with_the_same_knobs(
    reasoner: LoadedModel, engine: TransformersEngine, prompts: Any, knobs: dict[str, Any], seeds: Any
) -> None:
    found = engine.generate(prompts, seeds=seeds, max_new_tokens=NEW, knobs=knobs)
    attention = reasoner.model.config._attn_implementation
    installation = install(reasoner.model, reasoner.tokenizer, PREDICTOR)
    try:
        expected = plain(reasoner, prompts, seeds, **knobs)
    finally:
        installation.uninstall()
    assert ids_of(found) == expected
    assert reasoner.model.config._attn_implementation == attention
    assert all(c.thinking_budget is not None and len(c.thought) <= c.thinking_budget for c in found)
    assert any(c.close in ("forced", "steered") for c in found)


def test_without_knobs_nothing_is_done(
    reasoner: LoadedModel, engine: TransformersEngine, prompts: Any
) -> None:
    found = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW)
    assert ids_of(found) == plain(reasoner, prompts, SEEDS)
    closes = [c.close for c in found]
    assert set(closes) <= {"natural", "none"}
    assert "natural" in closes
    assert all(c.thinking_budget is None and c.steered == () for c in found)
    close = reasoner.tokenizer.convert_tokens_to_ids("</think>")
    for c in found:
        ids = list(c.new_ids)
        assert c.close == ("natural" if close in ids else "none")
        cut = ids.index(close) if close in ids else len(ids)
        assert list(c.thought) == ids[:cut]
        assert list(c.answer) == [i for i in ids[cut + 1 :] if i != reasoner.tokenizer.eos_token_id]


def test_the_hard_cut_is_that_and_nothing_else(
    reasoner: LoadedModel, engine: TransformersEngine, prompts: Any
) -> None:
    found = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW, hard_cut=12)
    assert ids_of(found) == plain(
        reasoner, prompts, SEEDS, lambda width: HardCut(reasoner.delimiters, 12, width)
    )
    free = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW)
    for cut, whole in zip(found, free, strict=True):
        assert cut.close == ("natural" if len(whole.thought) < 12 else "forced")
        assert cut.thought == whole.thought[:12]
        assert cut.thinking_budget == 12
    assert {c.close for c in found} == {"natural", "forced"}


def test_a_row_is_the_same_alone_and_with_others(engine: TransformersEngine, prompts: Any) -> None:
    knobs = [{"thinking_budget": 10}, {"effort": "low"}, {"effort": "auto"}, {"thinking_budget": 20}]
    together = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW, knobs=knobs)
    alone = [
        engine.generate([prompt], seeds=[seed], max_new_tokens=NEW, knobs=row)[0]
        for prompt, seed, row in zip(prompts, SEEDS, knobs, strict=True)
    ]
    assert ids_of(together) == ids_of(alone)
    assert [c.thinking_budget for c in together] == [c.thinking_budget for c in alone]
    assert together[2].thinking_budget is None
    assert [c.steered for c in together] == [c.steered for c in alone]


def test_a_generation_goes_on_where_it_stopped(engine: TransformersEngine, prompts: Any) -> None:
    whole = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW, knobs={"thinking_budget": 24})
    cuts = [min(cut, len(c.thought) + 2) for cut, c in zip((3, 9, 14, 40), whole, strict=True)]
    begun = [[*prompt, *c.new_ids[:cut]] for prompt, c, cut in zip(prompts, whole, cuts, strict=True)]
    rest = engine.generate(
        begun, seeds=SEEDS, max_new_tokens=NEW - 40, knobs={"thinking_budget": 24}, offsets=cuts
    )
    close = engine.tokenizer.convert_tokens_to_ids("</think>")
    for first, second, cut in zip(whole, rest, cuts, strict=True):
        assert second.new_ids == first.new_ids[cut : cut + NEW - 40]
        # What the prompt holds is not counted; nor is the start of a thought seen that it has begun.
        assert second.thought == first.thought[cut:]
        assert second.close == ("none" if close in first.new_ids[:cut] else first.close)
        assert second.predicted_tokens is None
        assert first.predicted_tokens is not None


def test_a_prompt_may_close_the_thought(engine: TransformersEngine, items: list[Item]) -> None:
    prompts = [engine.prompt(item.prompt, prefill="Done.\n</think>\n\n") for item in items]
    found = engine.generate(prompts, seeds=SEEDS, max_new_tokens=8)
    eos = engine.tokenizer.eos_token_id
    for c in found:
        assert (c.thought, c.close, c.predicted_tokens) == ((), "none", None)
        assert c.answer == tuple(token for token in c.new_ids if token != eos)


def test_stops_end_a_row_and_stand_in_it(engine: TransformersEngine, prompts: Any) -> None:
    free = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW)
    stop = free[1].new_ids[5:7]
    found = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW, stop_ids=[stop, (1, 2, 3, 4)])
    stopped = 0
    for before, after in zip(free, found, strict=True):
        ends = [at for at in range(2, len(before.new_ids) + 1) if before.new_ids[at - 2 : at] == stop]
        assert after.new_ids == before.new_ids[: ends[0] if ends else None]
        stopped += bool(ends)
    assert stopped
    assert len(found[1].new_ids) <= 7


def test_the_prediction_is_that_of_the_first_logits(
    reasoner: LoadedModel, engine: TransformersEngine, prompts: Any
) -> None:
    found = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW)
    predictor = reasoner.forecast.predictor
    seen = []
    for prompt, c in zip(prompts, found, strict=True):
        with torch.no_grad():
            out = reasoner.model(torch.tensor([prompt]), output_hidden_states=True)
        # The head works on the last hidden state itself, which the forecast recovers from the logits.
        concentration, rate = predictor.state_parameters(out.hidden_states[-1][:, -1])
        law = stats.gamma(concentration.item(), scale=1 / rate.item())
        tokens = torch.expm1(torch.tensor(law.ppf(reasoner.forecast.natural_level))) - 1
        assert c.predicted_tokens == pytest.approx(float(tokens), rel=0.05)
        if c.close == "natural":
            assert c.predicted_cdf == pytest.approx(
                law.cdf(float(torch.log(torch.tensor(2.0 + len(c.thought))))), rel=2e-2, abs=1e-4
            )
            seen.append(c.predicted_cdf)
        else:
            assert c.predicted_cdf is None
    assert len(seen) >= 2


def test_bytes_of_the_cache(reasoner: LoadedModel, engine: TransformersEngine, prompts: Any) -> None:
    config = reasoner.model.config
    found = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW)
    columns = max(map(len, prompts)) + max(len(c.new_ids) for c in found) - 1
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert {c.kv_bytes for c in found} == {columns * token}
    small = engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW, knobs={"kv_budget": 48})
    assert 48 * token <= (small[0].kv_bytes or 0) < 48 * token * 1.6
    assert (small[0].kv_bytes or 0) < columns * token


def test_guidance_first_changes_a_token_where_the_thought_turns(
    reasoner: LoadedModel, engine: TransformersEngine, prompts: Any
) -> None:
    free = engine.generate(prompts, seeds=None, max_new_tokens=NEW)
    steered = engine.generate(prompts, seeds=None, max_new_tokens=NEW, knobs={"thinking_budget": 20})
    turned = 0
    for before, after in zip(free, steered, strict=True):
        pairs = zip(before.new_ids, after.new_ids, strict=False)
        turn = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
        if turn is not None and turn < len(after.thought):
            assert after.steered[0][0] == turn
            turned += 1
        edges = [edge for span in after.steered for edge in span]
        assert edges == sorted(set(edges))
        assert not edges or edges[-1] <= len(after.thought)
    assert turned
    quiet = TransformersEngine(reasoner).generate(
        prompts, seeds=None, max_new_tokens=NEW, knobs={"thinking_budget": 20}
    )
    assert ids_of(quiet) == ids_of(steered)
    assert all(c.steered == () for c in quiet)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_every_question(
    name: str, engine: TransformersEngine, items: list[Item]
) -> None:
    method = method_named(name)
    assert method.name == name
    setting = {"none": Setting(), "budget": Setting(budget=24), "effort": Setting(effort="low")}[method.takes]
    answers = method.answer(engine, items, setting, SEEDS, NEW)
    assert [a.item for a in answers] == [item.id for item in items]
    for answer, item in zip(answers, items, strict=True):
        assert (answer.method, answer.budget, answer.effort) == (name, setting.budget, setting.effort)
        assert (answer.task, answer.level, answer.expected) == (item.task, item.level, item.answer)
        assert answer.correct == (answer.answer.rpartition(" ")[2] == item.answer)


def test_an_unknown_method_is_named_with_those_known() -> None:
    with pytest.raises(EvalError, match="unknown method 'fuller': expected one of full, hard-cut"):
        method_named("fuller")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"knobs": {"budget": 4}}, "unknown knob 'budget'"),
        ({"knobs": {"thinking_budget": 4}, "hard_cut": 4}, "hard_cut=4 beside thinking_budget"),
        ({"knobs": [{"thinking_budget": 4}]}, "knobs of 1 rows for 4 prompts"),
        ({"knobs": [{"kv_budget": 64 + i} for i in range(4)]}, "kv_budget differs from row to row"),
        ({"seeds": [1]}, "1 seeds for 4 prompts"),
        ({"offsets": [1]}, "1 offsets for 4 seeds"),
        ({"knobs": {"thinking_budget": -1}}, "thinking_budget"),
    ],
)
def test_what_cannot_be_asked(
    engine: TransformersEngine, prompts: Any, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(BudgetctlError, match=said):
        engine.generate(prompts, **{"seeds": SEEDS, "max_new_tokens": 8, **arguments})


def test_no_prompts_no_completions(engine: TransformersEngine) -> None:
    assert engine.generate([], seeds=[], max_new_tokens=8) == []
