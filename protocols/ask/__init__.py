"""Ask a trusted peer's model: `/covey/ask/1.0.0`. Words in `wire`, quotas in `quota`, signed answers in `record`."""
