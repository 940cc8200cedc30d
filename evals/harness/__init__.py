"""``budgetctl eval``: questions, methods and budgets, one record for each answer."""
