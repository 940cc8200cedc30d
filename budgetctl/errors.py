"""Errors a user can act on: each message is one line saying what came, what was expected and what to do."""

from __future__ import annotations


class BudgetctlError(ValueError):
    """Base of every error that budgetctl raises for bad input."""


class BudgetError(BudgetctlError):
    """A thinking budget, effort, answer reserve or guidance setting has an impossible value."""


class DelimiterError(BudgetctlError):
    """The open or close marker of the thought cannot be found or spelled with this tokenizer."""


class PlanError(BudgetctlError):
    """A plan has no steps, too many, or steps that make no sense."""


class PredictorError(BudgetctlError):
    """A length predictor is corrupt, of another format, or made for another model."""


class InputFileError(BudgetctlError):
    """A file given by the user (prompts, traces) cannot be read; the message names the line."""


class KernelError(BudgetctlError):
    """A kernel was called with tensors of another shape, dtype or device than it takes."""


class CacheError(BudgetctlError):
    """A KV budget is impossible, or the cache that keeps it is used in a way that it cannot serve."""


class TrainingError(BudgetctlError):
    """A training configuration, dataset or reward is incomplete or contradicts itself."""


class EvalError(BudgetctlError):
    """An evaluation was asked for what it does not know, or its records do not fit what was asked."""
