"""Door to the kernel's IP stack: a TAP interface without ARP, its configuration, and what a LAN needs around it.  Linux only."""
