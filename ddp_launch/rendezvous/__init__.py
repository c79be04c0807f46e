"""How the ranks of one node, and of several, find each other."""
