"""What ships with the project is found from anywhere, and no path is taken for a Hub id."""

import pytest

from tar3d import config as configuration
from tar3d import paths
from tar3d.checkpoint import find_bundle, find_model, load_tokenizer
from tar3d.config import VQVAEConfig
from tar3d.paths import hub_id, looks_local, shipped


@pytest.fixture
def hub(monkeypatch):
    """The ids that the Hub is asked for; it has none of them."""
    import huggingface_hub

    asked = []

    def refuse(name):
        asked.append(name)
        raise OSError("no network in a test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    return asked


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_ships_is_found_from_any_folder(elsewhere):
    assert shipped("configs/gpt_i23d.yaml").is_file()
    assert shipped("pretrained/tiny").is_dir() and shipped("pretrained/tiny").is_absolute()


def test_what_ships_is_found_beside_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "site-packages" / "tar3d")
    target = tmp_path / "site-packages" / "tar3d_scripts" / "configs" / "a.yaml"
    target.parent.mkdir(parents=True)
    target.touch()
    assert shipped("configs/a.yaml") == target
    with pytest.raises(
        ValueError, match=r"neither .*configs/b\.yaml nor .*tar3d_scripts/configs/b"
    ):
        shipped("configs/b.yaml")


def test_the_default_model_outside_the_checkout_is_the_shipped_one(elsewhere, hub):
    assert find_bundle("pretrained/tiny", ("tokenizer",)) == [shipped("pretrained/tiny/tokenizer")]
    assert load_tokenizer("pretrained/tiny").config.grid_size == 16 and not hub


def test_a_folder_here_comes_before_a_shipped_one(elsewhere):
    (elsewhere / "pretrained" / "tiny").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"pretrained/tiny is not a model directory: .* nothing"):
        find_model("pretrained/tiny")


def test_a_shipped_config_is_read_from_any_folder(elsewhere):
    assert configuration.load(VQVAEConfig, "configs/vqvae3d_tiny.yaml").tokenizer.grid_size == 12
    with pytest.raises(ValueError, match="config file configs/none.yaml does not exist"):
        configuration.load(VQVAEConfig, "configs/none.yaml")


@pytest.mark.parametrize("folder", paths.PROJECT_FOLDERS)
def test_a_folder_of_the_project_is_no_user_of_the_hub(folder, elsewhere, hub):
    with pytest.raises(ValueError, match=r"taken for a local path.*; hf://owner/name is always"):
        find_model(f"{folder}/missing")
    assert not hub and looks_local(f"{folder}/missing")


@pytest.mark.parametrize("source", ["./a/b", "../a", "~/model", "/a/b", "a/b/c", "a", "", "c:\\a"])
def test_other_paths_are_not_asked_for_either(source, elsewhere, hub):
    assert hub_id(source) is None
    with pytest.raises(ValueError, match="model"):
        find_model(source)
    assert not hub


def test_what_exists_is_no_hub_id(elsewhere, hub):
    (elsewhere / "owner" / "name").mkdir(parents=True)
    with pytest.raises(ValueError, match="owner/name is not a model directory"):
        find_model("owner/name")
    assert hub_id("owner/name") is None and not hub


def test_a_hub_id_can_be_said_outright(elsewhere, hub):
    (elsewhere / "pretrained" / "tiny").mkdir(parents=True)
    for source in ("hf://pretrained/tiny", paths.Path("hf://pretrained/tiny"), "owner/name"):
        with pytest.raises(ValueError, match=r"looked up on the Hub, .*local .*as in \./"):
            find_model(source)
    assert hub == ["pretrained/tiny", "pretrained/tiny", "owner/name"]
    with pytest.raises(ValueError, match="hf://tiny names no model of the Hub: write hf://owner/n"):
        find_model("hf://tiny")


@pytest.mark.parametrize(
    "source, nearest",
    [
        ("pretrained/tinny", "pretrained/tiny"),
        ("pretraned/tiny", "pretrained/tiny"),  # which looks like a Hub id
        ("outputs/vqvea/model", "outputs/vqvae/model"),
        ("vqvea", "outputs/vqvae/model"),
        ("outputs/vqvae/modle/tokenizer", None),
        ("facebook/dinov2-base", None),
    ],
)
def test_a_mistyped_model_is_told_with_the_nearest_name(source, nearest, elsewhere, hub):
    (elsewhere / "outputs" / "vqvae" / "model").mkdir(parents=True)
    with pytest.raises(ValueError) as caught:
        find_model(source)
    if nearest:
        assert f"no model at {source} (did you mean {nearest}?)" in str(caught.value)
    assert ("did you mean" in str(caught.value)) == bool(nearest)
    assert hub == ([source] if source.startswith("facebook") else [])


def test_a_file_of_a_model_is_no_model(hub):
    file = shipped("pretrained/tiny/tokenizer/config.yaml")
    with pytest.raises(ValueError, match="is a file: give the model directory that holds it"):
        find_model(file)
