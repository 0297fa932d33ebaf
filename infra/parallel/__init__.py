"""Work in threads, in processes of this machine, and on a Ray cluster."""
