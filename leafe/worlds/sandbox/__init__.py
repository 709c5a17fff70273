"""Runs programs that a model wrote where they can do no harm: bubblewrap, or Landlock with seccomp where a user asks for it by name."""
