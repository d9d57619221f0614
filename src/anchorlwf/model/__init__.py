"""A language model as the stages see it: loading, text and ids, the head, attention, batches."""
