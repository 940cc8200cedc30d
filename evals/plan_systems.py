"""Which systems :mod:`budgetctl.evals.plan` compares, and each against which."""

from __future__ import annotations

from budgetctl.evals.plan_arms import Arm

#: Schedules of the middle budget. The closed form, the exact optimum and greedy have one exponent for all steps, as dials are
#: all alike, and so differ in nothing but the rounding.
SCHEDULES = (
    "weighted",
    "uniform",
    "linear",
    "polynomial",
    "exponential",
    "cosine",
    "rex",
    "uba",
    "bam_exact",
    "bam_eq6",
    "greedy",
    "polynomial(3)",
    "exponential(0.5)",
)
#: Compared at every budget; each is measured against the one named second.
ALWAYS = (
    (Arm("one cap, cut", "cut"), None),
    (Arm("steps weighted, cut", "cut", schedule="weighted"), "one cap, cut"),
    (Arm("steps weighted, half kept, cut", "cut", schedule="weighted", firmness=0.5), "one cap, cut"),
    (Arm("steps weighted, floors kept, cut", "cut", schedule="weighted", firmness=0.0), "one cap, cut"),
    (Arm("two steps, cut", "cut", schedule="weighted", parts_only=True), "one cap, cut"),
    (Arm("one cap, steered", "steered"), None),
    (Arm("steps weighted, steered", "steered", schedule="weighted"), "one cap, steered"),
    (
        Arm("steps weighted, half kept, steered", "steered", schedule="weighted", firmness=0.5),
        "one cap, steered",
    ),
    (
        Arm("steps weighted, floors kept, steered", "steered", schedule="weighted", firmness=0.0),
        "one cap, steered",
    ),
    (Arm("two steps, steered", "steered", schedule="weighted", parts_only=True), "one cap, steered"),
    (
        Arm("two steps, half kept, steered", "steered", schedule="weighted", firmness=0.5, parts_only=True),
        "one cap, steered",
    ),
)
#: Compared at the middle budget too. Budgets in the prompt are those of that budget.
MIDDLE = (
    (Arm("plan shown", shown=True), "no plan"),
    (Arm("plan shown, words a step", shown=True, budgets="step"), "no plan"),
    (Arm("plan shown, words for all", shown=True, budgets="all"), "no plan"),
    (Arm("plan shown, one cap, steered", "steered", shown=True), "one cap, steered"),
    *(
        (Arm(f"steps {name}, steered", "steered", schedule=name), "one cap, steered")
        for name in SCHEDULES[1:]
    ),
    (Arm("steps by predicted length, steered", "steered", schedule="weighted"), "one cap, steered"),
)


def planned_by(model: str) -> tuple[tuple[Arm, str], ...]:
    """What is compared at every budget where a model plans."""
    cut, steered = "one cap, cut", "one cap, steered"
    by = f"planned by {model}"
    return (
        (Arm(f"steps weighted, cut, {by}", "cut", schedule="weighted", by_model=True), cut),
        (Arm(f"steps weighted, steered, {by}", "steered", schedule="weighted", by_model=True), steered),
        (
            Arm(
                f"steps weighted, half kept, steered, {by}",
                "steered",
                schedule="weighted",
                firmness=0.5,
                by_model=True,
            ),
            steered,
        ),
    )
