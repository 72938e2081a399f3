"""What the scripts share: ceilings of the machine, work of both sides, pairing, results."""
