"""What a forward attends to: sink + retrieved + recent, their temporal positions and their rotation."""
