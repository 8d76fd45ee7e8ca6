"""World models behind one protocol (`base`): `rooms` ships with trained weights."""
