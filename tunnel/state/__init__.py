"""The door to PTUNNEL_HOME: who we are, whom we remember, how we are set up.  Many processes share it."""
