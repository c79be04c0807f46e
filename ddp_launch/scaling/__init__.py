"""`--scaling`: the same program on 1, 2, 4 ... ranks for a few seconds each, and where the time of more ranks goes."""
