"""The methods that ``budgetctl eval`` compares: budgetctl's own, and what a user would do instead."""
