"""`evaluate`: rewards beside each other on a benchmark."""
