"""What things cost in time and memory, next to others, measured on this machine."""
