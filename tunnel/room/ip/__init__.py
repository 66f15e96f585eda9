"""Inner IPv4 and IPv6 packets: bytes in, bytes out; nothing here has state but the filter's two sets."""
