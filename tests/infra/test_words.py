import pytest

from infra.words import counted


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
