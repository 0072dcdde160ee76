"""Finding and pairing files: what counts, what is told, what is refused."""

from __future__ import annotations

import pytest

from nnunet_collab.conversion.source_files import by_name, paired, refuse_nothing_found, root_folder
from nnunet_collab.core.errors import CollabError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_root_is_the_first_place_that_holds_all(tmp_path):
    touch(tmp_path, "a/img/x", "a/b/img/x", "a/b/label/x")
    assert root_folder(tmp_path, (".", "a", "a/b"), ("img", "label")) == tmp_path / "a" / "b"
    with pytest.raises(CollabError) as caught:
        root_folder(tmp_path, (".", "a"), ("img", "label"))
    assert str(caught.value) == (
        f"{tmp_path}: SOURCE must hold the folders img and label, as in the official archive; neither it nor "
        f"{tmp_path / 'a'} does. Give the folder above img."
    )


def test_names_that_do_not_match_as_a_whole_are_not_ours(tmp_path):
    problems: list[str] = []
    paths = touch(tmp_path, "c1.nii", "._c1.nii", "c1.nii.bak", "README", "d/c2.nii.gz")
    found = by_name(paths, r"c(\d)\.nii(?:\.gz)?", problems)
    assert found == {"1": tmp_path / "c1.nii", "2": tmp_path / "d" / "c2.nii.gz"}
    assert problems == []


def test_second_file_of_a_name_is_told(tmp_path):
    problems: list[str] = []
    paths = touch(tmp_path, "c1.nii", "c1.nii.gz")
    assert by_name(paths, r"c(\d)\.nii(?:\.gz)?", problems) == {"1": tmp_path / "c1.nii"}
    assert problems == [f"{paths[1]}: there must be one file per case; found also {paths[0]}. Remove one of them."]


def test_pairs_and_what_is_left_over(tmp_path):
    problems: list[str] = []
    a, b, la, lc = touch(tmp_path, "a", "b", "la", "lc")
    (case,) = paired({"a": a, "b": b}, {"a": la, "c": lc}, problems, prefix="case_")
    assert (case.name, case.images, case.label) == ("case_a", (a,), la)
    assert problems == [
        f"{lc}: the image of this label is missing. Copy it again, or remove the label.",
        f"{b}: the label of this image is missing. Copy it again, or remove the image.",
    ]


def test_nothing_found_is_refused_only_if_no_fault_explains_it(tmp_path):
    refuse_nothing_found([], ["a fault"], tmp_path, "files")
    refuse_nothing_found([1], [], tmp_path, "files")
    with pytest.raises(CollabError, match=r"it must hold files; none was found\. Unpack the archive again\."):
        refuse_nothing_found([], [], tmp_path, "files")
