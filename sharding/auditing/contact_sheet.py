"""The pairs that an audit found, side by side on one self-contained HTML page."""

from base64 import b64encode
from collections.abc import Iterator
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Final

from sharding.auditing.audit import SPREADS, Audit, AuditedImage, ImageGroup, Pair
from sharding.images.encode import decode
from sharding.reading.shard_set import ShardSet

MAX_PAIRS: Final = 100

_SIDE_PX: Final = 224
_STYLE: Final = """
body { font: 14px/1.4 sans-serif; margin: 2em; color: #222 }
section { display: flex; gap: 1em; margin: 0 0 1.5em; break-inside: avoid }
figure { margin: 0; width: 224px } figcaption, p { overflow-wrap: anywhere } img { width: 224px }
"""


def contact_sheet(audit: Audit) -> str:
    """Return the page: the first MAX_PAIRS pairs, what reaches furthest first, near ones before identical ones."""
    pairs = list(_pairs(audit))
    shards = ShardSet([Path(folder.path) for folder in audit.folders])
    shown = "\n".join(_section(shards, group, pair) for group, pair in pairs[:MAX_PAIRS])
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Sternum audit</title><style>{_STYLE}</style>\n'
        f"<h1>Pairs of images that show one picture</h1>\n<p>{_headline(audit, len(pairs))}</p>\n{shown}\n</html>\n"
    )


def _headline(audit: Audit, pairs: int) -> str:
    hidden = pairs - min(pairs, MAX_PAIRS)
    return (
        f"{pairs} pairs in {escape(', '.join(folder.path for folder in audit.folders))}; {pairs - hidden} are shown"
        f"{f', {hidden} are not: they are in audit.json' if hidden else ''}. Near-identical means at most "
        f"{audit.max_hash_distance} of 256 bits of the perceptual hash apart, and a correlation of at least "
        f"{audit.min_correlation}."
    )


def _pairs(audit: Audit) -> Iterator[tuple[ImageGroup, Pair]]:
    for spread in reversed(SPREADS):
        for groups, equal_pixels in ((audit.near_identical, False), (audit.identical, True)):
            for group in groups:
                if group.spread == spread:
                    yield from ((group, pair) for pair in group.pairs if pair.equal_pixels == equal_pixels)


def _section(shards: ShardSet, group: ImageGroup, pair: Pair) -> str:
    kind = "identical" if pair.equal_pixels else f"distance {pair.distance}, correlation {pair.correlation:.4f}"
    return (
        f"<section>{_figure(shards, group.images[pair.first])}{_figure(shards, group.images[pair.second])}"
        f"<p>{kind}<br>group of {len(group.images)} images {group.spread}</p></section>"
    )


def _figure(shards: ShardSet, image: AuditedImage) -> str:
    shard, row = (int(part) for part in shards.locate(image.number))
    small, _ = decode(shards.read(shard, row).tobytes())
    small.thumbnail((_SIDE_PX, _SIDE_PX))
    jpeg = BytesIO()
    small.save(jpeg, "JPEG", quality=80)
    caption = f"{image.folder}, {image.split or 'no split'}<br>{image.key}<br>patient {image.patient}"
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{b64encode(jpeg.getvalue()).decode()}">'
        f"<figcaption>{'<br>'.join(escape(line) for line in caption.split('<br>'))}</figcaption></figure>"
    )
