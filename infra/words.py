"""Words in messages: counts with their nouns, and text from elsewhere."""


def counted(count: float, noun: str) -> str:
    """Return a count and its noun in the number that agrees: 1 epoch, 1.25 epochs, 2 epochs, 1,024 images."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:.4g}"
    if count == 1:
        return f"{number} {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def printable(text: str) -> str:
    """Return text as one line that cannot control a terminal: white space becomes one space, codes their escapes."""
    line = " ".join(text.split())
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in line)
