"""``generate(kv_budget=...)`` of an installed model: the cache follows the thought, and the thought the cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import budgetctl
from budgetctl.errors import BudgetError, CacheError
from budgetctl.integrations.transformers import Installation
from budgetctl.kv import BudgetCache
from budgetctl.kv.coupling import FINISH_TOKENS, KVCoupling
from budgetctl.reasoner.load import PREDICTOR, load_reasoner
from budgetctl.reasoner.tasks import take_questions


@pytest.fixture(scope="module")
def reasoner() -> Iterator[tuple[Any, Any, Installation]]:
    model, tokenizer = load_reasoner()
    tokenizer.padding_side = "left"
    installation = budgetctl.install(model, tokenizer, PREDICTOR)
    yield model, tokenizer, installation
    installation.uninstall()


def encode(tokenizer: Any, count: int, level: int = 7) -> Any:
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question.prompt}], add_generation_prompt=True, tokenize=False
        )
        for question in take_questions("test", count, min_level=level)
    ]
    return tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)


@pytest.mark.parametrize("budget", [400, "100%", "32MiB"])
@pytest.mark.parametrize("options", [{}, {"effort": "medium"}, {"num_beams": 2}], ids=str)
def test_what_fits_is_answered_as_without(reasoner: Any, budget: Any, options: dict[str, Any]) -> None:
    model, tokenizer, installation = reasoner
    inputs = encode(tokenizer, 4)
    options = {**options, "max_new_tokens": 160, "do_sample": False}
    expected = model.generate(**inputs, **options)
    assert installation.cache is None
    found = model.generate(**inputs, kv_budget=budget, **options)
    assert torch.equal(found, expected)
    assert isinstance(installation.cache, BudgetCache)
    assert installation.cache.evicted_mass().tolist() == [0.0] * len(installation.cache.evicted_mass())
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("budget", ["2MiB", "1500KiB", "900KB"])
def test_a_pool_is_never_exceeded_and_goes_where_it_is_needed(
    reasoner: Any, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, installation = reasoner
    held: list[int] = []
    observe = KVCoupling.observe

    def watched(self: KVCoupling, *arguments: Any) -> Any:
        found = observe(self, *arguments)
        held.append(self.cache.bytes_allocated)
        return found

    monkeypatch.setattr(KVCoupling, "observe", watched)
    inputs = encode(tokenizer, 4, level=2)
    model.generate(**inputs, kv_budget=budget, effort="high", max_new_tokens=150, do_sample=False)
    limit = {"2MiB": 2 * 2**20, "1500KiB": 1500 * 1024, "900KB": 900_000}[budget]
    assert len(held) > 30
    assert limit * 0.98 < max(held) <= limit
    # Predicted lengths differ, and so do the shares, as soon as there is a prediction.
    capacities = installation.cache.row_capacities
    order = sorted(
        range(4), key=lambda row: installation.reports(inputs["input_ids"])[row].predicted_tokens or 0
    )
    assert capacities[order[0]] < capacities[order[-1]]


def test_an_answer_is_protected_from_its_first_token(reasoner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is evicted in 64 slots, every layer and head holds all of the answer at the end."""
    model, tokenizer, installation = reasoner
    rooms: list[tuple[list[bool], int, list[int]]] = []
    begin = BudgetCache.begin_answer

    def noted(self: BudgetCache, rows: Any = None, reserve: int = 0, written: Any = None) -> None:
        rooms.append((rows.tolist(), reserve, written.tolist()))
        begin(self, rows, reserve, written)

    monkeypatch.setattr(BudgetCache, "begin_answer", noted)
    inputs = encode(tokenizer, 6, level=9)
    found = model.generate(
        **inputs,
        kv_budget=64,
        kv_policy="window",
        effort="medium",
        guidance_strength=16,  # thoughts of several lengths, so that no answer ends the batch before a look at it
        max_new_tokens=200,
        do_sample=False,
    )
    reports = installation.reports(found)
    mask, cache = inputs["attention_mask"], installation.cache
    # Each row once, at most one look late.
    assert [sum(rows[row] for rows, *_ in rooms) for row in range(6)] == [1] * 6
    for rows, reserve, written in rooms:
        assert reserve == 64 // 8
        assert all(0 <= count < 16 for count, begun in zip(written, rows, strict=True) if begun)
    assert min(report.answer_tokens for report in reports) >= 4
    for row, report in enumerate(reports):
        assert report.close != "none"
        length = int(mask[row].sum()) + report.thinking_tokens
        for layer in range(len(cache.layers)):
            state = cache.layers[layer].state
            assert (state.answers[row] <= length + 2).all()
            held = cache.positions(layer)[row]
            for head in held.tolist():
                # The end of the sequence itself and what is padded behind it are not of the answer.
                answer = range(length + 1, length + report.answer_tokens)
                assert set(answer) <= set(head)


