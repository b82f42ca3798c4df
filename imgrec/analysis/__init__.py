"""What figures say: pure functions of arrays."""
