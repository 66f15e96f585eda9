"""One secure multipath connection, sans-IO: streams, datagrams and IP packets, sealed, repaired and paced."""
