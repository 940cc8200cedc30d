"""What the controller promises: never over, the reserve kept, no leak, nothing closed too early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.controller import BudgetController
from budgetctl.sampling import SeededSampler

CASES = (
    "opened by the model",
    "opened by the template",
    "spelled by three tokens",
    "spelled, template",
    "closed by a phrase",
    "implicit",
)
BUDGETS = (0, 1, 2, 5, 17)
ROWS, STEPS = 20, 44


@pytest.fixture(scope="session")
def run(toy: Any, boundaries: Any, forecast: Any, prompts_of: Any, write: Any) -> Callable[..., Any]:
    """Generate under a controller; returns the sequences [B, T] and the prompt's width."""

    def generate(
        markers: Any,
        seed: int | None = 0,
        steer: bool = False,
        window: bool = False,
        rows: int = ROWS,
        **knobs: Any,
    ) -> tuple[torch.Tensor, int]:
        prompts = prompts_of(markers, rows)
        width = prompts.shape[1]
        knobs = {"prompt_length": width, **knobs}
        processors: list[Any] = [
            BudgetController(
                markers,
                forecast=forecast if steer else None,
                boundaries=boundaries if window else None,
                **knobs,
            )
        ]
        if seed is not None:
            processors.append(SeededSampler(range(seed, seed + rows), width))
        return write(toy, prompts, processors, STEPS), width

    return generate


