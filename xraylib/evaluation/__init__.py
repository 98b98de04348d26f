"""What the scores say."""
