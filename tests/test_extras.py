import ast
from pathlib import Path

from tests.structure import PACKAGES, imported_names

ROOT = Path(__file__).parents[1]
OPTIONAL = {
    "deepspeed", "gcsfs", "imagecodecs", "mlflow", "nvidia", "pyarrow", "pydicom", "ray", "s3fs", "timm",
    "transformers", "wandb",
}  # fmt: skip
BEHIND_AN_EXTRA = {
    "evaluation.fitting.ray_trials",
    "sharding.images.dicom",
    "sharding.images.dicom_decoding",
    "sharding.images.dicom_grayscale",
    "ssl_core.checkpoints.export.timm_folder",
    "ssl_core.model.timm_networks",
    "ssl_core.views.dali",
}


def test_optional_packages_are_imported_by_few_modules_and_these_only_where_they_are_used() -> None:
    """A base install has none of these packages, and `infra.extras` must be asked before any of them is imported."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    at_import = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): set(
            imported_names(ast.parse(file.read_text()), in_functions=False)
        )
        for file in files
    }
    need_extra = {module for module, names in at_import.items() if {name.split(".")[0] for name in names} & OPTIONAL}
    assert need_extra == BEHIND_AN_EXTRA
    for module in at_import.keys() - BEHIND_AN_EXTRA:
        imported = {
            name for name in at_import[module] if any(f"{name}.".startswith(f"{behind}.") for behind in BEHIND_AN_EXTRA)
        }
        assert not imported, f"{module} imports {imported} at its top"
