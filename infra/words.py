"""Counts in messages, each with its noun."""


def counted(count: float, noun: str) -> str:
    """Return a count and its noun in the number that agrees: 1 epoch, 1.25 epochs, 2 epochs, 1,024 images."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:.4g}"
    if count == 1:
        return f"{number} {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
