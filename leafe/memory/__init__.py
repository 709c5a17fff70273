"""The common parts of methods that keep a memory in the prompt and train no weights: passes over the tasks, and questions to the policy."""
