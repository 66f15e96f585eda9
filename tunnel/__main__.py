"""`python -m tunnel` means `ptunnel`."""

from __future__ import annotations

from tunnel.cli.main import main

if __name__ == "__main__":
    main()
