"""Recordings: reading sound files, log-mel spectrograms, and the modality that joins them."""
