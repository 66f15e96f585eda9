"""`ptunnel` in which whatever is asked on the control socket for a measurement meets a fault that nobody foresaw."""

from __future__ import annotations

from typing import Any

from tunnel.cli.main import main
from tunnel.ports import bench


async def measure(*_: Any, **__: Any) -> None:
    raise OverflowError("nobody foresaw it")


if __name__ == "__main__":
    bench.measure = measure
    main()
