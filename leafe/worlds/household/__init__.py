"""Household games of our own: what a house is made of (`house`), a seeded generator, the game file's texts, and the environment."""
