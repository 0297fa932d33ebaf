"""A self-contained HTML page with the pairs of images that an audit found, side by side."""

from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

import jinja2

from sharding.auditing.findings import SPREADS, Audit, AuditedImage, ImageGroup, Pair
from sharding.images.encode import decode
from sharding.reading.shard_set import ShardSet

MAX_PAIRS: Final = 100

_SIDE_PX: Final = 224


def contact_sheet(audit: Audit) -> str:
    """Return the page with the first MAX_PAIRS pairs: the widest spread first, near pairs before identical ones."""
    pairs = list(_pairs(audit))
    shards = ShardSet([Path(folder.path) for folder in audit.folders])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("contact_sheet.html.j2")
    return template.render(
        audit=audit, count=len(pairs), pairs=pairs[:MAX_PAIRS], jpeg=lambda image: _jpeg_base64(shards, image)
    )


def _pairs(audit: Audit) -> Iterator[tuple[ImageGroup, Pair]]:
    for spread in reversed(SPREADS):
        for groups, equal_bytes in ((audit.near_identical, False), (audit.identical, True)):
            for group in groups:
                if group.spread == spread:
                    yield from ((group, pair) for pair in group.pairs if pair.equal_bytes == equal_bytes)


def _jpeg_base64(shards: ShardSet, image: AuditedImage) -> str:
    shard, row = (int(part) for part in shards.locate(image.number))
    small, _ = decode(shards.read(shard, row).tobytes())
    small.thumbnail((_SIDE_PX, _SIDE_PX))
    jpeg = BytesIO()
    small.save(jpeg, "JPEG", quality=80)
    return b64encode(jpeg.getvalue()).decode()
