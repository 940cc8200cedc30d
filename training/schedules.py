"""Learning-rate schedules for a fixed number of steps: REX and UBA, with a linear warm-up.

REX: Chen et al., "REX: Revisiting Budgeted Training with an Improved Schedule" (arXiv 2107.04197). UBA: Tang et al.,
"Stepsize anything: A unified learning rate schedule for budgeted-iteration training" (arXiv 2505.24452), one period.
Both start at the peak and end at zero; here they begin after the warm-up and fill the steps that are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from budgetctl.errors import TrainingError


def rex(progress: float, d: float = 0.5) -> float:
    """REX: z / ((1 - d) + d z) with z = 1 - progress, the share of the steps that are left.

    Args:
        progress: share of the steps done, 0 to 1.
        d: 0.5 in the paper, eta = (1 - t/T) / (1/2 + 1/2 (1 - t/T)). 0 gives the linear schedule; 0.9 is what
            widely copied code calls REX. Below 1, so that the schedule ends at zero.
    """
    left = 1 - progress
    return left / ((1 - d) + d * left)


def uba(progress: float, phi: float = 1.0) -> float:
    """UBA: 2 c / (2 phi + (2 - phi) c) with c = 1 + cos(pi progress).

    Args:
        progress: share of the steps done, 0 to 1.
        phi: above 0. 2 gives the cosine schedule, less holds the rate up for longer, more lets it fall sooner. The
            default lies between the cosine and a constant; it is a choice made here, not a recommendation of the paper.
    """
    curve = 1 + math.cos(math.pi * progress)
    return 2 * curve / (2 * phi + (2 - phi) * curve)


#: name -> (shape of progress, its parameter's name, whether a value of the parameter is possible, what is)
SHAPES: dict[str, tuple[Callable[..., float], str, Callable[[float], bool], str]] = {
    "rex": (rex, "d", lambda value: 0 <= value < 1, "from 0 up to, not including, 1"),
    "uba": (uba, "phi", lambda value: value > 0 and math.isfinite(value), "above 0"),
}


def rate_share(
    step: int, *, shape: Callable[[float], float], warmup_steps: int, total_steps: int, floor: float = 0.0
) -> float:
    """Share of the peak learning rate at optimizer step ``step`` (0 at first, ``floor`` from ``total_steps`` on).

    The warm-up rises linearly from 0 at step 0 to 1 at step ``warmup_steps``; then
    ``floor + (1 - floor) shape((step - warmup_steps) / (total_steps - warmup_steps))``.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if step >= total_steps:
        return floor
    return floor + (1 - floor) * shape((step - warmup_steps) / (total_steps - warmup_steps))


def check_shape(name: str, parameters: Mapping[str, float]) -> None:
    """Check a schedule's name and parameters, before a model is loaded.

    Raises:
        TrainingError: unknown name or parameter, or an impossible value.
    """
    if name not in SHAPES:
        raise TrainingError(
            f"schedule={name!r}: expected one of {', '.join(SHAPES)}; for those of transformers set lr_scheduler_type"
        )
    _, parameter, possible, range_text = SHAPES[name]
    for given, value in parameters.items():
        if given != parameter:
            raise TrainingError(f"{name} has no parameter {given!r}: expected {parameter!r}; rename it")
        if not possible(value):
            raise TrainingError(f"{given}={value} of {name}: expected a value {range_text}; correct it")


def named_schedule(
    name: str,
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    floor: float = 0.0,
    last_epoch: int = -1,
    **parameters: float,
) -> LambdaLR:
    """A schedule of ``SHAPES`` on an optimizer; call its ``step()`` after each optimizer step.

    Args:
        name: ``rex`` or ``uba``.
        optimizer: its learning rates are the peaks.
        total_steps: optimizer steps of the whole training, warm-up included.
        warmup_steps: optimizer steps of the warm-up.
        floor: share of the peak at the end.
        last_epoch: steps done already, less one, when a run is continued without a saved schedule.
        parameters: ``d`` of REX, ``phi`` of UBA.

    Raises:
        TrainingError: unknown name or parameter, an impossible value, or a warm-up that leaves no step.
    """
    check_shape(name, parameters)
    if total_steps < 1 or not 0 <= warmup_steps < total_steps:
        raise TrainingError(
            f"{warmup_steps} warm-up steps of {total_steps}: expected fewer than all; lower the warm-up or train longer"
        )
    if not 0 <= floor <= 1:
        raise TrainingError(f"floor={floor}: expected a share of the peak, 0 to 1; correct it")
    # A partial of module functions: its state is not saved with the schedule, so a resumed run keeps its own settings.
    factor = partial(
        rate_share,
        shape=partial(SHAPES[name][0], **parameters),
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        floor=floor,
    )
    return LambdaLR(optimizer, factor, last_epoch)


def rex_schedule(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, d: float = 0.5, last_epoch: int = -1
) -> LambdaLR:
    """REX as ``torch.optim.lr_scheduler.LambdaLR``; see :func:`rex` and :func:`named_schedule`."""
    return named_schedule(
        "rex", optimizer, total_steps=total_steps, warmup_steps=warmup_steps, last_epoch=last_epoch, d=d
    )


def uba_schedule(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, phi: float = 1.0, last_epoch: int = -1
) -> LambdaLR:
    """UBA as ``torch.optim.lr_scheduler.LambdaLR``; see :func:`uba` and :func:`named_schedule`."""
    return named_schedule(
        "uba", optimizer, total_steps=total_steps, warmup_steps=warmup_steps, last_epoch=last_epoch, phi=phi
    )


class NamedSchedule:
    """Mixin that gives a transformers or TRL trainer the schedules above; put it before the trainer class.

    ``class Trainer(NamedSchedule, SFTTrainer)``, then ``trainer.use_schedule("rex")``; without that call nothing
    changes. transformers turns ``lr_scheduler_type`` into its own enumeration, so that a new name cannot go there;
    ``warmup_steps`` and ``lr_scheduler_kwargs`` (the schedule's parameters) are read from the training arguments.
    """

    schedule_name: str | None = None

    def use_schedule(self, name: str | None) -> None:
        """Choose a schedule of ``SHAPES`` by name; None leaves the choice to ``lr_scheduler_type``.

        Raises:
            TrainingError: an unknown name.
        """
        if name is not None:
            check_shape(name, {})
        self.schedule_name = name

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """The trainer's hook: makes the schedule once, after the optimizer."""
        trainer: Any = self
        if self.schedule_name is None or trainer.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        trainer.lr_scheduler = named_schedule(
            self.schedule_name,
            trainer.optimizer if optimizer is None else optimizer,
            total_steps=num_training_steps,
            warmup_steps=trainer.args.get_warmup_steps(num_training_steps),
            **(trainer.args.lr_scheduler_kwargs or {}),
        )
        trainer._created_lr_scheduler = True
        return trainer.lr_scheduler
