"""Captions from the names of files and folders: by general rules, and nothing rather than noise."""

import pytest

from tar3d.data.prepare.captions_from_names import clean_name, folder_name


@pytest.mark.parametrize(
    "name, words",
    [
        ("bm_3_tier_cake_stand", "3 tier cake stand"),
        ("chair", "chair"),
        ("OfficeChair", "office chair"),
        ("SM_OfficeChair_final_v2.001", "office chair"),
        ("table-lamp (2)", "table lamp"),
        ("wooden_chair_01", "wooden chair"),
        ("Chair01", "chair"),
        ("chair2", "chair"),
        ("cube.001", "cube"),
        ("HTMLTable", "html table"),
        ("boat_0_000000", "boat"),
        ("tv_stand", "tv stand"),
        ("vr_headset", "vr headset"),
        ("x-wing", "x wing"),
        ("barber's chair", "barbers chair"),
        ("mp3_player", "mp3 player"),
        ("ford_f150", "ford f150"),
        ("boeing_747", "boeing 747"),
        ("mustang 1967", "mustang 1967"),
        ("v8_engine", "v8 engine"),
        ("chair_0a3f9c21", "chair"),
        ("Stuhl_größe", "stuhl größe"),
        ("Стул", "стул"),
        ("facade", "facade"),
        ("mesh_object_final", ""),
        ("model_normalized", ""),
        ("Untitled", ""),
        ("0a3f", ""),
        ("0042", ""),
        ("123e4567-e89b-12d3-a456-426614174000", ""),
        ("8476c4170df24cf5bbe6967222d1a42d", ""),
        ("x7Kd92lQp0", ""),
        ("", ""),
        ("123456", ""),
        ("3D-Model", ""),
        ("12", ""),
    ],
)
def test_names_become_words_or_nothing(name, words):
    assert clean_name(name) == words


def test_folders_of_a_layout_say_nothing_but_files_of_that_name_do():
    assert (
        folder_name("train")
        == folder_name("Raw")
        == folder_name("000-023")
        == folder_name("meshes")
        == ""
    )
    assert clean_name("train") == "train" and folder_name("animal_parts") == "animal parts"
