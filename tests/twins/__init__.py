"""Twins of what reaches the machine: the same methods, in memory, under the clock of a test."""
