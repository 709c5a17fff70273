"""Household games of our own: the parts of a house (`house`), a seeded generator, the game file's texts, and the environment."""
