"""``python -m zpala`` is the command ``zpala``."""

from zpala.cli import main

if __name__ == "__main__":
    main()
