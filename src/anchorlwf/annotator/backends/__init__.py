"""Who decodes for many people at once: the model in this process, or a server elsewhere."""
