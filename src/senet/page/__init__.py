"""One HTML page to explore what the gates learned: self-contained, and it asks no network."""

from .filling import page_html
from .thumbnails import Picture

__all__ = ["Picture", "page_html"]
