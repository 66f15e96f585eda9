"""Helpers of the sans-IO folders: numbers on the wire, ranges, timers, prefixes, counters of drops."""
