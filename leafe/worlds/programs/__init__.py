"""Tasks that are solved by writing a program: problems in published schemas, a judge that runs them in the sandbox, and the episode."""
