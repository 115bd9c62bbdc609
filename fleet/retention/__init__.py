"""What is kept how long, and how what is older goes: in small portions, so that nobody waits for it."""
