"""A discrete-event simulator of serving: continuous batching on a pool of KV blocks, under thinking and KV budgets.

It answers what a budget is worth in requests per second before the GPUs are there: from lengths that were recorded
(or fitted), a model of a step's time, and a rate of arrivals. ``docs/serving.md`` shows it at work.
"""
