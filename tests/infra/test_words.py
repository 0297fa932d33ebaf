import pytest

from infra.words import counted, printable


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 epochs"),
        (1, "1 epoch"),
        (1.0, "1 epoch"),
        (0.5, "0.5 epochs"),
        (1.25, "1.25 epochs"),
        (1024, "1,024 epochs"),
    ],
)
def test_only_one_is_singular(count: float, words: str) -> None:
    assert counted(count, "epoch") == words


def test_a_noun_that_ends_in_s_takes_es() -> None:
    assert [counted(count, "process") for count in (1, 2)] == ["1 process", "2 processes"]


def test_text_from_elsewhere_is_one_line_and_cannot_control_the_terminal() -> None:
    assert printable("a\nb\t c") == "a b c"
    assert printable("\x1b[2Jx\x9b31m\x07\u202e") == r"\x1b[2Jx\x9b31m\x07\u202e"
    assert printable("Lübeck 胸部") == "Lübeck 胸部"
