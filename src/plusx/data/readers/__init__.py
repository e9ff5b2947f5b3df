"""Files and folders as data sets."""
