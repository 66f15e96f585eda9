"""What a node has going on with somebody: a code given or claimed, a dial, an answer, a question about keys."""
