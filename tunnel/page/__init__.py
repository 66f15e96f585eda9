"""The page for people who would rather look: an HTTP server for the browsers of this machine and this user."""
