"""The door through TCP port 443: the same datagrams in frames over TLS.  It knows bytes, nothing of the protocol."""
