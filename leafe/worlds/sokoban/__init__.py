"""Sokoban in text: the rules (`board`), an optimal solver, a seeded generator, a reader of Boxoban files, and the environment."""
