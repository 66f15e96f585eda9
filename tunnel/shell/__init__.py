"""trio around the core: sockets, the clock and tasks."""
