"""The operations, a file for each noun. See daemon.api.operation."""
