"""The teacher of a student, and the student's initial weights."""
