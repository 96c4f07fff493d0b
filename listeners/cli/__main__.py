"""`python -m listeners.cli` is `reclaim`."""

from listeners.cli.main import main

main()
