"""Text as a sequence of token numbers."""

from plusx.data.modality.text.modality import TextModality


__all__ = ["TextModality"]
