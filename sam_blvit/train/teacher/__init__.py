"""What a student learns from, and how it starts."""
