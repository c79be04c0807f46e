"""How this node reaches the endpoint of a rendezvous."""