def test_a_thought_that_has_lost_too_much_finishes(reasoner: Any) -> None:
    """It closes earlier than it would, within its last part; rows that lose little are left alone."""
    model, tokenizer, installation = reasoner
    inputs = encode(tokenizer, 8, level=9)
    options = {"kv_budget": 64, "max_new_tokens": 200, "do_sample": False}
    free = model.generate(**inputs, **options)
    before = installation.reports(free)
    told = model.generate(**inputs, kv_max_loss=0.5, **options)
    reports = installation.reports(told)
    caps = installation.controller.kv.caps
    assert caps is not None
    crowded = caps < 10**6
    assert crowded.any()
    assert not crowded.all()
    for row, (report, old) in enumerate(zip(reports, before, strict=True)):
        if crowded[row]:
            assert report.thinking_budget == int(caps[row])
            assert report.thinking_tokens <= int(caps[row])
            assert int(caps[row]) >= FINISH_TOKENS
        else:
            assert report.thinking_budget is None
            assert report == old
    assert sum(r.thinking_tokens for r in reports) < sum(r.thinking_tokens for r in before)
    # A loss that is never reached changes nothing.
    assert torch.equal(model.generate(**inputs, kv_max_loss=1e9, **options), free)


def test_rows_alone_are_as_in_a_batch(reasoner: Any) -> None:
    """With slots; with a share or bytes the smallest row of a batch says how many latest tokens all rows protect."""
    model, tokenizer, _ = reasoner
    inputs = encode(tokenizer, 4)
    model.double()
    try:
        for budget in (64, 40):
            options = {"kv_budget": budget, "max_new_tokens": 140, "do_sample": False, "kv_max_loss": 3.0}
            together = model.generate(**inputs, **options)
            for row in range(4):
                real = inputs["attention_mask"][row].bool()
                alone = model.generate(
                    input_ids=inputs["input_ids"][row][real][None],
                    attention_mask=torch.ones(1, int(real.sum()), dtype=torch.int64),
                    **options,
                )
                written = together[row, len(real) :]
                count = alone.shape[1] - int(real.sum())
                assert torch.equal(alone[0, int(real.sum()) :], written[:count])
    finally:
        model.float()


@pytest.mark.slow
def test_a_thought_ten_times_longer_than_the_cache(reasoner: Any) -> None:
    """A thought that goes on and on in constant memory, is closed at its budget, and is answered."""
    model, tokenizer, installation = reasoner
    inputs = encode(tokenizer, 2)
    sizes: list[int] = []

    def watch(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if installation.cache is not None and installation.cache.bytes_allocated:
            sizes.append(installation.cache.bytes_allocated)
        return scores

    found = model.generate(
        **inputs,
        kv_budget=96,
        thinking_target=1000,
        target_tolerance=10,
        answer_reserve=40,
        max_new_tokens=1100,
        do_sample=False,
        logits_processor=[watch],
    )
    assert len(sizes) > 900
    assert len(set(sizes)) == 1
    for report, text in zip(
        installation.reports(found),
        tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :]),
        strict=True,
    ):
        assert 990 <= report.thinking_tokens <= 1010
        _, _, answer = text.partition("</think>")
        assert "Answer:" in answer


def test_the_knobs_are_saved(reasoner: Any, tmp_path: Any) -> None:
    model = copy.deepcopy(reasoner[0])
    model.generation_config.kv_budget = "25%"
    model.generation_config.kv_policy = "h2o"
    model.generation_config.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert (again.kv_budget, again.kv_policy, again.kv_max_loss) == ("25%", "h2o", None)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"kv_budget": "many"}, CacheError, "kv_budget='many': expected slots"),
        ({"kv_budget": 64, "kv_policy": "best"}, CacheError, "unknown policy 'best'"),
        ({"kv_policy": "h2o"}, BudgetError, "kv_policy='h2o' without a KV budget"),
        ({"kv_max_loss": 2.0}, BudgetError, "kv_max_loss=2.0 without a KV budget"),
        ({"kv_budget": 64, "kv_max_loss": 0}, CacheError, "kv_max_loss=0: expected a number above 0"),
        ({"kv_budget": 64, "kv_max_loss": "x"}, CacheError, "kv_max_loss='x': expected a number above 0"),
        ({"kv_budget": 64, "kv_max_loss": 1.0, "num_beams": 2}, CacheError, "kv_max_loss with beams"),
        ({"kv_budget": "1KiB"}, CacheError, "expected at least 32, which is"),
        ({"kv_budget": 3}, CacheError, "a capacity of 3 slots: expected at least"),
        ({"kv_budget": 64, "use_cache": False}, BudgetError, "and the call has use_cache=False"),
        ({"kv_budget": 64, "cache_implementation": "static"}, BudgetError, "cache_implementation='static'"),
        ({"kv_budget": 64, "prompt_lookup_num_tokens": 2}, BudgetError, "prompt_lookup_num_tokens"),
    ],
)
def test_what_cannot_be_is_told_before_the_model_runs(
    reasoner: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    model, tokenizer, _ = reasoner
    runs: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        with pytest.raises(error) as told:
            model.generate(**encode(tokenizer, 2), max_new_tokens=20, **options)
    finally:
        handle.remove()
    assert said in str(told.value)
    assert "\n" not in str(told.value)
    assert runs == []
    assert model.config._attn_implementation == "sdpa"


def test_a_cache_of_the_callers_own_is_not_replaced(reasoner: Any) -> None:
    model, tokenizer, installation = reasoner
    own = BudgetCache(model.config, 300)
    with pytest.raises(BudgetError, match="the call has a cache of its own"):
        model.generate(**encode(tokenizer, 2), kv_budget=64, past_key_values=own, max_new_tokens=5)
    with pytest.raises(BudgetError, match="continuous batching has a paged cache of its own"):
        model.generate_batch([[1, 2, 3]], kv_budget=64, max_new_tokens=4)
    assert installation.cache is None or installation.cache is not own
