"""The recipes of `benchmarks.learning`: options of `sternum pretrain`, a loop of a peer, or no training at all."""

from typing import Final

from infra.errors import UserError

# What every recipe of Sternum begins with: a kept copy of the built-in configuration, on shards at the size of Cell's
# files. Such shards need antialiased views.
COMMON: Final = ("--config=benchmarks/learning_former.yaml", "--views.antialias=true", "--data.splits=[train,val]")

_BATCH_128: Final = ("--data.global_batch=128", "--optim.warmup_steps=100")
_JITTER: Final = (
    *("--views.brightness=0.8", "--views.contrast=0.8", "--views.jitter_probability=0.8"),
    *("--views.contrast_about=mean", "--views.clip=true"),
)

_LIGHTLY_VIEWS: Final = (
    *("--views.crop_area=[0.3,1.0]", "--views.blur_sigma_px=[0.1,2.0]"),
    *("--views.contrast_about=mean", "--views.clip=true"),
)

# With _JITTER, what others have found to help short trainings with small batches.
_LOSS_AND_HEAD: Final = ("--model.head_norm=true", "--loss.temperature=0.2", "--loss.decoupled=true")
_TOGETHER: Final = (*_JITTER, *_LOSS_AND_HEAD)
_SIBLINGS: Final = ("--views.second_from=same_patient", "--views.second_probability=0.5")
_SMALL_VIEWS: Final = ("--views.small_views=4",)

STERNUM: Final[dict[str, tuple[str, ...]]] = {
    "former": (),
    # One factor each.
    "head_norm": ("--model.head_norm=true",),
    "wide_head": ("--model.projection_width=4096", "--model.projection_size=256"),
    "crop_0.08": ("--views.crop_area=[0.08,1.0]",),
    "crop_0.3": ("--views.crop_area=[0.3,1.0]",),
    "jitter_0.8_mean": _JITTER,
    "blur_2": ("--views.blur_sigma_px=[0.1,2.0]",),
    "gamma": ("--views.gamma_probability=0.5",),
    "temperature_0.2": ("--loss.temperature=0.2",),
    "temperature_0.1": ("--loss.temperature=0.1",),
    "decoupled": ("--loss.decoupled=true",),
    "same_patient_masked": ("--loss.same_patient=masked",),
    "sibling_views": _SIBLINGS,
    "small_views": _SMALL_VIEWS,
    "batch_128": _BATCH_128,
    "batch_256": ("--data.global_batch=256", "--optim.warmup_steps=50"),
    "adamw": ("--optim.name=adamw", "--optim.weight_decay=0.01"),
    "rate_0.0005_constant": ("--optim.learning_rate=0.0005", "--optim.schedule=constant", "--optim.warmup_steps=0"),
    "antialias_off": ("--views.antialias=false",),
    "shards_128": ("--views.antialias=false",),  # as README proposes for two cores; see `side_px_of`
    # Several factors.
    "together": _TOGETHER,
    "together_mild_views": (*_LIGHTLY_VIEWS, *_LOSS_AND_HEAD),
    "together_siblings": (*_TOGETHER, *_SIBLINGS),
    "together_small_views": (*_TOGETHER, *_SMALL_VIEWS),
    "together_crop_0.08": (*_TOGETHER, "--views.crop_area=[0.08,1.0]"),
    "together_rate_0.003": (*_TOGETHER, "--optim.learning_rate=0.003"),
    "together_batch_32": (*_TOGETHER, "--data.global_batch=32", "--optim.warmup_steps=400"),
    # Everything that lightly_simclr does, by Sternum's options.
    "lightly_by_options": (
        *("--data.global_batch=128", "--model.projection_width=512", "--model.head_norm=true"),
        *_LIGHTLY_VIEWS,
        *("--optim.learning_rate=0.0005", "--optim.schedule=constant", "--optim.warmup_steps=0"),
    ),
}

PEERS: Final = ("lightly_simclr", "lightly_moco", "lightly_byol")
UNTRAINED: Final = ("raw_pixels", "untrained")
NAMES: Final = (*STERNUM, *PEERS, *UNTRAINED)


def require_recipe(name: str) -> None:
    """Raise UserError unless this recipe exists."""
    if name not in NAMES:
        raise UserError(f"recipe={name} is unknown; use one of {', '.join(NAMES)}, or add it to learning_recipes.py")


def side_px_of(recipe: str, usual_px: int, small_px: int) -> int:
    """Return the shorter side of the shards that a recipe of Sternum reads."""
    return small_px if recipe == "shards_128" else usual_px
