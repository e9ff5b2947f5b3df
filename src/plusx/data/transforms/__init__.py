"""What is done to samples on their way to a network: one language of words for all modalities."""
