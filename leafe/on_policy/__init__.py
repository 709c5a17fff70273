"""The loop of methods that sample and learn in turn within a budget of turns."""
