"""An independent, straight-line witness of what patching does."""
