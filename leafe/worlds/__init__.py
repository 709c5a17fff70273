"""The worlds that ship: each an `Environment` that is offered by an entry point, like those of other packages."""
