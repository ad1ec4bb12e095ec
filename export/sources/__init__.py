"""Sources are the checkpoints that an export reads, component by component, without network."""
