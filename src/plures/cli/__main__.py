"""``python -m plures.cli``."""

from plures.cli import main

main()
