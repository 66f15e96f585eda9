"""What the sans-IO folders share: numbers on the wire, ranges, timers, prefixes, counters of what was dropped."""
