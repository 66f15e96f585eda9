"""Ports of local programs over a link: forwards, grants, and the verbs `connect` and `expose`."""
