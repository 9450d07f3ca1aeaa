"""What an operator does while a federation lives: look, start, stop, change members and keys."""
