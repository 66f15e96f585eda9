"""The LAN, whole: the roster and its messages (core), IP packets (ip), the interface, and the verbs `create` and `join`."""
