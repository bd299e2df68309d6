"""dlm keeps the promises people make about data."""

__version__ = "0.1.0"
