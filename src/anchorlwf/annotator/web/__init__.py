"""The annotator's page: a FastAPI application over a `Desk` (docs/annotator_api.md). Needs the extra `web`."""
