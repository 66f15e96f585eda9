"""`ptunnel` of somebody who says of LIE_ABOUT, a stream or datagrams, that it was measured in the smallest time there is."""

from __future__ import annotations

import os
from typing import Any

from tunnel.cli.main import main
from tunnel.ports import bench
from tunnel.ports.open import Measured, encode


def lie(message: Any) -> bytes:
    if isinstance(message, Measured) and (message.datagrams > 0) == (os.environ["LIE_ABOUT"] == "datagrams"):
        message = Measured(1, 1, 5e-324)
    return encode(message)


if __name__ == "__main__":
    vars(bench)["encode"] = lie
    main()
