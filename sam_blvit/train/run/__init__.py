"""What a run keeps and reports."""
