"""Transforms of samples: a language of words of augmentation for all modalities."""
