"""Continuous batching writes what ``generate`` writes with the same knobs, request by request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.requests import RequestState

from budgetctl.errors import BudgetctlError, BudgetError
from budgetctl.integrations.batching_hooks import budgets_of
from budgetctl.integrations.continuous_batching import BatchedBudgets, report_outputs
from budgetctl.integrations.transformers import Installation, install
from budgetctl.reasoner.load import PREDICTOR, load_reasoner

QUESTIONS = (
    "A dial shows 3: turn +4 -1. Where does it stop?",
    "Start at 12 and go u. Where does it end?",
    "How many?",
    "A dial shows 7: turn +5 -2 +4 -3 +1. Where does it stop?",
    "Why?",
)
KNOBS: list[dict[str, Any]] = [
    {"effort": "low"},
    {"thinking_budget": 0},
    {},
    {"thinking_budget": 1},
    {"effort": "high", "answer_reserve": 4},
    {"effort": 0.4, "thinking_budget": 9},
    {"effort": "none"},
    {"min_thinking_tokens": 6},
    {"effort": "max"},
    {"thinking_budget": 7, "min_thinking_tokens": 3},
    {"thinking_target": 8, "target_tolerance": 2},
    {"answer_reserve": 15},
]
LENGTHS = (24, 31, 20, 28)


def small(**settings: Any) -> ContinuousBatchingConfig:
    """Fewer rows than requests, and prompts that take several steps."""
    sizes = {"num_blocks": 24, "page_size": 16, "max_batch_tokens": 48, "max_requests_per_batch": 3}
    return ContinuousBatchingConfig(**(sizes | settings))


def encode(tokenizer: Any, questions: Any) -> list[list[int]]:
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)[
            "input_ids"
        ]
        for text in questions
    ]


def alone(installation: Installation, prompt: list[int], length: int, knobs: dict[str, Any]) -> Any:
    """New tokens and report of ``generate`` for one prompt."""
    ids = torch.tensor([prompt])
    sequence = installation.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, **knobs
    )
    return sequence[0, len(prompt) :].tolist(), installation.reports(sequence)[0]


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """One list a knob."""
    return {name: [row.get(name) for row in rows] for row in rows for name in row}


def same_report(one: Any, other: Any) -> bool:
    own, its = one.as_dict(), other.as_dict()
    pair = own.pop("predicted_tokens"), its.pop("predicted_tokens")
    return own == its and (pair[0] == pair[1] or pair[0] == pytest.approx(pair[1], rel=1e-6))


@pytest.fixture
def tiny(model: Any, tokenizer: Any, artifact: Any) -> Iterator[Installation]:
    """In float64, so that another order of additions changes no token."""
    model.double()
    model.generation_config.do_sample = False
    model.generation_config.top_k = None
    installation = install(model, tokenizer, artifact, dtype=torch.float64)
    yield installation
    model.destroy_cached_continuous_batching_manager()


def test_tokens_and_reports_of_generate(tiny: Installation, tokenizer: Any) -> None:
    prompts = encode(tokenizer, [QUESTIONS[i % len(QUESTIONS)] for i in range(len(KNOBS))])
    lengths = [LENGTHS[i % len(LENGTHS)] for i in range(len(KNOBS))]
    expected = [alone(tiny, *row) for row in zip(prompts, lengths, KNOBS, strict=True)]
    outputs = tiny.model.generate_batch(
        prompts, continuous_batching_config=small(), max_new_tokens=lengths, **columns(KNOBS)
    )
    assert tiny.batching is not None
    reports = report_outputs(tiny.batching, outputs)
    for (name, output), (tokens, report) in zip(outputs.items(), expected, strict=True):
        assert output.generated_tokens == tokens
        assert same_report(reports[name], report), (reports[name], report)
    free = [alone(tiny, *row, {})[0] for row in zip(prompts, lengths, strict=True)]
    assert sum(tokens != plain for (tokens, _), plain in zip(expected, free, strict=True)) >= 6
    assert {report.close for _, report in expected} == {"none", "forced"}


def test_each_request_follows_its_own_plan(tiny: Installation, tokenizer: Any) -> None:
    """Shares, headings and notes are those of ``generate``, whichever requests share a step."""
    note = {"template": "({regime})"}
    knobs: list[dict[str, Any]] = [
        {"plan": {"steps": ["a", "b"], "firmness": 1}, "min_thinking_tokens": 44},
        {},
        {
            "plan": {"steps": ["one", {"text": "two", "weight": 3}], "firmness": 1},
            "budget_notes": note,
            "min_thinking_tokens": 50,
        },
        {
            "plan": {"steps": [{"text": "x", "heading": ""}, "y"], "schedule": "uniform"},
            "thinking_budget": 30,
        },
        {"budget_notes": {"tracker": {"tokens": 40}, "template": "({regime})"}, "thinking_budget": 40},
        {"plan": ["one", {"text": "two", "weight": 3}], "min_thinking_tokens": 30},
    ]
    prompts = encode(tokenizer, [QUESTIONS[i % len(QUESTIONS)] for i in range(len(knobs))])
    expected = [alone(tiny, prompt, 80, own) for prompt, own in zip(prompts, knobs, strict=True)]
    outputs = tiny.model.generate_batch(
        prompts, continuous_batching_config=small(), max_new_tokens=80, **columns(knobs)
    )
    reports = report_outputs(tiny.batching, outputs)
    for (name, output), (tokens, report) in zip(outputs.items(), expected, strict=True):
        assert output.generated_tokens == tokens
        assert same_report(reports[name], report), (reports[name], report)
    texts = [tokenizer.decode(tokens) for tokens, _ in expected]
    assert "Step 1: a\n" in texts[0]
    assert "\nStep 2: b\n" in texts[0]
    assert "\nStep 2: y\n" in texts[3]
    assert [report.note_tokens > 0 for _, report in expected] == [False, False, True, False, True, False]


def test_plans_of_a_request_that_are_refused(tiny: Installation, tokenizer: Any) -> None:
    prompts = encode(tokenizer, QUESTIONS[:2])
    for plan, match in (
        ([], "0 steps"),
        ([["a"]] * 3, "plan has 3 values for 2 prompts"),
        (5, "of type int"),
    ):
        with pytest.raises(BudgetctlError, match=match):
            tiny.model.generate_batch(
                prompts, continuous_batching_config=small(), max_new_tokens=8, plan=plan
            )
    with tiny.model.continuous_batching_context_manager(continuous_batching_config=small()) as manager:
        with pytest.raises(BudgetctlError, match="2 plans in one request"):
            manager.add_request(prompts[0], plan=[["a"], ["b"]])
        with pytest.raises(BudgetError, match="without a plan"):
            manager.add_request(prompts[0], budget_notes=True)


def test_requests_that_come_while_others_run(tiny: Installation, tokenizer: Any) -> None:
    """The second wave is sent when the first answer is there; finished requests give up their places."""
    prompts = encode(tokenizer, QUESTIONS)
    rows = [(prompts[i % 5], LENGTHS[i % 4], KNOBS[i % len(KNOBS)]) for i in range(24)]
    got: dict[str, list[int]] = {}
    with tiny.model.continuous_batching_context_manager(continuous_batching_config=small()) as manager:

        def send(numbers: range) -> None:
            for i in numbers:
                prompt, length, knobs = rows[i]
                manager.add_request(prompt, request_id=str(i), max_new_tokens=length, **knobs)

        send(range(6))
        while len(got) < len(rows):
            result = manager.get_result(timeout=20)
            assert result is not None
            assert result.error is None
            got[result.request_id] = result.generated_tokens
            if len(got) == 1:
                send(range(6, len(rows)))
        table = budgets_of(manager)._table
    assert table is not None
    assert len(table.tokens) < len(rows)
    assert [got[str(i)] for i in range(len(rows))] == [alone(tiny, *row)[0] for row in rows]


def test_requests_that_are_sent_back_to_the_queue(
    tiny: Installation, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is too small for all, so some are prefilled again with what they had written."""
    restarts: list[str] = []
    original = RequestState.create_equivalent_initial_request

    def restart(state: RequestState) -> RequestState:
        restarts.append(state.request_id)
        return original(state)

    monkeypatch.setattr(RequestState, "create_equivalent_initial_request", restart)
    prompts = encode(tokenizer, [QUESTIONS[3]] * 6)
    knobs: list[dict[str, Any]] = [{"effort": effort} for effort in ("low", "medium", "high", 0.3, 0.7)]
    knobs.append({"thinking_budget": 20})
    outputs = tiny.model.generate_batch(
        prompts,
        continuous_batching_config=small(
            num_blocks=14, page_size=8, max_requests_per_batch=6, allow_block_sharing=False
        ),
        max_new_tokens=30,
        **columns(knobs),
    )
    assert restarts
    assert tiny.batching is not None
    reports = report_outputs(tiny.batching, outputs)
    for (name, output), row in zip(outputs.items(), knobs, strict=True):
        tokens, report = alone(tiny, prompts[0], 30, row)
        assert output.generated_tokens == tokens
        assert same_report(reports[name], report)


