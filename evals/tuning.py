"""The search of ``budgetctl tune``: trials kept on disk one by one, the best of them, and what it does on other questions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from budgetctl.errors import BudgetctlError, BudgetError
from budgetctl.evals.metrics import Interval, bootstrap_mean, paired_difference
from budgetctl.evals.output import write_jsonl, write_text
from budgetctl.evals.tune_space import Params, Setting, Space

#: Trials before the search draws on what it has seen.
RANDOM_TRIALS = 10


class Outcome(NamedTuple):
    """One question: answered right, and the tokens of thought, answer and planner."""

    correct: bool
    tokens: int


@dataclass(frozen=True)
class Objective:
    """What is maximised: accuracy less ``price`` for each mean token, or accuracy with at most ``at_most`` mean tokens.

    Raises:
        BudgetError: unless exactly one of the two is given, and makes sense.
    """

    price: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.price, self.at_most) if value is not None]
        if len(given) != 1 or not 0 <= given[0] < math.inf or self.at_most == 0:
            raise BudgetError(
                f"a price of {self.price} and at most {self.at_most} tokens: expected one of the two, a number above 0; correct them"
            )

    def value(self, accuracy: float, tokens: float) -> float:
        """Of a setting; one with too many tokens is worth less than any other, the less the more it takes."""
        if self.price is not None:
            return accuracy - self.price * tokens
        assert self.at_most is not None
        return accuracy if tokens <= self.at_most else 1 - tokens / self.at_most


@dataclass(frozen=True)
class Trial:
    """One setting tried on the dev questions; ``params`` None is the default."""

    params: dict[str, Any] | None
    accuracy: float
    tokens: float

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"params": self.params, "accuracy": self.accuracy, "tokens": self.tokens}


def open_run(folder: Path, search: dict[str, Any]) -> list[Trial]:
    """The trials of an earlier run of the same search; none in a new folder.

    Raises:
        BudgetctlError: for a folder that holds another search, or one that cannot be read or written.
    """
    about, kept = folder / "search.json", folder / "trials.jsonl"
    try:
        if about.exists():
            other = json.loads(about.read_text(encoding="utf-8"))
            changed = sorted(name for name in {*other, *search} if other.get(name) != search.get(name))
            if changed:
                raise BudgetctlError(
                    f"{folder} holds a search with another {changed[0]} ({other.get(changed[0])!r}): expected the same, or "
                    "another folder; change --out"
                )
        else:
            write_text(about, json.dumps(search, indent=1))
        lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
        return [Trial(**json.loads(line)) for line in lines]
    except BudgetctlError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise BudgetctlError(
            f"{folder} cannot keep the search ({type(error).__name__}): expected a folder of its own; change --out"
        ) from None


def run_search(
    folder: Path,
    trials: Sequence[Trial],
    space: Space,
    objective: Objective,
    count: int,
    seed: int,
    score: Callable[[Setting], Sequence[Outcome]],
    tried: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """All trials of a search, those that are known first; each is on disk before the next begins.

    The first trial is the default, the others come from optuna's TPE sampler, seeded anew for each by its number: so a search
    that was killed goes on as if it had not been.

    Args:
        folder: of the run.
        trials: that are known.
        space: of the settings.
        objective: what is maximised.
        count: trials in all, the default among them.
        seed: of the sampler.
        score: asks the dev questions under a setting.
        tried: called with each new trial.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", storage=None)
    done = list(trials)

    def learn(trial: Trial) -> None:
        if trial.params is not None:
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.params,
                    distributions=space.distributions(trial.params),
                    value=objective.value(trial.accuracy, trial.tokens),
                )
            )

    for trial in done:
        learn(trial)
    for number in range(len(done), count):
        params: dict[str, Any] | None = None
        if number:
            sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed + number)
            drawer = optuna.create_study(direction="maximize", sampler=sampler)
            drawer.add_trials(study.get_trials(deepcopy=False))
            params = space.suggest(drawer.ask())
        outcomes = score(_setting_of(space, params))
        trial = Trial(
            params,
            float(np.mean([one.correct for one in outcomes])),
            float(np.mean([one.tokens for one in outcomes])),
        )
        learn(trial)
        done.append(trial)
        write_jsonl(folder / "trials.jsonl", (one.as_dict() for one in done))
        tried(trial)
    return done


def _setting_of(space: Space, params: Params | None) -> Setting:
    return space.default if params is None else space.setting(params)


def best_of(trials: Sequence[Trial], objective: Objective) -> Trial:
    """The trial of the highest value, of the fewest tokens among equals."""
    return max(trials, key=lambda t: (objective.value(t.accuracy, t.tokens), -t.tokens))


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats in accuracy with as few tokens, by their tokens."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.tokens, -t.accuracy)):
        if not front or trial.accuracy > front[-1].accuracy:
            front.append(trial)
    return front


@dataclass(frozen=True)
class HeldOut:
    """A setting on held-out questions, with 95 % bootstrap intervals over them; ``gain`` and ``more_tokens`` are against the
    default, on the same questions, ``value`` is the objective's."""

    accuracy: Interval
    tokens: float
    value: float
    gain: Interval
    more_tokens: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], default: Sequence[Outcome], objective: Objective) -> HeldOut:
        """From the outcomes of a setting and of the default."""
        correct, base = ([float(one.correct) for one in each] for each in (outcomes, default))
        tokens, spent = (float(np.mean([one.tokens for one in each])) for each in (outcomes, default))
        accuracy = bootstrap_mean(correct)
        return cls(
            accuracy,
            tokens,
            objective.value(accuracy.mean, tokens),
            paired_difference(correct, base),
            tokens - spent,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "accuracy": list(vars(self.accuracy).values()),
            "tokens": self.tokens,
            "value": self.value,
            "gain": list(vars(self.gain).values()),
            "more_tokens": self.more_tokens,
        }
