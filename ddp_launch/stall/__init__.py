"""Where every rank of a run is, seen from outside: stalls of any program, and ranks that the others wait for."""
