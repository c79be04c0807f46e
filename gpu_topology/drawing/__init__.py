"""The picture of a machine, from a topology to SVG; picture.py says how the parts fit, ../draw.py is the command."""
