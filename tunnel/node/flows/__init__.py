"""The flows of a node: a code given or claimed, a dial, an answer, a question about keys."""
