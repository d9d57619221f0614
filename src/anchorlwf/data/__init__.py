"""What goes from stage to stage: records, probes and prompts, and the files that hold them."""
