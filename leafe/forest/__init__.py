"""The heart of leafe: exploration as generators of effects, and the one driver that carries the effects out."""
