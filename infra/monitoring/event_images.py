"""Images that a run showed in TensorBoard, read back from its event files."""

from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

_FIRST_EVENTS: Final = 1000  # a run shows its views at its start


def read_first_image(folder: Path, tag: str) -> bytes | None:
    """Return the first image of a tag among the first events of a run, encoded as PNG; None if there is none.

    An event file that ends within a record, as that of a live run may, is read as far as it goes. So is a damaged one.
    """
    for path in sorted((folder / "events").glob("events.out.tfevents.*")):
        with suppress(OSError, DecodeError):
            for record in islice(RawEventFileLoader(str(path)).Load(), _FIRST_EVENTS):
                for value in Event.FromString(record).summary.value:
                    if value.tag == tag and value.HasField("image"):
                        return bytes(value.image.encoded_image_string)
    return None
