"""Plans kept: over no budget, each step over in time, a function of the prefix, and the same alone as in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgetctl.controller import BudgetController
from budgetctl.plan.enforce import StepGuide
from budgetctl.plan.step_reader import steps_begun
from budgetctl.sampling import SeededSampler

LINE, OPEN, CLOSE = 2, 10, 11
CASE = "opened by the template"
ROWS = 12
WEIGHTS: list[list[float] | None] = [[1, 1, 1], [3, 1], None, [1, 2, 1, 2], [1, 0, 5], [1]] * 2
HEADED = [False, True, False, True, False, False] * 2
BUDGETS = [30, 24, 12, 36, 8, 20, 25, 40, None, 44, 3, 0]
Make = Callable[..., BudgetController]


@pytest.fixture
def controller(markers: Any, forecast: Any, boundaries: Any, row_plans: Any) -> Make:
    def make(
        width: int,
        rows: Any = range(ROWS),
        *,
        case: str = CASE,
        steer: bool = True,
        weights: Any = WEIGHTS,
        budgets: Any = BUDGETS,
        **options: Any,
    ) -> BudgetController:
        made = BudgetController(
            markers[case],
            forecast=forecast if steer else None,
            boundaries=boundaries,
            prompt_length=width,
            max_new_tokens=60,
            answer_reserve=4,
            thinking_budget=[budgets[i] for i in rows],
            **options,
        )
        plans = row_plans([weights[i] for i in rows], [HEADED[i] for i in rows])
        made.steps = StepGuide(plans, made.limits)
        return made

    return make


def account(made: BudgetController, ids: torch.Tensor, width: int) -> list[list[int]]:
    """For each row the thinking tokens written when each step was over, by the tokens alone."""
    plans = made.steps.on(len(ids), torch.device("cpu"))  # type: ignore[union-attr]
    begun = steps_begun(ids, torch.full((len(ids),), width), plans, made.boundaries.line)  # type: ignore[union-attr]
    ends = []
    for row, numbers, count in zip(
        ids[:, width:].tolist(), begun[:, width:].tolist(), plans.steps.tolist(), strict=True
    ):
        stop = next((at for at, token in enumerate(row) if token in (CLOSE, 1)), len(row))
        ends.append([sum(n <= step for n in numbers[:stop]) for step in range(1, count + 1)])
    return ends


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 10_000), steer=st.booleans())
def test_steps_are_over_in_time_and_the_budget_holds(
    data: st.DataObject,
    seed: int,
    steer: bool,
    toy: Any,
    markers: Any,
    prompts_of: Any,
    write: Any,
    controller: Make,
) -> None:
    plan = st.lists(st.sampled_from((0.5, 1.0, 2.0)), min_size=1, max_size=4)
    weights = data.draw(st.lists(st.one_of(st.none(), plan), min_size=ROWS, max_size=ROWS))
    budgets = data.draw(st.lists(st.integers(0, 50), min_size=ROWS, max_size=ROWS))
    prompts = prompts_of(markers[CASE], ROWS)
    width = prompts.shape[1]
    made = controller(width, weights=weights, budgets=budgets, steer=steer)
    ids = write(toy, prompts, [made, SeededSampler(range(seed, seed + ROWS), width)], 60)
    shares = made.steps.plans.shares(made.limits)  # type: ignore[union-attr]
    for row, (ends, parts, budget) in enumerate(zip(account(made, ids, width), shares, budgets, strict=True)):
        thought = ids[row, width:].tolist()
        used = thought.index(CLOSE) if CLOSE in thought else len(thought)
        assert used <= min(budget, 55)
        steps = made.steps.plans.spelled[row]  # type: ignore[union-attr]
        sizes = [len(step.heading) for step in steps]
        over = 0
        for number, share in enumerate(parts[:-1]):
            over += share
            # What is wider than its share cannot be kept to it; a heading that the thought has no room for is not begun.
            fits = (
                all(p > size + 1 for p, size in zip(parts, sizes, strict=True))
                and over + sizes[number + 1] < budget
            )
            if fits:
                assert ends[number] <= over, (row, ends, parts, thought)


def test_what_is_left_over_goes_to_the_next_step(
    toy: Any, markers: Any, boundaries: Any, row_plans: Any
) -> None:
    """A step that is over early leaves its tokens to the next: what counts is the sum of the shares."""
    prompt = [7, 5, 8, 9, OPEN, LINE]
    made = BudgetController(markers[CASE], boundaries=boundaries, prompt_length=6, thinking_budget=30)
    made.steps = StepGuide(row_plans([[1, 1, 1]]), made.limits)
    rest: list[int] = []

    def next_tokens() -> list[int]:
        ids = torch.tensor([prompt + rest])
        return made(ids, torch.zeros(1, 18)).isfinite().nonzero()[:, 1].tolist()

    rest = [4, 4, LINE, 5]  # step 2 begins after 3 tokens
    assert len(next_tokens()) > 1
    rest += [4] * 15  # 19 tokens in all: it may go on up to 20
    assert next_tokens() == [LINE]
    rest += [LINE]
    assert next_tokens() == [6]  # the heading of step 3, token by token
    rest += [6]
    assert next_tokens() == [6]
    rest += [6]
    assert next_tokens() == [5]  # its mark is there, the rest of it follows
    rest += [5]
    assert next_tokens() == [LINE]
    rest += [LINE]
    assert len(next_tokens()) > 1
    rest += [4] * (30 - len(rest))
    assert next_tokens() == [CLOSE]


def test_the_first_heading_is_written_and_near_the_end_a_line_is_enough(
    markers: Any, boundaries: Any, row_plans: Any
) -> None:
    prompt = [7, 5, 8, 9, OPEN, LINE]
    made = BudgetController(markers[CASE], boundaries=boundaries, prompt_length=6, thinking_budget=40)
    made.steps = StepGuide(row_plans([[1, 1]], [True]), made.limits)

    def next_tokens(rest: list[int]) -> list[int]:
        return made(torch.tensor([prompt + rest]), torch.zeros(1, 18)).isfinite().nonzero()[:, 1].tolist()

    assert next_tokens([]) == [12]
    assert next_tokens([12]) == [12]
    assert next_tokens([12, 12]) == [LINE]
    begun = [12, 12, LINE]
    assert len(next_tokens([*begun, *[4] * 13, LINE])) > 1  # 17 of 20 tokens
    assert next_tokens([*begun, *[4] * 14, LINE]) == [5]  # 18: in the window of two tokens
    assert next_tokens([*begun, *[4] * 13, 13, 3]) == [LINE]  # at the end of a sentence
    assert len(next_tokens([*begun, *[4] * 15])) > 1  # not in mid-sentence
    assert next_tokens([*begun, *[4] * 16]) == [LINE]  # but at 19, so that the line ends at 20


def test_a_step_takes_longer_until_the_model_considers_to_move_on(
    markers: Any, boundaries: Any, row_plans: Any
) -> None:
    """Shares of 20 and 20; 10 of the second are kept, so that the first ends after 30 in any case."""
    prompt = [7, 5, 8, 9, OPEN, LINE]

    def next_tokens(rest: list[int], heading: float, temperature: float = 1.0) -> list[int]:
        made = BudgetController(
            markers[CASE], boundaries=boundaries, prompt_length=6, thinking_budget=40, temperature=temperature
        )
        made.steps = StepGuide(row_plans([[1, 1]], firmness=0.5), made.limits)
        scores = torch.zeros(1, 18)
        scores[0, 5] = heading
        return made(torch.tensor([prompt + rest]), scores).isfinite().nonzero()[:, 1].tolist()

    for used, heading, moves in (
        (16, 5.0, False),  # its share is not spent
        (22, -0.6, True),  # more than half as likely as the likeliest
        (22, -0.8, False),
        (28, -0.8, True),  # in the window before what is kept
    ):
        assert (next_tokens([*[4] * (used - 1), LINE], heading) == [5]) == moves
    assert next_tokens([*[4] * 21, LINE], -0.8, temperature=2.0) == [5]
    assert len(next_tokens([*[4] * 22], 5.0)) > 1  # not inside a line
    assert next_tokens([*[4] * 29], -9.0) == [LINE]


def test_no_heading_without_room_for_it(markers: Any, boundaries: Any, row_plans: Any) -> None:
    prompt = [7, 5, 8, 9, OPEN, LINE]
    made = BudgetController(markers[CASE], boundaries=boundaries, prompt_length=6, thinking_budget=8)
    made.steps = StepGuide(row_plans([[6, 1, 1]]), made.limits)
    # The heading of step 3 has four tokens, and one must be able to follow it.
    for used, free in ((1, True), (6, True), (7, True), (8, False)):
        rest = [5, LINE] + [4] * used
        scores = made(torch.tensor([prompt + rest[:used]]), torch.zeros(1, 18))
        assert (int(scores.isfinite().sum()) > 1) == free


@pytest.mark.parametrize("steer", [False, True])
def test_same_scores_in_any_order_and_beside_any_rows(
    steer: bool, toy: Any, markers: Any, prompts_of: Any, write: Any, controller: Make
) -> None:
    prompts = prompts_of(markers[CASE], ROWS)
    width = prompts.shape[1]
    first = controller(width, steer=steer)
    ids = write(toy, prompts, [first, SeededSampler(range(ROWS), width)], 40)
    steps = [ids[:, :stop] for stop in range(width, ids.shape[1])]
    logits = [toy.read(prefix) for prefix in steps]
    kept = [scores.clone() for scores in logits]
    first = controller(width, steer=steer)
    wanted = [first(prefix, scores) for prefix, scores in zip(steps, logits, strict=True)]
    assert sum(int((row.isfinite().sum(1) == 1).sum()) for row in wanted) > 20  # headings and closes
    again = [first(prefix, scores) for prefix, scores in zip(steps, logits, strict=True)]
    unrelated = torch.randint(2, 18, (ROWS, width + 3))
    first(unrelated, toy.read(unrelated))
    backwards = [first(p, s) for p, s in zip(steps[::-1], logits[::-1], strict=True)][::-1]
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    other = controller(width, order.tolist(), steer=steer)
    fresh = [controller(width, steer=False)(p, s) for p, s in zip(steps, logits, strict=True)]
    for step, scores in enumerate(wanted):
        assert torch.equal(scores, again[step])
        assert torch.equal(scores, backwards[step])
        assert torch.equal(logits[step], kept[step])
        moved = other(steps[step][order], logits[step][order])
        torch.testing.assert_close(moved, scores[order], rtol=1e-9, atol=1e-9)
        if not steer:  # nothing is remembered, so that a controller asked in mid-thought knows all
            assert torch.equal(scores, fresh[step])


def test_rows_without_a_plan_are_as_they_were(
    toy: Any, markers: Any, prompts_of: Any, write: Any, controller: Make
) -> None:
    prompts = prompts_of(markers[CASE], ROWS)
    width = prompts.shape[1]
    some, none = controller(width), controller(width, weights=[None] * ROWS)
    ids = write(toy, prompts, [some], 30)
    for stop in range(width, ids.shape[1]):
        prefix, scores = ids[:, :stop], toy.read(ids[:, :stop])
        with_plans, without = some(prefix, scores), none(prefix, scores)
        for row, weights in enumerate(WEIGHTS):
            if weights is None:
                assert torch.equal(with_plans[row], without[row])


@pytest.mark.parametrize("seeded", [False, True])
def test_a_row_alone_gets_the_tokens_it_gets_in_a_padded_batch(
    seeded: bool, toy: Any, markers: Any, prompts_of: Any, write: Any, controller: Make
) -> None:
    prompts = prompts_of(markers[CASE], ROWS)
    width = prompts.shape[1]

    def answer(rows: list[int]) -> list[list[int]]:
        begin = int((prompts[rows] != 0).int().argmax(1).min())
        processors: list[Any] = [controller(width - begin, rows)]
        if seeded:
            processors.append(SeededSampler(rows, width - begin))
        return write(toy, prompts[rows][:, begin:], processors, 50)[:, width - begin :].tolist()

    together = answer(list(range(ROWS)))
    assert [answer([row])[0] for row in range(ROWS)] == together


def test_steps_with_less_than_their_part_of_the_work_are_aimed_at(
    toy: Any, markers: Any, prompts_of: Any, controller: Make
) -> None:
    """The aim is what is left of the step and the natural length of the later steps, where that is less than all."""
    made = controller(4, [0])
    guide = made.steps
    assert guide is not None
    ids = torch.tensor([[7, 5, 8, 9, OPEN, LINE, 4, 4]])
    reading = made._reader.read(ids, 6, None)
    left = torch.tensor([28])
    now = guide.now(ids, reading, left)
    assert (now.number.item(), now.left.item(), now.share.item()) == (1, 8, 10)
    assert now.later.item() == pytest.approx(2 / 3)
    assert guide.aim(now, left, torch.tensor([12.0])).item() == 8 + 8
    assert guide.aim(now, left, torch.tensor([60.0])).item() == 28
    assert guide.unbroken(now, left).item() == 7
