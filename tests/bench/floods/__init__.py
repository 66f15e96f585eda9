"""Honest clients of `ptunnel serve` while strangers flood it: who is in `honest`, what comes is listed in `attacks.FLOODS`."""
