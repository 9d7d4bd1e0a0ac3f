"""Pure functions: tensors in, tensors out. No I/O, no global state; every source of chance takes a seed."""
