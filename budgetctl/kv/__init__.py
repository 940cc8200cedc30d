"""The KV budget: long thoughts in bounded memory. Importing it registers ``attn_implementation="budget_kv"``."""

from __future__ import annotations

from budgetctl.kv.attention import register
from budgetctl.kv.cache import BudgetCache
from budgetctl.kv.policies import POLICIES, Policy

__all__ = ["POLICIES", "BudgetCache", "Policy"]

register()
