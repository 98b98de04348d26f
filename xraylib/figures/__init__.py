"""Pictures of tables and films."""
