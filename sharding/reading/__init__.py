"""Reading packed folders, local or remote, as encoded images in order."""
