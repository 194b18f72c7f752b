"""Graph-guided training of encoders."""

__version__ = "0.1.0"
