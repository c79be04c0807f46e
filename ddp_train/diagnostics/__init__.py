"""Looking inside a network that trains: what its layers compute, what flows back, where it goes wrong."""
