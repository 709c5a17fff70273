"""Training on examples: losses, fine-tuning through `transformers.Trainer`, and a learner for methods that sample and learn in turn."""
