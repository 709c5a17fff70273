"""`python -m leafe.cli`, the `leafe` command where the package is on the path and not installed."""

from leafe.cli import main

main()
