import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from evaluation.data.backbones.opened import InputOptions, OpenedBackbone, open_backbone
from evaluation.data.backbones.transformers_folder import CONFIG, PREPROCESSOR, WEIGHTS
from infra.errors import UserError
from infra.storage.files import sha256_file

# As Microsoft publishes RAD-DINO, with smaller images.
RAD_DINO = {
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5307, 0.5307, 0.5307],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.2583, 0.2583, 0.2583],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 28},
}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def opened(folder: Path, options: InputOptions | None = None) -> OpenedBackbone:
    return open_backbone(str(folder), f"compare: {folder}", options or InputOptions())


def dinov2(folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.Dinov2Model(
        transformers.Dinov2Config(**(SMALL | {"image_size": 28, "patch_size": 14, "mlp_ratio": 2} | options))
    )
    model.save_pretrained(folder)
    (folder / PREPROCESSOR).write_text(json.dumps(RAD_DINO))
    return model.eval()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_like_rad_dino_has_the_features_of_its_own_library(tmp_path: Path) -> None:
    model = dinov2(tmp_path / "dino")
    backbone = opened(tmp_path / "dino")
    assert backbone.input.size_px == 28
    assert backbone.input.mean == pytest.approx([0.5307] * 3)
    assert backbone.sha256 == sha256_file(tmp_path / "dino" / WEIGHTS)
    assert backbone.record("rad-dino").summary == "Dinov2Model, pooled output"
    assert backbone.record("rad-dino").network == "transformers/dinov2"

    gray = torch.randint(0, 256, (28, 28), dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "dino")
    pixels = processor(Image.fromarray(gray.numpy()).convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).pooler_output
        torch.testing.assert_close(backbone.load()(gray[None, None] / 255), expected, rtol=1e-4, atol=1e-5)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "dino"
    dinov2(folder, num_channels=1)
    with pytest.raises(UserError, match=r"takes 1 channel\(s\), but its mean or standard deviation has 2"):
        opened(folder, InputOptions(mean=[0.5, 0.5]))
    assert opened(folder).input.mean == pytest.approx([0.5307])
    dinov2(tmp_path / "large_patches", image_size=64, patch_size=32)
    with pytest.raises(UserError, match="does not take images of 16 px"):
        opened(tmp_path / "large_patches", InputOptions(size_px=16))
    config = (folder / CONFIG).read_text()
    edit(folder / CONFIG, attn_implementation="someone/attention")
    with pytest.raises(UserError, match="asks for the attention 'someone/attention', which is code from elsewhere"):
        opened(folder)
    edit(folder / CONFIG, attn_implementation=None, hidden_size=24, num_attention_heads=2)
    with pytest.raises(UserError, match=r"compare: \S*dino (lacks|cannot be loaded)"):
        opened(folder)
    edit(folder / CONFIG, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be loaded by transformers"):
        opened(folder)
    assert not (tmp_path / "executed").exists()
    (folder / PREPROCESSOR).unlink()
    with pytest.raises(UserError, match=r"does not say which images it takes; give --\S*size_px, --\S*mean, --\S*std"):
        opened(folder)
    for text, message in (
        ("{", "cannot be read"),
        ('{"architecture": "vit"}', "names no model_type, so it is no model"),
    ):
        (folder / CONFIG).write_text(text)
        with pytest.raises(UserError, match=message):
            opened(folder)
    (folder / CONFIG).write_text(config)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no model\.safetensors, and Sternum unpickles nothing"):
        opened(folder, InputOptions(28, [0.5], [0.5]))


@pytest.mark.slow
def test_models_without_weights_for_their_pooling_give_the_cls_token(tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=16, **SMALL)).eval()
    model.save_pretrained(tmp_path)
    backbone = opened(tmp_path, InputOptions(32, [0.5], [0.5]))
    assert backbone.summary == "ViTModel, CLS token; skipped others: 2 (classifier.bias, classifier.weight)"
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        tokens = model.vit(pixel_values=(image.expand(-1, 3, -1, -1) - 0.5) / 0.5).last_hidden_state
        torch.testing.assert_close(backbone.load()(image), tokens[:, 0])
    assert "CLS token" in backbone.untrained(0).network.extra_repr()  # the control gives the same output
    larger = opened(tmp_path, InputOptions(48, [0.5], [0.5]))  # its positions are resampled
    assert larger.load()(torch.rand(2, 1, 48, 48)).shape == (2, 16)


@pytest.mark.slow
def test_a_convolutional_model_gives_its_pooled_output(tmp_path: Path) -> None:
    model = transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ).eval()
    model.save_pretrained(tmp_path)
    backbone = opened(tmp_path, InputOptions(32, [0.5], [0.5]))
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = model((image.expand(-1, 3, -1, -1) - 0.5) / 0.5).pooler_output.flatten(1)
        torch.testing.assert_close(backbone.load()(image), expected)


@pytest.mark.slow
def test_a_model_that_masks_patches_at_random_is_refused(tmp_path: Path) -> None:
    transformers.ViTMAEModel(transformers.ViTMAEConfig(image_size=64, patch_size=16, **SMALL)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="gives other features each time"):
        opened(tmp_path, InputOptions(64, [0.5], [0.5]))
