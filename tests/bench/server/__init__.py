"""What one `ptunnel serve` carries: clients on real sockets over loopback, and its core in virtual time."""