def test_rows_without_a_limit_keep_their_bits(
    tiny: Installation, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = kept = 0
    steer = BatchedBudgets.__call__

    def watched(self: BatchedBudgets, scores: torch.Tensor, arguments: torch.Tensor) -> torch.Tensor:
        nonlocal changed, kept
        before = scores.clone()
        limited = [row for row, _, _ in self._batch]
        result = steer(self, scores, arguments)
        others = [row for row in range(len(scores)) if row not in limited]
        assert torch.equal(result[others], before[others])
        changed += bool(limited) and not torch.equal(result[limited], before[limited])
        kept += len(others)
        return result

    monkeypatch.setattr(BatchedBudgets, "__call__", watched)
    prompts = encode(tokenizer, QUESTIONS[:3])
    mixed = tiny.model.generate_batch(
        prompts, continuous_batching_config=small(), max_new_tokens=20, thinking_budget=[None, 2, None]
    )
    assert changed > 5
    assert kept > 10
    tiny.uninstall()
    plain = tiny.model.generate_batch(prompts, continuous_batching_config=small(), max_new_tokens=20)
    for i in (0, 2):
        assert mixed[f"req_{i}"].generated_tokens == plain[f"req_{i}"].generated_tokens


class Request:
    """What a processor reads of a scheduled request."""

    def __init__(self, state: RequestState) -> None:
        self.state = state
        self.has_new_token = True


def test_the_host_may_be_behind(tiny: Installation, tokenizer: Any) -> None:
    """As in asynchronous batching: the host schedules a step before it knows the token of the step before."""
    prompts = encode(tokenizer, QUESTIONS)
    knobs: list[dict[str, Any]] = [KNOBS[i] for i in (0, 3, 2, 4, 5)]
    tiny.model.generation_config.max_new_tokens = 24
    budgets = BatchedBudgets(tiny, tiny.model.generation_config)
    states = [
        RequestState(str(i), prompt, max_new_tokens=24, logit_processor_kwargs=row)
        for i, (prompt, row) in enumerate(zip(prompts, knobs, strict=True))
    ]
    written: list[list[int]] = [[] for _ in states]
    for step in range(30):
        rows = [i for i in range(len(states)) if i <= step and len(written[i]) < 24][:: 1 if step % 2 else -1]
        if not rows:
            break
        prefixes = [prompts[i] + written[i] for i in rows]
        for i, prefix in zip(rows, prefixes, strict=True):
            states[i].position_offset = len(prefix)
            states[i].generated_tokens = written[i][:-1]
        arguments = budgets.prepare_tensor_args([Request(states[i]) for i in rows])
        with torch.no_grad():
            logits = torch.cat(
                [tiny.model(torch.tensor([prefix])).logits[:, -1].float() for prefix in prefixes]
            )
        budgets.inputs(torch.tensor([prefix[-1] for prefix in prefixes], dtype=torch.int32), logits)
        for i, token in zip(rows, budgets(logits, arguments).argmax(1).tolist(), strict=True):
            written[i].append(token)
    for prompt, row, tokens in zip(prompts, knobs, written, strict=True):
        expected = alone(tiny, prompt, 24, row)[0]
        assert tokens[: len(expected)] == expected


@pytest.mark.parametrize("returned", [1, 3])
def test_sampling_holds_each_budget(tiny: Installation, tokenizer: Any, returned: int) -> None:
    config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        max_new_tokens=30,
        num_return_sequences=returned,
        eos_token_id=tokenizer.eos_token_id,
    )
    budgets = [0, 1, 5, 9, 14]
    outputs = tiny.model.generate_batch(
        encode(tokenizer, QUESTIONS),
        config,
        small(per_request_processors=True, seed=0),
        thinking_budget=budgets,
    )
    assert len(outputs) == 5 * returned
    assert tiny.batching is not None
    reports = list(report_outputs(tiny.batching, outputs).values())
    expected = [budget for budget in budgets for _ in range(returned)]
    assert [report.thinking_budget for report in reports] == expected
    assert all(r.thinking_tokens <= budget for r, budget in zip(reports, expected, strict=True))


