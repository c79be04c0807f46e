"""The picture of a machine, from a topology to SVG; picture.py is the command and shows how the parts fit together."""
