"""`python -m tunnel` means `ptunnel`."""

from __future__ import annotations

import sys


def main() -> None:
    """The program, and before it the imports that it needs: a Ctrl-C meanwhile is no traceback."""
    try:
        from tunnel.cli.main import main as program
    except KeyboardInterrupt:
        sys.exit(130)
    program()


if __name__ == "__main__":
    main()
