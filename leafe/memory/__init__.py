"""What methods share that keep a memory in the prompt and train no weights: going over the tasks, and questions about the memory."""
