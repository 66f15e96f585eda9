"""A room without a socket: signed roster, one member's view, what goes to everybody."""
