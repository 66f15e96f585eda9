"""The preparations of a verb of the library: home, server, machine, remembered ways."""
