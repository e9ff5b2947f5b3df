"""From a set's name, a folder or a CSV to batches of normalised images."""
