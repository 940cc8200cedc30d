"""What is known of continuous batching without importing it: earlier releases of transformers have no such module."""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version

#: Knobs that each request of a batch may have of its own.
REQUEST_KNOBS = (
    "effort",
    "thinking_budget",
    "min_thinking_tokens",
    "thinking_target",
    "target_tolerance",
    "answer_reserve",
)
#: Knobs that each request may have of its own too, which are no arguments of the controller.
PLAN_KNOBS = ("plan", "budget_notes")
#: Knobs that hold for all requests of a manager.
CALL_KNOBS = (
    "max_extensions",
    "extension_phrase",
    "transition_phrase",
    "guidance_strength",
    "guided_steps",
    "early_exit",
    "kv_budget",
    "kv_policy",
    "kv_max_loss",
)
#: The first release whose continuous batching tells a processor which requests a step is for.
FIRST_RELEASE = "5.12"
#: Why older ones cannot, for a message.
NO_BATCHING = f"continuous batching keeps no budget before transformers {FIRST_RELEASE}"
#: Methods of a model that :func:`add_to` replaces.
REPLACED = ("init_continuous_batching", "generate_batch")


def has_batching() -> bool:
    """Whether the transformers that is installed can keep budgets in continuous batching."""
    return Version(transformers.__version__) >= Version(FIRST_RELEASE)


def batched_budgets(installation: Any, config: Any) -> Any:
    """A ``BatchedBudgets`` for a manager with this generation config."""
    from budgetctl.integrations.continuous_batching import BatchedBudgets

    return BatchedBudgets(installation, config)


def add_to(model: Any, installation: Any) -> None:
    """Give the model's continuous batching the knobs, where transformers can."""
    if has_batching():
        from budgetctl.integrations.batching_hooks import add_hooks

        add_hooks(model, installation)


def remove_from(model: Any) -> None:
    """Undo :func:`add_to`."""
    for name in REPLACED:
        model.__dict__.pop(name, None)
