"""What a probe judges, as its options name it."""

from evaluation.data.backbones.opened import named_backbones, require_features
from evaluation.data.subjects import BackbonesSubject, RunSubject, Subject
from evaluation.fitting.finetuning.rates import require_blocks
from evaluation.probing.config import ProbeConfig
from infra.configuration.options import key, setting
from infra.errors import require


def open_subject(config: ProbeConfig) -> Subject:
    """Open the run, or read and check the backbones.

    Raises:
        UserError: if there is no such run, it has no such checkpoint, or a backbone cannot be used
    """
    if config.run_folder is not None:
        compared = named_backbones(config.compare, key(config, "compare"), config.input)
        size_px = config.input.size_px
        run = RunSubject(config.run_folder, config.checkpoints, config.untrained_seeds, compared, size_px)
        if size_px is not None:
            require_features(run.untrained(config.seed), size_px, f"the backbone of {config.run_folder}")
        require_blocks(config.finetune, run.pretraining.model.backbone, run.views.size_px)
        return run
    require(
        not (config.folder / "config.yaml").exists(),
        f"{setting(config, 'out')} is the folder of a run, whose results would be replaced; name another one",
    )
    backbones = named_backbones(config.backbones, key(config, "backbones"), config.input)
    return BackbonesSubject(config.folder, backbones, config.untrained_seeds, config.seed)
