"""The ways out of the process: UDP, TLS, and the kernel's IP stack."""
