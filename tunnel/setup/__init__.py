"""What a verb of the library sets up before it begins: home, server, machine, remembered ways."""
