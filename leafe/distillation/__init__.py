"""From a forest to training examples: which turns are learned from, under which prompt, and how they are laid out for a model."""