def test_temperature_of_a_request(tiny: Installation, tokenizer: Any) -> None:
    """Cold requests write the greedy tokens; guidance is scaled by each one's temperature."""
    config = GenerationConfig(do_sample=True, temperature=0.5, eos_token_id=tokenizer.eos_token_id)
    prompts = encode(tokenizer, QUESTIONS)
    manager = tiny.model.init_continuous_batching(config, small(per_request_processors=True, seed=0))
    manager.start()
    try:
        for i, prompt in enumerate(prompts):
            manager.add_request(
                prompt, str(i), 24, temperature=1e-5 if i % 2 else 1.0, thinking_budget=10 + i
            )
        got = {}
        while len(got) < len(prompts):
            result = manager.get_result(timeout=20)
            assert result is not None
            got[result.request_id] = result.generated_tokens
    finally:
        manager.stop()
    for i in (1, 3):
        cold = GenerationConfig(
            do_sample=True, temperature=1e-5, top_k=0, eos_token_id=tokenizer.eos_token_id
        )
        knobs = {"thinking_budget": 10 + i, "generation_config": cold}
        assert got[str(i)] == alone(tiny, prompts[i], 24, knobs)[0]


def test_the_embedded_reasoner() -> None:
    model, tokenizer = load_reasoner(dtype=torch.float64)
    model.generation_config.update(do_sample=False, top_k=None, top_p=None, temperature=None)
    installation = install(model, tokenizer, PREDICTOR, dtype=torch.float64)
    prompts = encode(tokenizer, QUESTIONS[:4])
    knobs: list[dict[str, Any]] = [{"effort": level} for level in ("none", "low", "high", 0.4)]
    outputs = model.generate_batch(
        prompts,
        continuous_batching_config=small(num_blocks=40),
        max_new_tokens=120,
        **columns(knobs),
    )
    assert installation.batching is not None
    reports = report_outputs(installation.batching, outputs)
    for prompt, row, (name, output) in zip(prompts, knobs, outputs.items(), strict=True):
        tokens, report = alone(installation, prompt, 120, row)
        assert output.generated_tokens == tokens
        assert same_report(reports[name], report)
    assert reports["req_0"].thinking_tokens == 0
    assert {report.close for report in reports.values()} >= {"natural", "forced"}


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"effort": ["low", "hihg"]}, "unknown effort 'hihg'"),
        ({"thinking_budget": [5, -3]}, "thinking_budget=-3 is negative"),
        ({"thinking_budget": [5, 6, 7]}, "thinking_budget has 3 values for 2 prompts"),
        ({"thinking_budget": 3, "min_thinking_tokens": 9}, "min_thinking_tokens=9 is more than"),
        ({"answer_reserve": 90}, "answer_reserve=90 plus"),
        ({"effort": "max", "thinking_budget": [None, 4]}, "contradicts thinking_budget=4"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(
    tiny: Installation, tokenizer: Any, knobs: dict[str, Any], words: str
) -> None:
    tiny.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(BudgetError, match=words) as error:
        tiny.model.generate_batch(
            encode(tokenizer, QUESTIONS[:2]), continuous_batching_config=small(), max_new_tokens=9, **knobs
        )
    assert "\n" not in str(error.value)


def test_a_manager_refuses_one_request_and_serves_the_others(tiny: Installation, tokenizer: Any) -> None:
    (prompt,) = encode(tokenizer, QUESTIONS[:1])
    with tiny.model.continuous_batching_context_manager(continuous_batching_config=small()) as manager:
        for bad in ({"thinking_budget": "many"}, {"effort": ["low", "high"]}, {"effort": 7}):
            with pytest.raises(BudgetError):
                manager.add_request(prompt, max_new_tokens=8, **bad)
        name = manager.add_request(prompt, max_new_tokens=12, thinking_budget=2)
        result = manager.get_result(timeout=20)
        assert result is not None
        assert result.request_id == name
        budgets = budgets_of(manager)
        assert budgets.report(name, prompt, result.generated_tokens).thinking_tokens <= 2
        with pytest.raises(BudgetError, match="no report of request 'other'"):
            budgets.report("other", prompt, [])
    tiny.model.generation_config.thinking_budget = -1
    with pytest.raises(BudgetError, match="thinking_budget=-1 is negative"):
        tiny.model.init_continuous_batching(continuous_batching_config=small())


def test_knobs_of_the_generation_config_and_paged_generate(tiny: Installation, tokenizer: Any) -> None:
    """A request's own knob replaces the config's; ``cache_implementation="paged"`` comes the same way."""
    (prompt,) = encode(tokenizer, QUESTIONS[:1])
    expected = alone(tiny, prompt, 20, {"thinking_budget": 3})[0]
    paged = tiny.model.generate(
        torch.tensor([prompt]),
        max_new_tokens=20,
        thinking_budget=3,
        cache_implementation="paged",
        continuous_batching_config=small(),
    )
    assert paged[0, 0, len(prompt) :].tolist() == expected
    tiny.model.generation_config.thinking_budget = 3
    outputs = tiny.model.generate_batch(
        [prompt] * 2, continuous_batching_config=small(), max_new_tokens=20, thinking_budget=[None, 6]
    )
    assert outputs["req_0"].generated_tokens == expected
    assert outputs["req_1"].generated_tokens == alone(tiny, prompt, 20, {"thinking_budget": 6})[0]


def test_without_an_end_of_sequence(model: Any, tokenizer: Any) -> None:
    """transformers writes -1 into the generation config then, which is no token."""
    model.generation_config.update(do_sample=False, top_k=None, eos_token_id=None)
    (prompt,) = encode(tokenizer, QUESTIONS[:1])
    plain = model.generate_batch([prompt], continuous_batching_config=small(), max_new_tokens=20)
    assert model.generation_config.eos_token_id == -1
    installation = install(model, tokenizer)
    assert min(installation.delimiters.eos_ids, default=0) >= 0
    outputs = model.generate_batch(
        [prompt] * 2, continuous_batching_config=small(), max_new_tokens=20, thinking_budget=[None, 3]
    )
    assert outputs["req_0"].generated_tokens == plain["req_0"].generated_tokens
    reports = report_outputs(installation.batching, outputs)
    assert len(outputs["req_1"].generated_tokens) == 20
    assert reports["req_1"].thinking_tokens <= 3
    assert reports["req_1"].close == "forced"


def test_a_manager_kept_between_calls_and_uninstall(tiny: Installation, tokenizer: Any) -> None:
    prompts = encode(tokenizer, QUESTIONS[:2])
    expected = [alone(tiny, prompt, 16, {"thinking_budget": 4})[0] for prompt in prompts]
    for _ in range(2):
        outputs = tiny.model.generate_batch(
            prompts,
            continuous_batching_config=small(),
            max_new_tokens=16,
            thinking_budget=4,
            persistent_manager=True,
        )
        assert [output.generated_tokens for output in outputs.values()] == expected
    tiny.model.destroy_cached_continuous_batching_manager()
    tiny.uninstall()
    assert not {"generate_batch", "init_continuous_batching"} & vars(tiny.model).keys()


def test_knobs_for_all_requests_of_a_call(tiny: Installation, tokenizer: Any) -> None:
    """What is not of one request alone holds for all of the call, and is not dropped."""
    (prompt,) = encode(tokenizer, QUESTIONS[:1])
    shared = {
        "transition_phrase": "So",
        "max_extensions": 1,
        "extension_phrase": "check",
        "guidance_strength": 1.0,
    }
    expected = alone(tiny, prompt, 24, {**shared, "thinking_budget": 14})[0]
    assert expected != alone(tiny, prompt, 24, {"thinking_budget": 14})[0]
    outputs = tiny.model.generate_batch(
        [prompt], continuous_batching_config=small(), max_new_tokens=24, thinking_budget=14, **shared
    )
    assert outputs["req_0"].generated_tokens == expected
    assert getattr(tiny.model.generation_config, "max_extensions", None) is None
    with pytest.raises(BudgetError, match="early_exit"):
        tiny.model.generate_batch([prompt], max_new_tokens=24, early_exit="confidence")


def test_a_kept_manager_keeps_its_knobs(tiny: Installation, tokenizer: Any) -> None:
    options = {"continuous_batching_config": small(), "max_new_tokens": 16, "persistent_manager": True}
    prompts = encode(tokenizer, QUESTIONS[:1])
    tiny.model.generate_batch(prompts, thinking_budget=4, **options)
    with pytest.raises(BudgetError, match=r"max_extensions=1 .* kept between calls"):
        tiny.model.generate_batch(prompts, thinking_budget=4, max_extensions=1, **options)
