"""Sampling and learning in turn within a budget of turns: what methods share that learn from their own attempts on the way."""
