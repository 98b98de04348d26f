"""Tables and pages that a reader opens."""
