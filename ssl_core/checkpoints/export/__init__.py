"""Exports: a folder with the weights of a backbone that other libraries load, and with what they need to know."""
