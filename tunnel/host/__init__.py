"""The door to the machine: its clocks, its addresses, its processor and its limits."""
