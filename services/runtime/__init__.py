"""Shared plumbing of the consumers: database, transactional outbox and inbox, batch consumers, registry, telemetry."""
