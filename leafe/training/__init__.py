"""Supervised training on weighted examples, through `transformers.Trainer`."""
