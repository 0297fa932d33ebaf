import numpy as np

from evaluation.pictures.projector import principal_components, sprite


def test_thumbnails_stand_row_by_row_in_a_square() -> None:
    pictures = np.arange(1, 6, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    sheet = sprite(pictures)
    assert sheet[::2, ::2].tolist() == [[1, 2, 3], [4, 5, 0], [0, 0, 0]]
    assert (sheet == np.repeat(np.repeat(sheet[::2, ::2], 2, axis=0), 2, axis=1)).all()
    assert sprite(pictures[:1]).shape == (2, 2)


def test_components_keep_the_distances_that_fifty_of_them_can_keep() -> None:
    values = np.random.default_rng(0).normal(size=(80, 30)).astype(np.float32)
    shown = principal_components(values)
    distances, of_shown = (np.linalg.norm(each[:, None] - each, axis=2) for each in (values, shown))
    assert np.allclose(distances, of_shown, atol=1e-4)
    assert principal_components(np.random.default_rng(0).normal(size=(80, 70)).astype(np.float32)).shape == (80, 50)
    assert not principal_components(np.ones((4, 3), np.float32)).any()
