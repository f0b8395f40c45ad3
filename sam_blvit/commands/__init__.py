"""The commands, one module each: they parse nothing, and raise ValueError for bad input."""
