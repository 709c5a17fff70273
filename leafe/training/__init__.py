"""Training on examples: losses, fine-tuning through `transformers.Trainer`, and a learner for on-policy methods."""
