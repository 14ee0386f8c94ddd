"""The miniature's Kolors: what it is trained on is what the opened pipeline says and does."""

from pathlib import Path

import pytest
import torch
from diffusers import KolorsPipeline

from miniature.kolors import Kolors
from tests.miniature import unets


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict[str, torch.nn.Module]]:
    return unets.save_random(Kolors(), tmp_path_factory.mktemp("kolors"))


def test_loss_is_that_of_the_noise_at_the_pipelines_own_levels():
    unets.check_loss(Kolors(), 0.014, 1100)


def test_rows_are_what_the_opened_base_says(saved):
    unets.check_rows(Kolors(), *saved)


def test_images_equal_the_plain_pipelines(saved):
    unets.check_images(KolorsPipeline.from_pretrained(saved[0]), saved[0])


def test_folder_is_small_and_shares_the_autoencoder(saved):
    unets.check_folder(saved[0])


def test_loss_lives_on_any_device_and_under_autocast(saved):
    unets.check_devices(Kolors(), saved[0])


@pytest.mark.slow
def test_readers_learn_to_read():
    unets.check_teaching(Kolors(), steps=6)
