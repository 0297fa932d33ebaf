"""From packed folders, on this machine or behind a URL, to encoded images in order."""
