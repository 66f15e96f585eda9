"""The door to the network: UDP sockets that move batches of datagrams.  They know bytes, nothing of the protocol."""
