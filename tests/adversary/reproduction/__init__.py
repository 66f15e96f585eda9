"""What the first public version let others do, tried on any version: each test is a promise that did not hold then.

The tests use only what versions have in common: the wire as docs/protocol.md describes it, the command line, and entry points of
the core whose names have stayed; so do the helpers of other folders that they import.  PTUNNEL_TREE names the checkout that is
tried, the one of these tests if it is not set:

    pytest tests/adversary/reproduction
    git worktree add /tmp/older 6c8f646
    PTUNNEL_TREE=/tmp/older pytest tests/adversary/reproduction

README.md has the table: what is promised, the test, and what 6c8f646 did.
"""
