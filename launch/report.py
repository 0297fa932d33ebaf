"""`sternum report`: writes one page about a run, a probe or several runs, or serves the page of a live run."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.configuration.config import parse
from infra.configuration.options import setting
from infra.errors import require
from infra.log import say

_ANY_PORT = "--serve=0"


@dataclass(frozen=True)
class ReportConfig:
    """What to report on.

    Args:
        run_folders: the run, or the folder of a probe without one; several are put side by side
        out: folder for report.html; that of the run by default, required for several
        images: whether the page shows radiographs and the keys of images; false makes a page that may be shared
        serve: serve the page at this port of this machine instead of writing it, made anew when the run's files
            change; --serve alone takes a free port
        host: address to serve at; any but a loopback address opens the page to whoever reaches it and has its address
    """

    run_folders: list[Path]
    out: Path | None = None
    images: bool = True
    serve: int | None = None
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        """Raise UserError for options that exclude each other."""
        require(bool(self.run_folders), "run_folders is missing: sternum report RUN")
        several = len(self.run_folders) > 1
        require(
            not several or self.out is not None,
            "a page about several runs belongs to none of them; name its folder: --out=FOLDER",
        )
        require(
            self.serve is None or not several,
            f"{setting(self, 'serve')} shows one run as it goes on; name one, or leave serve out",
        )
        require(
            self.serve is None or self.out is None,
            f"{setting(self, 'serve')} writes no page, so {setting(self, 'out')} has no use; leave one of them out",
        )
        require(
            self.serve is None or 0 <= self.serve < 2**16,
            f"{setting(self, 'serve')} must be a port from 0 to 65535; 0 takes a free one",
        )


def main(arguments: Sequence[str]) -> int:
    """Write the page and print its path, or serve it until Ctrl-C."""
    config = parse(
        ReportConfig,
        [_ANY_PORT if word == "--serve" else word for word in arguments],
        command="report",
        description=(
            "Write RUN/report.html, one self-contained page: what a run learned and what is not shown, radiographs, "
            "curves, scores with their controls, data, cost."
        ),
        examples=(
            "sternum report runs/first",
            "sternum report runs/first --images=false --out=shared   # without images of patients",
            "sternum report runs/a runs/b --out=compared             # side by side, with paired differences",
            "sternum report runs/first --serve                       # a live page during training",
        ),
        subject="run_folders",
    )
    if config.serve is not None:
        return _serve(config)
    from evaluation.report.html.page import report  # noqa: PLC0415  # --help and mistakes need no matplotlib
    from evaluation.report.html.several_runs import report_on_several  # noqa: PLC0415

    if len(config.run_folders) == 1:
        path = report(config.run_folders[0], out=config.out, images=config.images)
    else:
        assert config.out is not None
        path = report_on_several(config.run_folders, config.out)
    sys.stdout.write(f"{path}\n")
    return 0


def _serve(config: ReportConfig) -> int:
    from evaluation.report.html.run_facts import read_facts  # noqa: PLC0415
    from evaluation.report.html.serve import serving  # noqa: PLC0415

    [run] = config.run_folders
    read_facts(run, shows_images=False)  # raises for a folder that is no run
    with serving(run, config.host, config.serve or 0, images=config.images) as server:
        say(f"serving {run} at {server.url} until Ctrl-C; keep the address to yourself, it opens the page")
        server.serve_forever()
    return 0
