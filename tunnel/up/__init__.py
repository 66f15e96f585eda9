"""`ptunnel up`: one process that holds every link of a home."""
