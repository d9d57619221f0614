"""The durable store: projects, items, sessions, events and records in SQLite or PostgreSQL."""
