"""Many servers that are one: what they share through a directory, without a socket, a clock or a store.

Connection state never leaves its server.  Shared are small pointers that expire: which servers there are, in which rooms
somebody waits, which server has a number.  Clients hold the rest, and announce it anew wherever they go.
docs/decisions/fleet.md says why.
"""
