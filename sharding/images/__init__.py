"""From an image file to 8-bit gray."""
