"""Many sockets, many peers: what meets them, and what comes of it."""
