"""Plan-and-budget: a question in steps, a share of the thinking budget for each, and the thought held to them."""
