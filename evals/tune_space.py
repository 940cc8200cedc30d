"""What ``budgetctl tune`` searches: settings of ``generate``, from the default down to small budgets and no plan at all.

AgentTTS (arXiv 2508.00890) finds that each subtask has a best budget beyond which results fall. So more is not taken to be better:
every parameter can be less, down to an eighth of the tokens and to no plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from budgetctl.errors import BudgetError

#: The least of ``max_new_tokens`` that is tried.
LEAST_TOKENS = 32
NO_PLAN, AUTO_PLAN = "none", "auto"
SCHEDULES = ("weighted", "uniform", "linear", "polynomial", "exponential", "cosine", "rex", "uba")

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """Settings of ``generate``; None leaves one at its default, ``schedule`` None is no plan."""

    max_new_tokens: int
    effort: float | None = None
    thinking_budget: int | None = None
    answer_reserve: int | None = None
    guidance_strength: float | None = None
    schedule: str | None = None
    floor: float | None = None
    firmness: float | None = None

    def flags(self) -> list[str]:
        """The options of ``budgetctl generate`` that set it."""
        flags = [] if self.schedule is None else ["--plan", "auto", "--plan-schedule", self.schedule]
        names = {"floor": "plan-floor", "firmness": "plan-firmness"}
        for name, value in asdict(self).items():
            if value is not None and name != "schedule":
                flags += [f"--{names.get(name, name).replace('_', '-')}", f"{value:g}"]
        return flags

    def as_dict(self) -> dict[str, Any]:
        """JSON values, without what is left at its default."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Space:
    """All settings within ``most_tokens`` of thought and answer.

    Args:
        most_tokens: the largest ``max_new_tokens``, that of the default.
        predictor: the model has a length predictor, so that efforts and guidance are searched too.
        plans: plans are searched too.

    Raises:
        BudgetError: for fewer than ``LEAST_TOKENS`` tokens.
    """

    most_tokens: int
    predictor: bool
    plans: bool = True

    def __post_init__(self) -> None:
        if self.most_tokens < LEAST_TOKENS:
            raise BudgetError(
                f"max_new_tokens={self.most_tokens} leaves nothing to search: expected at least {LEAST_TOKENS}; raise it"
            )

    @property
    def default(self) -> Setting:
        """What ``generate`` does when nothing is asked for."""
        return Setting(self.most_tokens)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Parameters of the next trial, as optuna's ``trial`` suggests them."""
        least = max(LEAST_TOKENS, self.most_tokens // 8)
        params: dict[str, Any] = {
            "tokens": trial.suggest_int("tokens", min(least, self.most_tokens), self.most_tokens, log=True),
            "think_share": trial.suggest_float("think_share", 0.3, 0.95, step=0.05),
        }
        if self.predictor:
            params["limit"] = trial.suggest_categorical("limit", ["budget", "effort"])
            if params["limit"] == "effort":
                params["effort"] = trial.suggest_float("effort", 0.1, 1.0, step=0.05)
            params["strength"] = trial.suggest_float("strength", 0.0, 4.0, step=0.25)
        if self.plans:
            params["plan"] = trial.suggest_categorical("plan", [NO_PLAN, AUTO_PLAN])
            if params["plan"] != NO_PLAN:
                params["schedule"] = trial.suggest_categorical("schedule", list(SCHEDULES))
                params["floor"] = trial.suggest_float("floor", 0.0, 1.0, step=0.05)
                params["firmness"] = trial.suggest_float("firmness", 0.0, 1.0, step=0.25)
        return params

    def distributions(self, params: Params) -> dict[str, Any]:
        """What each of ``params`` was drawn from, as optuna has it."""
        recorder = _Recorder(params)
        self.suggest(recorder)
        return recorder.found

    def setting(self, params: Params) -> Setting:
        """The setting that parameters stand for."""
        tokens = int(params["tokens"])
        budget = max(1, round(tokens * params["think_share"]))
        effort = params.get("effort")
        plan = params.get("plan", NO_PLAN)
        return Setting(
            max_new_tokens=tokens,
            effort=None if effort is None else round(effort, 4),
            thinking_budget=budget if effort is None else None,
            answer_reserve=tokens - budget,
            guidance_strength=params.get("strength"),
            schedule=None if plan == NO_PLAN else params["schedule"],
            floor=None if plan == NO_PLAN else round(params["floor"], 4),
            firmness=None if plan == NO_PLAN else params["firmness"],
        )


class _Recorder:
    """Answers as a trial does, from known parameters, and keeps the distributions that it was asked about."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.found: dict[str, Any] = {}

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> Any:
        import optuna

        self.found[name] = optuna.distributions.IntDistribution(low, high, log=log)
        return self.params[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> Any:
        import optuna

        self.found[name] = optuna.distributions.FloatDistribution(low, high, step=step)
        return self.params[name]

    def suggest_categorical(self, name: str, choices: list[str]) -> Any:
        import optuna

        self.found[name] = optuna.distributions.CategoricalDistribution(choices)
        return self.params[name]
