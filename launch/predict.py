"""`sternum predict`: scores new images with a probe of a run."""

import sys
from collections.abc import Sequence

from evaluation.inference.config import PredictConfig
from evaluation.inference.predict import predict
from evaluation.inference.prediction_files import WARNING, as_csv, as_json
from evaluation.pictures.prediction_maps import require_own_folder, write_prediction_maps
from infra.configuration.config import parse
from infra.log import say
from infra.signals import sigterm_interrupts
from infra.storage.files import write_atomic
from infra.words import counted
from launch.refused_files import refusal


def main(arguments: Sequence[str]) -> int:
    """Write the scores of all images.

    Raises:
        RunFailed: if files were refused, after the scores of all others are written
    """
    config = parse(
        PredictConfig,
        arguments,
        command="predict",
        description=(
            "Score new images with the backbone and the fitted classifier of a probe, and say which of them are unlike "
            f"the images that it was fitted to. {WARNING}"
        ),
        examples=[
            "sternum predict film.dcm --probe=runs/first:cell",
            "sternum predict films --probe=runs/first:cell --out=scores.csv",
            "sternum predict films --probe=runs/first:cell --out=scores.csv --maps=maps",
            'sternum predict films --probe=runs/first:cell --preset=gazda2021 --features="epoch 50" --out=scores.json',
        ],
        subject="images",
    )
    say(f"warning: {WARNING}")
    require_own_folder(config)
    with sigterm_interrupts():
        predictions = predict(config)
        if config.maps is not None:
            count = write_prediction_maps(config, config.maps, predictions)
            say(f"wrote {counted(count, 'picture')} to {config.maps}")
    if config.out is None:
        sys.stdout.write(as_csv(predictions))
        sys.stdout.flush()
    else:
        content = as_json(predictions) if config.out.suffix == ".json" else as_csv(predictions)
        write_atomic(config.out, content)
        say(f"wrote the scores of {counted(len(predictions.records), 'image')} to {config.out}")
    if predictions.refused:
        raise refusal(predictions.refused, config.out)
    return 0
