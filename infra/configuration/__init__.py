"""Configurations (frozen dataclasses), read from command lines and YAML files."""