@pytest.mark.parametrize("options", [{}, {"window": True}, {"steer": True, "window": True}])
@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("case", CASES)
def test_never_over(
    case: str, seed: int | None, options: dict[str, Any], run: Any, markers: Any, count: Any
) -> None:
    budgets = [BUDGETS[row % len(BUDGETS)] for row in range(ROWS)]
    sequences, width = run(markers[case], seed, thinking_budget=budgets, **options)
    counts = [count(row, width, markers[case]) for row in sequences.tolist()]
    assert [c.used > budget for c, budget in zip(counts, budgets, strict=True)] == [False] * ROWS
    assert sum(c.stray for c in counts) == 0
    if seed is not None:  # rows think, and the budgets are felt: most rows would think for longer
        assert sum(c.closes for c in counts) >= ROWS // 2
        free, _ = run(markers[case], seed)
        natural = [count(row, width, markers[case]).used for row in free.tolist()]
        assert sum(length > budget for length, budget in zip(natural, budgets, strict=True)) >= ROWS // 3


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_never_over_whatever_is_asked(data: st.DataObject, run: Any, markers: Any, count: Any) -> None:
    case = markers[data.draw(st.sampled_from(CASES))]
    budgets = data.draw(st.lists(st.integers(0, 20), min_size=6, max_size=6))
    options: dict[str, Any] = {"steer": data.draw(st.booleans()), "window": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        options["min_thinking_tokens"] = data.draw(st.integers(0, min(budgets)))
    if options["steer"]:
        options["guided_steps"] = data.draw(st.sampled_from(["every", "line", "first"]))
        options["guidance_strength"] = data.draw(st.sampled_from([0.0, 1.0, 5.0]))
        if min(budgets) > 0:
            options["effort"] = data.draw(st.sampled_from(["low", "high", 0.01, "auto"]))
    if data.draw(st.booleans()):
        options["prompt_length"] = None  # then the header tells where the turn begins
    sequences, width = run(
        case, data.draw(st.integers(0, 10_000)), rows=6, thinking_budget=budgets, **options
    )
    for row, budget in zip(sequences.tolist(), budgets, strict=True):
        assert count(row, width, case).used <= budget
        assert count(row, width, case).stray == 0


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("seed", [0, 100])
@pytest.mark.parametrize("case", CASES)
def test_the_close_is_complete_before_the_reserve(
    case: str, seed: int, window: bool, run: Any, markers: Any, count: Any
) -> None:
    """Budgets that do not bind, or bind at the very end; what bounds the thought is the room."""
    budgets = [None, 40, 30, 25] * (ROWS // 4)
    sequences, width = run(
        markers[case], seed, window=window, thinking_budget=budgets, max_new_tokens=STEPS, answer_reserve=14
    )
    closed = 0
    for row in sequences.tolist():
        at_reserve = count(row[: width + STEPS - 14], width, markers[case])
        assert not at_reserve.open
        assert count(row, width, markers[case]).opens == at_reserve.opens
        closed += at_reserve.closes
    assert closed >= ROWS // 2


def test_by_default_a_quarter_is_kept_for_the_answer(run: Any, markers: Any, count: Any) -> None:
    case = markers["spelled, template"]
    sequences, width = run(case, None, thinking_budget=1000, max_new_tokens=STEPS)
    free, _ = run(case, None)
    assert any(count(row, width, case).open for row in free.tolist())
    assert not any(count(row[: width + 33], width, case).open for row in sequences.tolist())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("knobs", [{}, {"thinking_budget": 9}, {"thinking_budget": 9, "window": True}])
def test_no_close_before_the_minimum(
    case: str, knobs: dict[str, Any], run: Any, markers: Any, count: Any
) -> None:
    def first_closed(row: list[int]) -> int | None:
        """Thinking tokens when the first close is complete."""
        for stop in range(width, len(row) + 1):
            if (found := count(row[:stop], width, markers[case])).closes:
                return found.used
        return None

    sequences, width = run(markers[case], 7, rows=60, min_thinking_tokens=6, **knobs)
    plain, _ = run(markers[case], 7, rows=60, **knobs)
    for row in sequences.tolist():
        length = first_closed(row)
        assert length is None or length >= 6
        assert not (knobs and 1 in row[width:] and count(row, width, markers[case]).open)
    assert sum((first_closed(row) or 99) < 6 for row in plain.tolist()) >= 1


def test_the_minimum_counts_what_a_spelling_leaves(markers: Any) -> None:
    """Of tokens that look like a thought's content, those that the close takes in do not count."""
    case = markers["spelled, template"]  # closed by (12, 13, 14), (15, 13, 14) or (15, 14)
    for thought, closable in (
        ([5, 15], False),
        ([5, 6, 15], True),
        ([5, 15, 13], False),
        ([5, 6, 12, 13], True),
    ):
        ids = torch.tensor([[7, 8, 9, 10, *thought]])
        scores = BudgetController(case, min_thinking_tokens=2, prompt_length=4)(ids, torch.zeros(1, 18))
        assert bool(scores[0, 14].isfinite()) == closable, thought


def test_the_last_token_of_a_budget_begins_no_close_that_reaches_below_the_minimum(markers: Any) -> None:
    """The forced close would go on with it, and take the thought's last tokens in."""
    case = markers["spelled, template"]  # closed by (12, 13, 14), (15, 13, 14) or (15, 14)
    for thought, minimum, banned in (
        ([5, 6], 3, {12, 15}),
        ([5, 6], 2, set()),
        ([5, 6], 0, set()),
        ([5], 3, set()),  # one more token fits
        ([5, 12], 3, {12, 13, 15}),
        ([5, 12], 2, {13}),
        ([5, 12], 1, set()),
        ([5, 15], 3, {12, 13, 14, 15}),
    ):
        ids = torch.tensor([[7, 8, 9, 10, *thought]])
        controller = BudgetController(case, thinking_budget=3, min_thinking_tokens=minimum, prompt_length=4)
        scores = controller(ids, torch.zeros(1, 18))
        refused = set(scores.isinf().nonzero()[:, 1].tolist()) - {1}
        assert refused == banned, (thought, minimum)


def test_the_closing_window_completes_no_other_spelling_below_the_minimum(
    markers: Any, boundaries: Any
) -> None:
    case = replace(markers["spelled, template"], natural_end_ids=((12, 13, 14), (15, 2, 12)))
    ids = torch.tensor([[7, 8, 9, 10, 5, 5, 15, 2]])  # ends a line, one token before the budget's end
    for minimum, forced in ((0, True), (2, True), (3, False)):
        controller = BudgetController(
            case,
            thinking_budget=5,
            min_thinking_tokens=minimum,
            prompt_length=4,
            boundaries=boundaries,
        )
        scores = controller(ids, torch.zeros(1, 18))
        assert (scores.isfinite().sum() == 1) == forced, minimum
        assert bool(scores[0, 12].isfinite()) == forced, minimum


def test_the_minimum_holds_against_a_small_effort(run: Any, markers: Any, count: Any) -> None:
    case = markers["opened by the template"]
    sequences, width = run(case, 3, steer=True, effort=0.001, min_thinking_tokens=4)
    assert {count(row, width, case).used for row in sequences.tolist()} == {4}


@pytest.mark.parametrize("case", CASES)
def test_end_of_sequence_in_a_thought_becomes_a_close(
    case: str, toy: Any, run: Any, markers: Any, count: Any
) -> None:
    found = markers[case]
    free, width = run(found, 50, rows=60)
    unanswered = [row for row in free.tolist() if 1 in row[width:] and count(row, width, found).open]
    assert len(unanswered) >= 3
    limited, _ = run(found, 50, rows=60, thinking_budget=1000)
    for row in limited.tolist():
        assert not (1 in row[width:] and count(row, width, found).open)


def test_end_of_sequence_gives_its_probability_to_the_close(markers: Any) -> None:
    case = markers["opened by the template"]
    prompt = torch.tensor([[7, 8, 9, 10, 2, 5, 6]])
    scores = torch.randn(1, 18, dtype=torch.float64)
    for temperature in (1.0, 0.6):
        controller = BudgetController(case, thinking_budget=50, prompt_length=5, temperature=temperature)
        before = (scores / temperature).softmax(1)
        after = (controller(prompt, scores) / temperature).softmax(1)
        assert after[0, 1] == 0
        torch.testing.assert_close(after[0, 11], before[0, 1] + before[0, 11])
        others = [i for i in range(18) if i not in (1, 11)]
        torch.testing.assert_close(after[0, others], before[0, others])


def test_a_forced_close_goes_on_with_what_the_model_has_begun(markers: Any) -> None:
    case = markers["spelled, template"]
    prompt = [7, 8, 9, 10]
    for thought, budget, token in (
        ([5, 6, 5], 3, 12),  # nothing begun
        ([5, 6, 12], 3, 13),  # the model's own first token is gone on with, and does not count then
        ([5, 12, 13], 3, 14),
        ([5, 6, 5, 12], 3, 13),  # begun by force
        ([5, 6, 15], 3, 12),  # another spelling's first token is content
        ([5, 12, 12], 3, 13),
    ):
        controller = BudgetController(case, thinking_budget=budget, prompt_length=4)
        scores = controller(torch.tensor([prompt + thought]), torch.zeros(1, 18))
        assert scores.isfinite().nonzero().tolist() == [[0, token]], thought


def test_no_second_thought_without_room_for_one(markers: Any) -> None:
    case = markers["spelled, template"]  # opened by (10) or (16, 17)
    base = [7, 8, 9, 10, 5, 5, 5, 12, 13, 14]  # three thinking tokens

    def allowed(budget: int, answer: list[int], **knobs: Any) -> set[int]:
        controller = BudgetController(case, thinking_budget=budget, prompt_length=4, **knobs)
        scores = controller(torch.tensor([base + answer]), torch.zeros(1, 18))
        return set(scores.isfinite().nonzero()[:, 1].tolist())

    assert 10 not in allowed(3, [6])
    assert 10 not in allowed(4, [6])  # the marker fits, nothing after it
    assert 10 in allowed(5, [6])
    assert 17 not in allowed(5, [6, 16])  # the marker of two tokens leaves no room
    assert 17 in allowed(6, [6, 16])
    assert 17 in allowed(3, [6])  # alone it opens nothing
    # in new tokens: 6 + 1 written, 1 to come, 3 for the close, 4 for the answer
    assert 10 not in allowed(50, [6], max_new_tokens=15, answer_reserve=4)
    assert 10 in allowed(50, [6], max_new_tokens=16, answer_reserve=4)


def test_no_first_thought_inside_the_reserve(markers: Any) -> None:
    case = markers["opened by the model"]
    prompt = torch.tensor([[7, 8, 9, 5, 5, 5]])
    for limit, open_allowed in ((9, True), (8, True), (7, False)):
        knobs: dict[str, Any] = {"max_new_tokens": limit, "answer_reserve": 3, "prompt_length": 3}
        scores = BudgetController(case, thinking_budget=5, **knobs)(prompt, torch.zeros(1, 18))
        assert bool(scores[0, 10].isfinite()) == open_allowed, limit


def test_no_first_thought_whose_marker_would_end_inside_the_reserve(markers: Any) -> None:
    """Where the marker is refused before its last token, as Harmony's is, the rest of it is written after that."""
    case = replace(
        markers["opened by the model"], open_ids=(10, 12, 13), open_variants=((16, 17),), open_refusal=1
    )
    prompt = torch.tensor([[7, 8, 9, 5, 5, 10]])
    # in new tokens: 3 written, 2 of the marker, 1 to close, 3 to answer
    for limit, open_allowed in ((9, True), (8, False), (7, False)):
        knobs: dict[str, Any] = {"max_new_tokens": limit, "answer_reserve": 3, "prompt_length": 3}
        scores = BudgetController(case, thinking_budget=5, **knobs)(prompt, torch.zeros(1, 18))
        assert bool(scores[0, 12].isfinite()) == open_allowed, limit


def test_no_second_close(markers: Any) -> None:
    spelled = markers["spelled, template"]
    for answer, banned in (([], set()), ([12], set()), ([12, 13], {14}), ([15], {14}), ([5], set())):
        ids = torch.tensor([[7, 8, 9, 10, 5, 12, 13, 14, *answer]])
        scores = BudgetController(spelled, thinking_budget=1, prompt_length=4)(ids, torch.zeros(1, 18))
        assert set(scores.isinf().nonzero()[:, 1].tolist()) - {10, 17} == banned, answer


def test_without_effort_every_row_is_untouched_also_beside_limited_ones(
    toy: Any, markers: Any, forecast: Any, boundaries: Any, prompts_of: Any
) -> None:
    case = markers["opened by the template"]
    prompts = torch.cat([prompts_of(case, 8), torch.randint(2, 18, (8, 6))], 1)
    scores = toy.read(prompts)
    scores[2, 5] = -torch.inf
    knobs: dict[str, Any] = {
        "forecast": forecast,
        "boundaries": boundaries,
        "prompt_length": 14,
        "max_new_tokens": 8,
    }
    mixed = BudgetController(case, thinking_budget=[None, 0, None, 3, None, 6, None, 9], **knobs)(
        prompts, scores
    )
    assert torch.equal(mixed[::2], scores[::2])
    assert not torch.equal(mixed[1::2], scores[1::2])
    alone = BudgetController(case, **knobs)
    assert alone.idle
    assert torch.equal(alone(prompts, scores), scores)


def test_implicit_thought_is_closed_at_once_without_budget(markers: Any) -> None:
    case = replace(markers["implicit"], open_ids=(), open_variants=())
    scores = BudgetController(case, effort="none", prompt_length=3)(
        torch.tensor([[7, 8, 9]]), torch.zeros(1, 18)
    )
    assert scores.isfinite().nonzero().tolist() == [[0, 11]]
